"""Evaluates a run: python eval.py --workdir runs/person [--config.any.key=value]."""

import sys

from jaxdet.training.commands import evaluate

if __name__ == "__main__":
    evaluate(sys.argv)

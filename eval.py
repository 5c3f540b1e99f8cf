"""Evaluates a run: python eval.py --workdir runs/person [--config.KEY=VALUE]."""

import sys

from jaxdet.training.commands import evaluate

if __name__ == "__main__":
    evaluate(sys.argv)

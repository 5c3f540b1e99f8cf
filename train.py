"""Trains: python train.py --config configs/person.py --workdir runs/person [--config.KEY=VALUE]."""

import sys

from jaxdet.training.commands import train

if __name__ == "__main__":
    train(sys.argv)

"""Drawn street scenes: the embedded data set."""

"""Configs: what each key may be, how files and command lines set it, and the published recipes' values."""

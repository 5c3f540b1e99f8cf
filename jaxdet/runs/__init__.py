"""A run: its folder, its checkpoints, its processes and devices."""

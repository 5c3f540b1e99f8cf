"""The trainer: one jitted step, one loop around it. Only train.py reaches in here."""

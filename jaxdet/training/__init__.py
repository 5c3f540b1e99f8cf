"""The trainer: one jitted step, one loop around it. Only the commands and pages reach in here."""

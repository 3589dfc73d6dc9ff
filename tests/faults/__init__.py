"""Injected faults, real processes: how soon the notebook has control, what it says, and that the next cell works."""

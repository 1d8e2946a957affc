"""State machines without I/O, clock, randomness or async (README.md states the rule)."""

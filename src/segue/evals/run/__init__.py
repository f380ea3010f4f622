"""A run of a benchmark: every question asked once, kept, scored, reported and compared."""

"""Factorial ablations: all combinations of the levels of some axes."""

"""Seeded fuzzing of everything that reads untrusted input."""

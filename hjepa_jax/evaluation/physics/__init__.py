"""Measurements of phase-space maps and their figures."""

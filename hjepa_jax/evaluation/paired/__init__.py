"""Comparisons of encoders image by image."""

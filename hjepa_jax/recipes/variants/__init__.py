"""Variants of recipes: methods, and the small size of a smoke test."""

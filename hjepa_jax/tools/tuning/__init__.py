"""Tuning of methods by random search with successive halving."""

"""Configurations of the published PyTorch scripts, and what each of their keys becomes."""

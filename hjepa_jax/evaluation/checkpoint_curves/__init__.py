"""Evaluations of all checkpoints of runs: their files, and curves of figures over training."""

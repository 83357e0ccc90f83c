"""Flax modules: encoders, projector and predictors."""

"""Regularizers: what keeps the states of a method from collapsing."""

"""Goodness of fit: how far samples are from a Gaussian."""

"""Coordinates in which states are evaluated: as encoded, or as H^{1/2} z."""

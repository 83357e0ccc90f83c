"""The train step, its state and optimizer, and the preparation and resumption of runs."""

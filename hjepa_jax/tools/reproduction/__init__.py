"""Parts of the comparison of HJEPA with its baselines."""

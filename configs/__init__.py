"""Configuration files of a checkout: the recipes of `hjepa_jax.recipes`."""

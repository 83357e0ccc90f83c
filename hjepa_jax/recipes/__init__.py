"""Recipes, small deltas of `hjepa_jax.config.base_config`, which `--config=NAME` names."""

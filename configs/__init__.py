"""Configurations: each file is a small delta of `hjepa_jax.config.base_config`."""

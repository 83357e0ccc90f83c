"""Quickstart: `hjepa_jax/recipes/quickstart.py`, which `--config=quickstart` names anywhere."""

from hjepa_jax.recipes.quickstart import get_config

__all__ = ["get_config"]

"""Pretrained: `hjepa_jax/recipes/pretrained.py`, which `--config=pretrained` names anywhere."""

from hjepa_jax.recipes.pretrained import get_config

__all__ = ["get_config"]

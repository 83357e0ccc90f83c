"""ImageNet-100: `hjepa_jax/recipes/imagenet100.py`, which `--config=imagenet100` names anywhere."""

from hjepa_jax.recipes.imagenet100 import get_config

__all__ = ["get_config"]

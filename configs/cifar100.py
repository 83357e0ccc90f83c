"""CIFAR-100: `hjepa_jax/recipes/cifar100.py`, which `--config=cifar100` names anywhere."""

from hjepa_jax.recipes.cifar100 import get_config

__all__ = ["get_config"]

"""Any folder of images: `hjepa_jax/recipes/folder.py`, which `--config=folder` names anywhere."""

from hjepa_jax.recipes.folder import get_config

__all__ = ["get_config"]

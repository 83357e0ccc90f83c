"""LeJEPA with a projector: `hjepa_jax/recipes/lejepa.py`, as `--config=lejepa` anywhere."""

from hjepa_jax.recipes.lejepa import get_config

__all__ = ["get_config"]

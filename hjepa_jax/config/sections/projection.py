"""The layers of the projector that the section `model` describes."""

from __future__ import annotations

from hjepa_jax.config.training import Model


def layer_widths(model: Model) -> tuple[int, ...]:
    """Returns the outputs of each layer of the projector; () without one."""
    if model.projector == "identity":
        return ()
    return model.projector_widths or (model.projector_hidden, model.projector_dim)

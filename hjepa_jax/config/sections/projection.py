"""The projector that a configuration describes, and which states it evaluates."""

from __future__ import annotations

from hjepa_jax.config.settings import Settings
from hjepa_jax.config.training import Model


def layer_widths(model: Model) -> tuple[int, ...]:
    """Returns the outputs of each layer of the projector; () without one."""
    if model.projector == "identity":
        return ()
    return model.projector_widths or (model.projector_hidden, model.projector_dim)


def evaluates_projection(settings: Settings) -> bool:
    """Returns whether a projector's output is evaluated in place of the encoder's."""
    return settings.model.projector != "identity" and settings.evaluation.features == "projector"


def evaluates_states_of_loss(settings: Settings) -> bool:
    """Returns whether the evaluated states are those that the loss sees."""
    return settings.model.projector == "identity" or evaluates_projection(settings)


def evaluated_split(settings: Settings) -> bool:
    """Returns whether the evaluated states are [q | p]; the projector 'mlp' mixes both."""
    mixed = settings.model.projector == "mlp" and evaluates_projection(settings)
    return settings.model.split_qp and not mixed

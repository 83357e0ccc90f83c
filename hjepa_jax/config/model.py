"""The section `model`: encoder, projector and arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hjepa_jax.config.fields import Condition, field

_MLP = Condition(lambda c: c.model.projector == "mlp", "config.model.projector='mlp'")


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder, its state, the projector and the arithmetic."""

    encoder: str = field(
        "resnet", "'resnet', or a class of your own, 'module.path:Class'.", aliases=("backbone",)
    )
    split_qp: bool = field(
        True, "Half of each token's channels is position q, half momentum p: z = [q | p]."
    )
    projector: Literal["identity", "mlp"] = field(
        "identity",
        "'identity' or 'mlp' (Linear, BatchNorm, ReLU, Linear).",
    )
    projector_hidden: int = field(
        2048, "Hidden units of the projector.", above=0, at_most=2**20, used=_MLP
    )
    projector_dim: int = field(2048, "Outputs of the projector.", above=0, at_most=2**20, used=_MLP)
    batch_norm: Literal["global", "local"] = field(
        "global",
        "Batch statistics of the whole batch, or of each device's share ('local': less "
        "waiting, but the result depends on the number of devices).",
        aliases=("sync_bn", "sync_batch_norm"),
    )
    compute_dtype: Literal["bfloat16", "float32"] = field(
        "bfloat16",
        "Encoder arithmetic; parameters and losses are float32.",
        aliases=("dtype", "precision"),
    )

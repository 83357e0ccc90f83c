"""The whole configuration: its sections, its rows, and the base that configurations start from."""

from __future__ import annotations

import dataclasses
import functools

from ml_collections import ConfigDict, config_dict

from hjepa_jax.config.conditions import HJEPA, SIGREG
from hjepa_jax.config.data import Data
from hjepa_jax.config.fields import (
    FREE,
    FREE_WITHOUT_PROBE,
    Config,
    Row,
    field,
    section,
    walk,
)
from hjepa_jax.config.losses import Loss, Parity, Sigreg, Spectral
from hjepa_jax.config.model import Dynamics, Model, ResNet
from hjepa_jax.config.training import Checkpoint, Evaluation, Log, Train


@dataclasses.dataclass(frozen=True)
class Settings:
    """The root of the configuration."""

    seed: int = field(
        42,
        "Seeds parameters, data order, augmentation and random projections.",
        at_least=0,
        at_most=2**32 - 1,
        aliases=("random_seed", "rng"),
    )
    objective: str = field(
        "hjepa",
        "'hjepa' or 'sigreg' (the LeJEPA baseline).",
        choices=("hjepa", "sigreg"),
        aliases=("method",),
    )
    data: Data = section(Data, "Images, views and the input pipeline.")
    model: Model = section(Model, "The state, the projector and the arithmetic.")
    resnet: ResNet = section(ResNet, "The ResNet encoder.")
    dynamics: Dynamics = section(Dynamics, "The predictor.", used=HJEPA)
    loss: Loss = section(Loss, "The HJEPA objective.", used=HJEPA)
    sigreg: Sigreg = section(Sigreg, "The LeJEPA baseline.", used=SIGREG)
    spectral: Spectral = section(Spectral, "The transform of HamSIGReg.", used=SIGREG)
    parity: Parity = section(Parity, "Behaviors of the published scripts.")
    train: Train = section(Train, "The optimization.")
    evaluation: Evaluation = section(Evaluation, "What is measured.", resume=FREE)
    checkpoint: Checkpoint = section(Checkpoint, "What is saved.", resume=FREE)
    log: Log = section(Log, "What is logged.", resume=FREE)


@functools.cache
def rows() -> dict[str, Row]:
    """Returns the row of every field by its dotted name, in the order of declaration."""
    return {row.path: row for row in walk(Settings)}


@functools.cache
def sections() -> frozenset[str]:
    """Returns the dotted names of the sections."""
    return frozenset(path.rpartition(".")[0] for path in rows()) - {""}


def base_config() -> Config:
    """Returns the base configuration, the CIFAR-100 HJEPA recipe on the embedded data set."""
    base: dict = {}
    for row in rows().values():
        *parents, name = row.path.split(".")
        target = base
        for parent in parents:
            target = target.setdefault(parent, {})
        # A reference keeps its type while it is None.
        kind = tuple if row.length is not None else row.kind
        target[name] = (
            config_dict.FieldReference(row.default, field_type=kind)
            if row.optional
            else row.default
        )
    return ConfigDict(base)


def may_change_on_resume(path: str, config: Config) -> bool:
    """Returns whether a resumed run may have another value of a field.

    Args:
      path: its dotted name.
      config: of the run as it goes on; an online probe fixes the fields that its state depends on.
    """
    policy = rows()[path].resume
    return policy == FREE or (policy == FREE_WITHOUT_PROBE and not config.evaluation.online_probe)


def may_differ_between_processes(path: str) -> bool:
    """Returns whether each process may have its own value: it is of the machine, not the run."""
    return rows()[path].spec.own

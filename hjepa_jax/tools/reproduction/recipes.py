"""The methods of the comparison and their recipes, at each scale, published or tuned."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import read_regular
from hjepa_jax.tools.sweep import with_effect
from hjepa_jax.tools.tuning.report import best_file

CONFIG = "cifar100"
METHODS = ("hjepa", "sigreg", "mlp", "identity")
# Variant and further overrides of methods that are no variant of the recipe.
_OTHERS = {"lejepa": ("sigreg", ("model.projector=mlp", "model.projector_widths=2048,2048,128"))}
TITLES = {
    "hjepa": "HJEPA",
    "sigreg": "SIGReg (LeJEPA)",
    "lejepa": "LeJEPA with a head",
    "mlp": "matched MLP predictor",
    "identity": "identity predictor",
}
TUNED = "-tuned"
TITLES |= {f"{name}{TUNED}": f"{title}, tuned" for name, title in TITLES.items()}
TITLES |= {"random": "random initialization", "pixels": "raw pixels"}
# The full recipe of CIFAR-100, and two for a CPU that keep its proportions (warm-ups over a third
# of training). The small one takes hours, has eight rows per dimension of the log-det floor, and
# batches of 128, since ten epochs with batches of 512 would be only 190 steps. The middle one has
# all images, and follows the learning by the kNN of test images, which selects nothing.
SCALES: dict[str, tuple[str, ...]] = {
    "full": (),
    "middle": (
        "resnet.width=16",
        "model.compute_dtype=float32",
        "train.epochs=6",
        "train.warmup_epochs=2",
        "evaluation.online_every_epochs=1",
        "evaluation.logistic_probe=True",
    ),
    "small": (
        "resnet.width=16",
        "model.compute_dtype=float32",
        "data.max_train_images=10000",
        "data.batch_size=128",
        "train.epochs=10",
        "train.lr=1e-3",
        "train.warmup_epochs=3.3",
    ),
}
_OF_METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "small": {
        "hjepa": ("loss.logdet_dim=32", "dynamics.residual_scale_warmup_epochs=3.3"),
        "mlp": ("loss.logdet_dim=32",),
        "identity": ("loss.logdet_dim=32",),
    },
    "middle": {"hjepa": ("dynamics.residual_scale_warmup_epochs=2",)},
}


class Recipe(NamedTuple):
    """What a method is trained with.

    Attributes:
      source: its configuration, with variant.
      overrides: 'section.field=value'.
    """

    source: str
    overrides: tuple[str, ...]


def default_methods(scale: str) -> tuple[str, ...]:
    """Returns the methods that are compared at a scale unless others are named."""
    return (*METHODS, *_OTHERS) if scale == "middle" else METHODS


def recipes(
    methods: Sequence[str], scale: str, tuned: pathlib.Path | None, overrides: Sequence[str]
) -> dict[str, Recipe]:
    """Returns the recipes to compare, by name: each method, then each with its tuned values.

    Args:
      methods: names of methods.
      scale: key of `SCALES`.
      tuned: folder of `hjepa tune` that has the tuned values; None = only the published ones.
      overrides: 'section.field=value' of all of them.

    Raises:
      UserError: for an unknown method or scale, or a method that was not tuned.
    """
    known = (*METHODS, *_OTHERS)
    for name, options in ((scale, SCALES), *((method, known) for method in methods)):
        if name not in options:
            raise UserError(f"{name!r} is none of {', '.join(options)}.")
    found = {}
    for method in methods:
        variant, fixed = _OTHERS.get(method, (method, ()))
        own = _OF_METHODS.get(scale, {}).get(method, ())
        given = (*SCALES[scale], *own, "evaluation.pixel_baseline=True")
        source = f"{CONFIG}:{variant}"
        found[method] = Recipe(source, with_effect(source, (*given, *fixed, *overrides)))
        if tuned is not None:
            best = tuned / best_file(method)
            values = (*given, *fixed, *_values(best, source), *overrides)
            found[f"{method}{TUNED}"] = Recipe(source, with_effect(source, values))
    # Published recipes first, so that a prefix of the runs is of use.
    return dict(sorted(found.items(), key=lambda item: item[0].endswith(TUNED)))


def _values(path: pathlib.Path, source: str) -> list[str]:
    """Returns the overrides in a flag file that `hjepa tune` wrote for a configuration.

    Raises:
      UserError: if there is none, or it is of another configuration.
    """
    try:
        lines = read_regular(path, 2**20).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): tune the method first.") from error
    flags = [line for line in lines if line and not line.startswith("#")]
    if flags[:1] != [f"--config={source}"]:
        raise UserError(
            f"{path} was tuned for another configuration than {source}: tune with "
            f"--config={CONFIG}."
        )
    return [flag.removeprefix("--config.") for flag in flags[1:]]

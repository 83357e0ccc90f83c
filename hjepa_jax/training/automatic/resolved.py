"""Turns a configuration with 'auto' fields into settings: chosen, or as the run has them."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from hjepa_jax.config import Settings, resolve
from hjepa_jax.config.checks import automatic, runtime_of, typed, with_defaults
from hjepa_jax.config.files import differences, set_field
from hjepa_jax.errors import counted
from hjepa_jax.runtime import arithmetic, distributed
from hjepa_jax.training.automatic import census
from hjepa_jax.training.automatic.choices import Choice, choose
from hjepa_jax.training.saved_run import saved_config

_log = logging.getLogger(__name__)
# Where images are, and how many of them are a test set.
_WHICH, _HOLDOUT = ("data.name", "data.root"), "data.test_holdout"


def resolved(
    config: ConfigDict | Settings, workdir: pathlib.Path | None = None, *, training: bool = True
) -> Settings:
    """Checks a configuration like `config.resolve`, and chooses the fields that are 'auto'.

    Before a device is used, XLA is set up as `config.runtime` says. A run that has checkpoints
    keeps the values of its `config.json`, wherever it is continued; only the hold-out is chosen
    anew if it is evaluated on other images.

    Args:
      config: the complete configuration; settings are returned as they are.
      workdir: folder of the run, which may hold checkpoints; None = choose anew.
      training: see `config.resolve`.

    Returns:
      Settings without 'auto'. What was chosen is logged, with the reasons.

    Raises:
      UserError: if the configuration is wrong, or the images from which to choose are.
    """
    if isinstance(config, Settings) or not automatic(config):
        settings = resolve(config, training=training)
        arithmetic.set_up(settings.runtime)
        return settings
    arithmetic.set_up(runtime_of(config))
    given, wanted = with_defaults(config)
    if workdir is not None and os.path.isdir(workdir / "checkpoints"):
        saved = saved_config(workdir)
        values = dict(_as_saved(saved, wanted, workdir))
        elsewhere = differences(saved, typed(given), lambda name: name in _WHICH)
        if not training and elsewhere and _HOLDOUT in wanted:
            values |= _chosen(typed(given), (_HOLDOUT,))
    else:
        values = _chosen(typed(given), wanted)
    with given.ignore_type():
        for path, value in values.items():
            set_field(given, path, value)
    return resolve(given, training=training)


def _as_saved(
    saved: Settings, wanted: tuple[str, ...], workdir: pathlib.Path
) -> Mapping[str, object]:
    """Returns the values that a run has."""
    known = saved.values()
    values = {path: known[path] for path in wanted if path in known}
    if distributed.is_primary():
        _log.info("%s as in %s", counted(len(values), "field"), workdir / "config.json")
    return values


def _chosen(given: Settings, wanted: tuple[str, ...]) -> Mapping[str, object]:
    """Returns the values that fit the images and the devices."""
    counts = census.take(given)
    found = choose(counts, given, wanted)
    if distributed.is_primary():
        images = counted(counts.count, "image")
        devices = counted(counts.devices, f"{counts.platform.upper()} device")
        _log.info("chosen for %s and %s:\n%s", images, devices, table(found))
    return {path: choice.value for path, choice in found.items()}


def table(found: Mapping[str, Choice]) -> str:
    """Returns a line `field = value  (why)` for each choice."""
    texts = {path: str(choice.value) for path, choice in found.items()}
    left, right = (max(map(len, part), default=0) for part in (texts, texts.values()))
    return "\n".join(
        f"  {path:{left}} = {text:{right}}  ({found[path].why})" for path, text in texts.items()
    )

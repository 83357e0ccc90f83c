"""Translates configurations of the published PyTorch scripts, deviations included."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from ml_collections import ConfigDict

from hjepa_jax.config import base_config, rows
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import flatten, set_field
from hjepa_jax.config.settings import Settings
from hjepa_jax.config.values import shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.interop.published.keys import CHECKED, FIXED, MAPPED, NO_EFFECT
from hjepa_jax.interop.published.scripts import NAME, Published, Script, keys_of
from hjepa_jax.methods.hamsigreg_settings import GRID_KINDS
from hjepa_jax.models.resnet import ResNet
from hjepa_jax.recipes import cifar100, imagenet100

# Values of our fields by published key.
Values: TypeAlias = Mapping[str, Any]
_HAM = "regularizer.ham_kwargs."


class Translation(NamedTuple):
    """A translated configuration.

    Attributes:
      config: ours, with a `parity` section that reproduces the script exactly.
      script: the script that it belongs to.
      mapped: the keys that are followed.
      without_effect: the keys that have no effect, or none in this branch of the script.
    """

    config: ConfigDict
    script: Script
    mapped: tuple[str, ...]
    without_effect: tuple[str, ...]

    def sentence(self) -> str:
        """Returns what is said of it when it is read."""
        parity = ", ".join(name for name, on in self.config.parity.items() if on)
        flags = f"; config.parity follows it in {parity}" if parity else ""
        idle = ", ".join(self.without_effect)
        rest = f"; without effect on the experiment: {idle}" if idle else ""
        return (
            f"it is a configuration of the published {self.script.name} script: "
            f"{len(self.mapped)} keys set fields, as docs/parity.md lists{flags}{rest}."
        )


def config_from_torch(published: Published) -> ConfigDict:
    """Returns the configuration of `translate`."""
    return translate(published).config


def translate(published: Published) -> Translation:
    """Translates a configuration of the published scripts, deviations included.

    Args:
      published: the nested dictionary of its YAML file, or of a checkpoint's `config`.

    Raises:
      ConfigError: naming a key that is unknown, cannot be followed, or has an invalid value.
    """
    keys = keys_of(published)
    values = {key: _value(key, value) for key, value in keys.items()}
    script = Script.of(published, keys)
    _check(script, values)
    config = _with_defaults(script)
    for key, value in values.items():
        if key in MAPPED and MAPPED[key].when.holds(script):
            set_field(config, MAPPED[key].field, value)
    for rule in (_images, _rate, _hjepa, _sigreg, _hamsigreg):
        rule(config, script, values)
    unused = _reset_unused(config)
    idle = tuple(key for key in keys if _is_idle(key, script, unused))
    wrong = [key for key in idle if key.startswith(_HAM)] if script.ham_kind else []
    if wrong:
        raise ConfigError(
            f"{NAME}'s {wrong[0]} does not belong to regularizer.ham_kind={script.ham_kind!r}: "
            "remove it."
        )
    if config.method == "hamsigreg":
        _check_grid(typed(config), values)
    followed = tuple(key for key in keys if key not in idle)
    return Translation(config, script, followed, idle)


def _value(key: str, value: object) -> Any:
    """Returns the value of our field, or the value itself for a key that becomes none.

    Raises:
      ConfigError: if the key or its value cannot be followed.
    """
    if key in MAPPED:
        entry = MAPPED[key]
        return entry.read(key, value, rows()[entry.field])
    if key in FIXED:
        wanted, why = FIXED[key]
        if type(value) is not type(wanted) or value != wanted:
            raise ConfigError(
                f"{NAME}'s {key} is {shown(value)}, which cannot be followed, as {why}: set it to "
                f"{wanted}, or remove it."
            )
    elif key in CHECKED:
        if type(value) is not int:
            raise ConfigError(f"{NAME}'s {key} is {shown(value)}: it must be a whole number.")
    elif key not in NO_EFFECT:
        near = difflib.get_close_matches(key, (*MAPPED, *FIXED, *CHECKED, *NO_EFFECT), 1, 0.8)
        meant = f", or did you mean {near[0]}?" if near else "."
        raise ConfigError(
            f"{NAME}'s {key[:100]} is {shown(value)}, but no such key is known (docs/parity.md "
            f"lists them): remove it if the experiment does not depend on it{meant}"
        )
    return value


def _check(script: Script, values: Values) -> None:
    """Raises a ConfigError if keys are missing, or contradict each other."""
    required = ["regularizer.type"]
    if script.hjepa:
        required = ["regularizer.q_logdet_floor", "regularizer.p_logdet_floor"]
    two_sided = ("regularizer.t_min", "regularizer.num_t")
    if script.regularizer in ("sigreg", "ham_sigreg") and any(key in values for key in two_sided):
        required = [*required, *two_sided]
    if script.ham_kind == "learnable" or any(key in values for key in CHECKED):
        required += CHECKED if script.ham_kind in ("chain", "learnable") else []
    for key in required:
        if key not in values:
            raise ConfigError(f"{NAME} has no {key}: add it.")
    ramps = ("train.h_identity_epochs", "train.h_base_ramp_epochs")
    for key in ramps if script.ham_kind == "chain" else ():
        if values.get(key, 0) != 0:
            raise ConfigError(
                f"{NAME}'s {key} is {shown(values[key])}, but whether the scripts fade in a chain "
                "is not known: remove it, and set config.hamsigreg as you mean it."
            )


def _with_defaults(script: Script) -> ConfigDict:
    """Returns our base configuration with what the script does if a key is missing."""
    config = base_config()
    recipe = (imagenet100 if script.imagenet else cifar100).get_config()
    for name in ("name", "download", "image_size", "global_scale", "mean", "std", "eval_resize"):
        config.data[name] = recipe.data[name]
    config.data.test_split = recipe.data.test_split
    config.data.augment.blur_kernel = recipe.data.augment.blur_kernel
    if script.imagenet:
        config.data.local_scale = (0.05, 0.4)
    config.model.split_qp = False
    config.train.grad_clip = None
    config.dynamics.residual_scale_warmup_epochs = 0.0
    config.loss.update(p_weight=0.0, q_pr_floor=None, p_pr_floor=None)
    config.loss.update(q_eigmax_ceiling=None, p_eigmax_ceiling=None)
    config.evaluation.reference_evaluation = True
    if script.ham_kind == "learnable":
        config.hamsigreg.update(gauge="logdet", init_loglambda_span=0.0)
    return config


def _images(config: ConfigDict, script: Script, values: Values) -> None:
    """All published crops have the same size."""
    del script, values
    config.data.local_size = config.data.image_size


def _rate(config: ConfigDict, script: Script, values: Values) -> None:
    """The scripts have no schedule in two cases; the ImageNet potential has its own rate."""
    del values
    train = config.train
    constant = train.warmup_epochs >= train.epochs
    if constant or (train.warmup_epochs == 0 and train.min_lr_ratio == 0):
        train.update(warmup_epochs=0.0, min_lr_ratio=1.0)
    if script.imagenet and train.predictor_lr is None:
        train.predictor_lr = 0.1 * train.lr


def _hjepa(config: ConfigDict, script: Script, values: Values) -> None:
    """What the scripts do that no key says; flags that have no effect are reset afterwards."""
    config.dynamics.dt = float(jnp.float32(config.dynamics.dt))
    if script.hamiltonian == "learnable":
        config.dynamics.base_coeff = 1.0
    if "regularizer.p_std_floor" not in values:
        config.loss.p_std_floor = config.loss.q_std_floor
    for name in ("logdet_dim", "logdet_eps", "logdet_refresh_interval"):
        if config.loss[f"p_{name}"] == config.loss[name]:
            config.loss[f"p_{name}"] = None
    config.parity.update(
        epochwise_residual_warmup=not script.imagenet,
        forward_directions_only=script.imagenet,
        q_variance_floor_only=script.imagenet,
        unclipped_predictor=script.imagenet,
        # A constant rate has no floor.
        shared_lr_floor=script.imagenet and config.train.min_lr_ratio < 1,
        reference_leapfrog=True,
    )


def _sigreg(config: ConfigDict, script: Script, values: Values) -> None:
    """`none` is no regularizer; `identity` no transform; the two-sided statistic has defaults."""
    config.sigreg.epochwise_weight_warmup = True
    if "regularizer.t_min" in values and "regularizer.t_max" not in values:
        config.sigreg.t_max = 5.0
    if script.regularizer == "none":
        config.sigreg.weight = 0.0
    if script.ham_kind == "identity":
        config.method = "lejepa"
    if not config.model.split_qp:
        config.evaluation.state_part = "qp"


def _hamsigreg(config: ConfigDict, script: Script, values: Values) -> None:
    """The kind of the transform, which is a chain if none is named."""
    if not script.ham_kind:
        return
    if script.ham_kind == "chain":
        config.hamsigreg.kind = "chain_grid" if set(CHECKED) <= set(values) else "chain"
    config.hamsigreg.reference_layout = True


def _reset_unused(config: ConfigDict) -> set[str]:
    """Resets the fields that have no effect to their defaults, and returns their names."""
    found: set[str] = set()
    changed = True
    while changed:
        settings, values = typed(config), dict(flatten(config))
        unused = {
            path
            for path, row in rows().items()
            if not all(condition.holds(settings) for condition in row.conditions)
        }
        changed = any(values[path] != rows()[path].default for path in unused)
        for path in unused:
            set_field(config, path, rows()[path].default)
        found |= unused
    return found


def _is_idle(key: str, script: Script, unused: set[str]) -> bool:
    """Returns whether a key has no effect in this branch of the script."""
    if key in CHECKED:
        return script.ham_kind not in ("chain", "learnable")
    if key in (*FIXED, "regularizer.ham_kind"):
        return key in MAPPED and not script.ham_kind
    if key in NO_EFFECT:
        return True
    entry = MAPPED[key]
    return entry.field in unused or not entry.when.holds(script)


def _check_grid(settings: Settings, values: Values) -> None:
    """Raises a ConfigError if the grid of the transform is not that of the encoder's tokens."""
    if settings.value("hamsigreg.kind") not in GRID_KINDS:
        return
    shape = ResNet.build(settings, jnp.float32, 1).shape(settings.data.image_size)
    sides = (shape.token_grid, shape.token_grid, shape.token_dim)
    for key, side in zip(CHECKED, sides):
        if side is not None and values[key] != side:
            raise ConfigError(
                f"{NAME}'s {key} is {shown(values[key])}, but the encoder's tokens have {side} "
                f"({CHECKED[key]}): set it to {side}."
            )

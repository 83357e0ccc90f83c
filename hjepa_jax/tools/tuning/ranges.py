"""What is tuned: for each method its fields and their ranges, and random draws from them."""

from __future__ import annotations

import difflib
import math
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from hjepa_jax.errors import UserError
from hjepa_jax.storage.schema import (
    Anything,
    Fields,
    Items,
    Number,
    Table,
    Text,
    require,
)
from hjepa_jax.storage.yaml_files import read_yaml


class Range(NamedTuple):
    """Values of one or several fields that are drawn together.

    Attributes:
      kind: 'log' or 'uniform' between two numbers, or 'choice'.
      low, high: the numbers; nan for a choice.
      choices: the texts to choose from.
    """

    kind: Literal["log", "uniform", "choice"]
    low: float = math.nan
    high: float = math.nan
    choices: tuple[str, ...] = ()


class Space(NamedTuple):
    """What is tuned of a method.

    Attributes:
      variant: variant of the configuration, '' = none.
      fixed: overrides 'section.field=value' of every trial.
      ranges: dotted name of a field, or several joined by ',', -> its range.
    """

    variant: str
    fixed: tuple[str, ...]
    ranges: Mapping[str, Range]


def _log(low: float, high: float) -> Range:
    return Range("log", low, high)


def _choice(*options: str) -> Range:
    return Range("choice", choices=options)


_OPTIMIZER = {"train.lr": _log(2e-4, 6e-3), "train.weight_decay": _log(1e-5, 5e-2)}
# The terms against collapse around their published weights, and the floors that they ask for. With
# two views all pairings are the same, and more views would cost more in each step.
_FLOORS = {
    "loss.match": _choice("q", "qp"),
    "loss.budget_weight": _log(0.02, 2.0),
    "loss.budget_of": _choice("energy", "variance"),
    "loss.var_weight": _log(0.05, 5.0),
    "loss.logdet_weight": _log(0.05, 5.0),
    # The default leaves most of the energy in the mean.
    "loss.mean_weight": _log(0.01, 10.0),
    "loss.q_std_floor,loss.p_std_floor": Range("uniform", 0.1, 1.0),
    "loss.q_logdet_floor,loss.p_logdet_floor": Range("uniform", -3.0, 0.0),
}
_MOVES = {"train.predictor_lr": _log(5e-5, 6e-3), "dynamics.dt": _log(0.01, 0.5)}
_FLOW = {"dynamics.residual_scale": _log(0.005, 0.5)}
_SIGREG = {
    "sigreg.weight": _log(2e-3, 10.0),
    "sigreg.num_slices": _choice("64", "256", "1024"),
    "sigreg.t_max": _choice("3", "5"),
}
_HEADS = _choice("512,512,64", "512,512,256", "2048,2048,128", "2048,2048")
SPACES = {
    "hjepa": Space("hjepa", (), _OPTIMIZER | _FLOORS | _MOVES | _FLOW),
    "mlp": Space("mlp", (), _OPTIMIZER | _FLOORS | _MOVES),
    "identity": Space("identity", (), _OPTIMIZER | _FLOORS),
    "sigreg": Space("sigreg", (), _OPTIMIZER | _SIGREG),
    "lejepa": Space(
        "sigreg",
        ("model.projector=mlp",),
        _OPTIMIZER | _SIGREG | {"model.projector_widths": _HEADS},
    ),
}

# Trials are compared after equal numbers of steps.
_EQUAL = ("train.epochs", "train.max_steps", "data.batch_size", "data.drop_last", "seed")
_PAIR = Items(Number(), 2, 2)
_RANGE = Fields({}, {"log": _PAIR, "uniform": _PAIR, "choice": Items(Anything(), 1)})
_SPACE = Fields({"ranges": Table(_RANGE)}, {"variant": Text(), "set": Items(Text())})


def read_spaces(path: pathlib.Path) -> dict[str, Space]:
    """Reads methods and their ranges from a YAML file, and adds them to those of `SPACES`.

    A method of the file replaces that of the same name:

        hjepa:
          variant: hjepa
          set: [evaluation.state_part=q]
          ranges:
            train.lr: {log: [1e-4, 1e-2]}
            loss.match: {choice: [q, qp]}
            loss.q_std_floor,loss.p_std_floor: {uniform: [0.1, 1.0]}

    Raises:
      UserError: if it cannot be read or has another form.
    """
    try:
        content = require(read_yaml(path), Table(_SPACE), path)
        return {**SPACES, **{name: _space(name, one) for name, one in content.items()}}
    except (OSError, ValueError) as error:
        raise UserError(f"--ranges={path} cannot be read: {error}") from error


def _space(method: str, content: Mapping[str, object]) -> Space:
    unknown = content.keys() - {"variant", "set", "ranges"}
    if unknown:
        raise ValueError(f"{method} has {min(unknown)!r}: a method has variant, set, and ranges.")
    ranges = content["ranges"]
    assert isinstance(ranges, Mapping)
    read = {field: _range(f"{method}: {field}", one) for field, one in ranges.items()}
    fixed = content.get("set", [])
    assert isinstance(fixed, Sequence)
    return Space(str(content.get("variant", "")), tuple(map(str, fixed)), read)


def _range(what: str, content: Mapping[str, Sequence[object]]) -> Range:
    if len(content) != 1 or not content.keys() <= {"log", "uniform", "choice"}:
        raise ValueError(f"{what} needs one of log, uniform, and choice.")
    ((kind, values),) = content.items()
    if kind == "choice":
        return Range("choice", choices=tuple(map(str, values)))
    low, high = (float(str(value)) for value in values)
    if not low < high or (kind == "log" and low <= 0):
        raise ValueError(f"{what} is from {low} to {high}: give two ascending numbers above 0.")
    return Range("log" if kind == "log" else "uniform", low, high)


def chosen_spaces(
    names: Sequence[str], known: Mapping[str, Space], pinned: Sequence[str]
) -> dict[str, Space]:
    """Returns the methods to tune, without the fields that are set for all of them.

    Args:
      names: methods of `known`.
      known: the methods.
      pinned: dotted names of fields that the command line sets.

    Raises:
      UserError: for an unknown method, or one with nothing left to tune.
    """
    found = {}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise UserError(
                f"--methods: {name!r} is none of {', '.join(known)}: did you mean {near!r}? "
                "--ranges adds others."
            )
        space = known[name]
        left = {
            fields: one
            for fields, one in space.ranges.items()
            if not set(fields_of(fields)) & set(pinned)
        }
        fixed = [name for fields in left for name in fields_of(fields) if name in _EQUAL]
        if fixed:
            raise UserError(
                f"{fixed[0]} of {name!r} cannot be tuned, as trials are compared after equal "
                "numbers of steps: take it out of --ranges."
            )
        if not left:
            raise UserError(f"nothing of {name!r} is left to tune: set fewer fields.")
        found[name] = space._replace(ranges=left)
    return found


def fields_of(key: str) -> list[str]:
    """Returns the fields of a key of `Space.ranges`."""
    return [name.strip() for name in key.split(",")]


def draw(space: Space, method: str, seed: int, trial: int, attempt: int) -> dict[str, str]:
    """Returns a value for each range, as text, by its key.

    Each depends only on the arguments and its own key: other ranges and numbers of trials leave it
    as it is.

    Args:
      space: what is tuned.
      method: its name.
      seed: of the search.
      trial: number of the trial.
      attempt: number of earlier draws of this trial that contradicted themselves.
    """
    found = {}
    for key, one in space.ranges.items():
        stream = zlib.crc32(f"{method} {key}".encode())
        share = np.random.default_rng([seed, trial, attempt, stream]).uniform()
        found[key] = _value(one, float(share))
    return found


def _value(of: Range, share: float) -> str:
    """Returns the value of a range at a share in [0, 1)."""
    if of.kind == "choice":
        return of.choices[int(share * len(of.choices))]
    if of.kind == "log":
        return f"{of.low * (of.high / of.low) ** share:.3g}"
    return f"{of.low + (of.high - of.low) * share:.3g}"


def overrides_of(drawn: Mapping[str, str]) -> Iterator[str]:
    """Yields drawn values as overrides 'section.field=value'."""
    for key, value in drawn.items():
        yield from (f"{name}={value}" for name in fields_of(key))

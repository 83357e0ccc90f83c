"""Converts torch state dicts of the published code to parameter trees, using only NumPy.

Every function takes a mapping from torch names to arrays, and returns trees of NumPy arrays plus
the sorted list of ignored entries. `models.foreign` has the layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hjepa_jax.models.foreign import Entry, batch_norm, convolution, linear, same

Tree = dict[str, Any]
State = Mapping[str, np.ndarray]


_LAYERS = {"layer2": 2, "layer3": 3, "layer4": 4}
# Index in the published `backbone` Sequential of conv1, bn1 and the first stage.
_BACKBONE_FIRST_STAGE = 4


def _stage(name: str, stage: int) -> Iterator[Entry]:
    for block in range(2):
        torch, ours = f"{name}.{block}", f"layer{stage}_block{block}"
        for i in (1, 2):
            yield from convolution(f"{torch}.conv{i}", ours, f"conv{i}")
            yield from batch_norm(f"{torch}.bn{i}", ours, f"norm{i}")
        if stage > 1 and block == 0:
            yield from convolution(f"{torch}.downsample.0", ours, "downsample_conv")
            yield from batch_norm(f"{torch}.downsample.1", ours, "downsample_norm")


def encoder_entries(head: str, token_layer: str) -> Iterator[Entry]:
    """Yields the entries of every tensor of `ResNet(head=head, token_layer=token_layer)`.

    Parameters and their gradients are converted alike.
    """
    if head == "global":
        yield from convolution("backbone.0", "stem_conv")
        yield from batch_norm("backbone.1", "stem_norm")
        for stage in range(1, 5):
            yield from _stage(f"backbone.{_BACKBONE_FIRST_STAGE + stage - 1}", stage)
        yield from linear("fc", "head")
        return
    yield from convolution("stem.0", "stem_conv")
    yield from batch_norm("stem.1", "stem_norm")
    for stage in range(1, _LAYERS[token_layer] + 1):
        yield from _stage(f"layer{stage}", stage)
    yield from convolution("token_proj.0", "token_projection")
    yield from batch_norm("token_proj.1", "token_norm")


# What torch puts before every name of a model for several devices, or of a compiled one.
_WRAPPERS = ("module.", "_orig_mod.")
_NAMES_SHOWN = 8


def unwrapped(state: State) -> State:
    """Removes the name prefixes of data-parallel and compiled models.

    Raises:
      ValueError: if some names have such a prefix and others do not.
    """
    for prefix in _WRAPPERS * 2:
        having = [name for name in state if name.startswith(prefix)]
        if not having:
            continue
        if len(having) < len(state):
            without = next(name for name in state if not name.startswith(prefix))
            raise ValueError(
                f"{len(having)} of {len(state)} names of a torch state begin with '{prefix}', as "
                f"of a data-parallel or compiled model; others, such as '{without}', do not."
            )
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def listed(names: Sequence[str]) -> str:
    """Returns a readable list of the first few names."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _translate(
    state: State, entries: list[Entry], may_ignore: Callable[[str], bool], what: str
) -> tuple[dict[str, Tree], list[str]]:
    """Places every entry; ValueError naming missing and unknown names, the first few of many."""
    state = unwrapped(state)
    wanted = {entry.name for entry in entries}
    others = sorted(set(state) - wanted)
    faults = {
        "missing": sorted(wanted - set(state)),
        "unknown": [name for name in others if not may_ignore(name)],
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"The torch state of the {what} does not fit this model; {told}.")
    trees: dict[str, Tree] = {"params": {}, "batch_stats": {}}
    for name, collection, path, layout in entries:
        node = trees[collection]
        for part in path[:-1]:
            node = node.setdefault(part, {})
        value = np.asarray(state[name])
        try:
            node[path[-1]] = np.asarray(layout(value), order="C")
        except ValueError as error:
            raise ValueError(
                f"The torch state of the {what} does not fit this model; {name} has the shape "
                f"{value.shape}."
            ) from error
    return trees, others


def encoder_from_torch(
    state: State, *, head: str = "tokens", token_layer: str = "layer3"
) -> tuple[Tree, Tree, list[str]]:
    """Translates the encoder for `ResNet(head=head, token_layer=token_layer)`.

    Args:
      state: 'tokens': stem.{0,1}, layerN.M.*, token_proj.{0,1}; 'global': backbone.{0,1,4..7}, fc.
      head: 'tokens' or 'global'.
      token_layer: the stage tapped by the head 'tokens'.

    Returns:
      (params, batch_stats, ignored): ignored lists the `num_batches_tracked` counters and the
      stages above the tapped one, which have no effect.

    Raises:
      ValueError: for an unknown head or token_layer; lists all missing and unknown entries.
    """
    if head not in ("tokens", "global") or (head == "tokens" and token_layer not in _LAYERS):
        raise ValueError(f"Unknown encoder head '{head}' or token_layer '{token_layer}'.")
    built = 4 if head == "global" else _LAYERS[token_layer]

    def may_ignore(name: str) -> bool:
        stage = re.match(r"layer([1-4])\.", name)
        above = head == "tokens" and stage is not None and int(stage[1]) > built
        return above or name.endswith(".num_batches_tracked")

    entries = list(encoder_entries(head, token_layer))
    trees, ignored = _translate(state, entries, may_ignore, "encoder")
    return trees["params"], trees["batch_stats"], ignored


def projector_entries() -> Iterator[Entry]:
    """Yields the entries of `Projector(kind='mlp')`."""
    yield from linear("net.0", "hidden")
    yield from batch_norm("net.1", "norm")
    yield from linear("net.3", "output")


def projector_from_torch(state: State) -> tuple[Tree, Tree, list[str]]:
    """Translates net.{0,1,3} of the MLP projector; an empty state is the identity projector.

    Returns:
      (params, batch_stats, ignored), as `encoder_from_torch`.

    Raises:
      ValueError: listing all missing and unknown entries.
    """
    if not state:
        return {}, {}, []
    trees, ignored = _translate(
        state,
        list(projector_entries()),
        lambda name: name.endswith(".num_batches_tracked"),
        "projector",
    )
    return trees["params"], trees["batch_stats"], ignored


def predictor_entries(names: Iterable[str]) -> Iterator[Entry]:
    """Yields the entries of `HamiltonianPredictor` that correspond to torch `names`."""
    names = list(names)
    found = [re.match(r"(H\.residual(?:_V)?)\.(\d+)\.(?:weight|bias)$", name) for name in names]
    prefixes = sorted({match[1] for match in found if match})
    indices = sorted({int(match[2]) for match in found if match})
    for layer, index in enumerate(indices):
        yield from linear(f"{prefixes[0]}.{index}", "potential", f"layer{layer}")
    if "raw_dt" in names:
        yield Entry("raw_dt", "params", ("raw_dt",), same)


def predictor_from_torch(state: State) -> tuple[Tree, list[str]]:
    """Translates the Hamiltonian predictor: H.residual_V.* (separable) or H.residual.* (learnable).

    Returns:
      (params, ignored): params is {'potential': {'layer0': {'kernel', 'bias'}, ...}}, empty for a
      quadratic Hamiltonian, with 'raw_dt' if dt is learned; ignored names the buffer `dt`.

    Raises:
      ValueError: listing all missing and unknown entries.
    """
    state = unwrapped(state)
    entries = list(predictor_entries(state))
    trees, ignored = _translate(state, entries, lambda name: name == "dt", "predictor")
    return trees["params"], ignored

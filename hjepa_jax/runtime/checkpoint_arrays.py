"""Reads the arrays of a checkpoint and compares them with the expected ones."""

from __future__ import annotations

import errno
import glob
import pathlib
from collections.abc import Iterator
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from hjepa_jax.errors import CheckpointError, first_line
from hjepa_jax.storage.checksums import read_patiently
from hjepa_jax.storage.files import is_unreadable

_Leaf = TypeVar("_Leaf")


class _Shaped(Protocol):
    """An array, or a description of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> npt.DTypeLike: ...


class LiteralPath(type(epath.Path())):
    """A path whose own name is literal in `glob`, which orbax uses to find files."""

    def glob(self, pattern: str) -> Iterator[LiteralPath]:
        """Yields the matches of a pattern below this folder."""
        for name in glob.glob(pattern, root_dir=self):
            yield self / name


def named(tree: PyTree[_Leaf]) -> dict[str, _Leaf]:
    """Returns the leaves of a tree by their path, such as 'params/encoder/stem/kernel'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def mismatches(
    found: PyTree[_Shaped],
    wanted: PyTree[_Shaped],
    place: str,
    *,
    ignore_unknown: bool = False,
    dtypes: bool = False,
) -> list[str]:
    """Compares the names and shapes of a checkpoint's arrays with those of a configuration.

    Args:
      found: tree of the checkpoint's arrays, or of anything with a shape.
      wanted: tree of this configuration's arrays or shapes.
      place: name of the checkpoint in messages.
      ignore_unknown: whether `found` may hold arrays that `wanted` lacks.
      dtypes: whether dtypes must agree too.

    Returns:
      One clause for each array that differs, in the order of `wanted`, then of `found`.
    """

    def described(leaf: _Shaped) -> str:
        return f"{tuple(leaf.shape)} {leaf.dtype}" if dtypes else f"{tuple(leaf.shape)}"

    there, here = named(found), named(wanted)
    clauses = []
    for name, leaf in here.items():
        if name not in there:
            clauses.append(f"{name} is missing in {place}, which another configuration wrote")
        elif (one := described(there[name])) != (other := described(leaf)):
            clauses.append(f"{name} has shape {one} in {place} but {other} in this configuration")
    if not ignore_unknown:
        clauses += [
            f"{name} is in {place} but is not part of this configuration's state"
            for name in there
            if name not in here
        ]
    return clauses


def summary(clauses: list[str]) -> str:
    """Returns the first mismatch and the number of others."""
    more = len(clauses) - 1
    return clauses[0] + (f" (and {more} more differ)" if more else "")


def check_contents(folder: pathlib.Path, abstract_state: PyTree[_Shaped]) -> None:
    """Compares the names and shapes of the saved arrays with the expected ones.

    Args:
      folder: a step's folder.
      abstract_state: arrays or shapes; a dict checks only its own fields.

    Raises:
      CheckpointError: naming the first array that is missing, unexpected or of another shape.
    """
    saved = ocp.PyTreeCheckpointHandler().metadata(LiteralPath(folder / "state"))
    clauses = mismatches(
        getattr(saved, "tree", saved),
        abstract_state,
        f"checkpoint {folder}",
        ignore_unknown=isinstance(abstract_state, dict),
    )
    if clauses:
        raise CheckpointError(
            f"{summary(clauses)}: use the configuration of that run, or another --workdir."
        )


def read_arrays(
    folder: pathlib.Path, abstract_state: PyTree[jax.ShapeDtypeStruct]
) -> PyTree[jax.Array]:
    """Reads the arrays of a checkpoint whose files were verified.

    Args:
      folder: a step's folder.
      abstract_state: ShapeDtypeStructs with shardings of the arrays to read.

    Returns:
      The arrays, in the structure of `abstract_state`.

    Raises:
      UnreadableError: if a device or network keeps failing.
      Exception: whatever orbax raises for inconsistent files.
    """
    arguments = ocp.args.PyTreeRestore(
        item=abstract_state,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
        # A field that was empty or did not exist yet has no arrays to read.
        partial_restore=True,
    )

    def read(path: pathlib.Path) -> PyTree[jax.Array]:
        try:
            return ocp.PyTreeCheckpointHandler().restore(LiteralPath(path), args=arguments)
        except Exception as error:
            if is_unreadable(error):
                raise OSError(errno.EIO, first_line(error)) from error
            raise

    return read_patiently(folder / "state", read)


def equal(one: npt.ArrayLike, two: npt.ArrayLike) -> bool:
    """Returns whether two arrays hold the same bytes, NaNs and signs of zero included."""
    return np.asarray(one).tobytes() == np.asarray(two).tobytes()


def smallest(state: PyTree[jax.Array]) -> PyTree[np.ndarray]:
    """Returns a copy of the smallest non-empty array of a state, nested in dicts by its path."""
    leaves = [
        (path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if np.size(leaf)
    ]
    path, leaf = min(leaves, key=lambda item: np.size(item[1]))
    tree: PyTree[np.ndarray] = np.array(jax.device_get(leaf))
    for name in reversed(jax.tree_util.keystr(path, simple=True, separator="/").split("/")):
        tree = {name: tree}
    return tree


def not_finite(state: PyTree[jax.Array]) -> list[str]:
    """Returns the names of a state's arrays that contain NaN or infinity.

    Each process checks its own shards. This runs on the host, where orbax copies the state anyway:
    in the train step the check would triple XLA:CPU's compile time.
    """
    return [
        name
        for name, leaf in named(state).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
        and not all(
            np.isfinite(np.asarray(shard.data)).all()
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
    ]

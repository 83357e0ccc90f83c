"""Exports features and labels of a split as .npz or Parquet files for other tools."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.features import Features, extract_features, select_state_part
from hjepa_jax.loading import LoadedRun
from hjepa_jax.storage.files import check_writable_file, local_path

FORMATS = (".npz", ".parquet")


def split_features(
    run: LoadedRun, split: str = "test", *, state_part: str = "qp", root: str | None = None
) -> tuple[Features, tuple[str, ...]]:
    """Encodes a split of the run's dataset.

    Args:
      run: result of `hjepa_jax.load`.
      split: 'train' or 'test', as config.data defines them.
      state_part: 'q', 'p' or 'qp'.
      root: current location of the data; None = the location during training.

    Returns:
      Features float32 [N, D] with labels int32 [N] (-1 = none), in the order of the data, and the
      class names.

    Raises:
      UserError: if the split or state part is unknown, or the data is missing.
    """
    if split not in ("train", "test"):
        raise UserError(f"split is {split!r}: it must be 'train' or 'test'.")
    settings = run.settings
    if root is not None:
        settings = settings.replace({"data.root": root})
    select_state_part(np.zeros((0, 2), np.float32), state_part, settings.model.split_qp)
    source = open_split(settings, split)
    with eval_batches(settings.data, source, run.encoder.batch_size) as batches:
        found = extract_features(run.encoder.encode_batch, batches)
    features = select_state_part(found.features, state_part, settings.model.split_qp)
    return found._replace(features=features), tuple(source.class_names)


def _save_npz(file: BinaryIO, found: Features, about: Mapping[str, object]) -> None:
    np.savez_compressed(
        file,
        features=found.features,
        labels=found.labels,
        class_names=np.array(about["class_names"], dtype=str),
        about=np.array(json.dumps(about)),
    )


def _save_parquet(file: BinaryIO, found: Features, about: Mapping[str, object]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Writing Parquet files needs pyarrow: pip install 'hjepa_jax[parquet]', or choose a "
            "file name that ends in .npz."
        ) from error
    rows = pyarrow.array(np.ascontiguousarray(found.features).ravel())
    columns = {
        "features": pyarrow.FixedSizeListArray.from_arrays(rows, found.features.shape[1]),
        "label": pyarrow.array(found.labels),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"hjepa_jax": json.dumps(about)})
    pyarrow.parquet.write_table(table, file)


def save_features(
    out: str | os.PathLike[str],
    found: Features,
    class_names: tuple[str, ...],
    about: Mapping[str, object] | None = None,
) -> pathlib.Path:
    """Writes features and labels atomically.

    .npz: arrays `features` float32 [N, D], `labels` int32 [N] (-1 = none), `class_names`, and
    `about` (JSON).
    .parquet: columns `features` (lists of D floats) and `label`; the schema's metadata
    `hjepa_jax` is the same JSON.

    Returns:
      The path written.

    Raises:
      UserError: for an unknown file extension or an unwritable folder.
    """
    path = local_path(out, "out")
    writers: dict[str, Callable[..., None]] = dict(zip(FORMATS, (_save_npz, _save_parquet)))
    if path.suffix not in writers:
        raise UserError(f"{path} must end in {' or '.join(FORMATS)}, which selects the format.")
    described = {**(about or {}), "class_names": list(class_names)}
    write_whole(path, lambda file: writers[path.suffix](file, found, described))
    return path


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically by calling `write` with it, opened for binary writing.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            temporary = pathlib.Path(folder) / path.name
            with temporary.open("wb") as file:
                write(file)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error


def export_features(
    run: LoadedRun,
    out: str | os.PathLike[str],
    split: str = "test",
    *,
    state_part: str = "qp",
    root: str | None = None,
) -> Features:
    """Encodes a split and writes it; see `split_features` and `save_features`."""
    path = local_path(out, "out")
    if path.suffix not in FORMATS:
        raise UserError(f"{out} must end in {' or '.join(FORMATS)}, which selects the format.")
    check_writable_file(path, "out")
    found, names = split_features(run, split, state_part=state_part, root=root)
    about = {
        "split": split,
        "state_part": state_part,
        "step": run.step,
        "config": json.loads(run.settings.to_json()),
    }
    save_features(path, found, names, about)
    return found

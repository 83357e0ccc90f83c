"""Exports features and labels of a split as .npz or Parquet files for other tools."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.derived import names_of
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.features import Batch, Features, extract_features, select_state_part
from hjepa_jax.loading import LoadedRun
from hjepa_jax.storage.files import check_writable_file, local_path, printable

FORMATS = (".npz", ".parquet")


def split_features(
    run: LoadedRun, split: str = "test", *, state_part: str = "qp", root: str | None = None
) -> tuple[Features, tuple[str, ...], tuple[str, ...] | None]:
    """Encodes a split of the run's dataset.

    Args:
      run: result of `hjepa_jax.load`.
      split: 'train' or 'test', as config.data defines them.
      state_part: 'q', 'p' or 'qp'.
      root: current location of the data; None = the location during training.

    Returns:
      Features float32 [N, D] with labels int32 [N] (-1 = none), in the order of the data; the class
      names; and the N file names relative to the data's folder, None if the data are no files.

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
    masks: list[np.ndarray] = []

    def watched(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            masks.append(batch["mask"])
            yield batch

    with eval_batches(settings.data, source, run.encoder.batch_size) as batches:
        found = extract_features(run.encoder.encode_batch, watched(batches))
    names = names_of(source)
    if names is not None:
        # Corrupt images, which have no features, are left out.
        names = tuple(names[row] for row in np.flatnonzero(np.concatenate(masks)))
    features = select_state_part(found.features, state_part, settings.model.split_qp)
    return found._replace(features=features), tuple(source.class_names), names


def _save_npz(
    file: BinaryIO, found: Features, names: Sequence[str] | None, about: Mapping[str, object]
) -> None:
    files: dict[str, Any] = {} if names is None else {"names": np.array(names, dtype=str)}
    np.savez_compressed(
        file,
        **files,
        features=found.features,
        labels=found.labels,
        class_names=np.array(about["class_names"], dtype=str),
        about=np.array(json.dumps(about)),
    )


def _save_parquet(
    file: BinaryIO, found: Features, names: Sequence[str] | None, about: Mapping[str, object]
) -> None:
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
    if names is not None:
        columns["name"] = pyarrow.array(list(names))
    table = pyarrow.table(columns).replace_schema_metadata({"hjepa_jax": json.dumps(about)})
    pyarrow.parquet.write_table(table, file)


def save_features(
    out: str | os.PathLike[str],
    found: Features,
    class_names: tuple[str, ...],
    about: Mapping[str, object] | None = None,
    names: Sequence[str] | None = None,
) -> pathlib.Path:
    """Writes features and labels atomically.

    .npz: arrays `features` float32 [N, D], `labels` int32 [N] (-1 = none), `class_names`, `about`
    (JSON), and, for files, `names` [N] relative to the data's folder.
    .parquet: columns `features` (lists of D floats), `label`, and, for files, `name`; the schema's
    metadata `hjepa_jax` is the same JSON.

    Returns:
      The path written.

    Raises:
      UserError: for an unknown file extension or an unwritable folder.
    """
    path = local_path(out, "out")
    writers: dict[str, Callable[..., None]] = dict(zip(FORMATS, (_save_npz, _save_parquet)))
    if path.suffix not in writers:
        raise UserError(f"{path} must end in {' or '.join(FORMATS)}, which selects the format.")
    shown = None if names is None else [printable(name) for name in names]
    described = {**(about or {}), "class_names": list(class_names)}
    write_whole(path, lambda file: writers[path.suffix](file, found, shown, described))
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
    found, classes, names = split_features(run, split, state_part=state_part, root=root)
    about = {
        "split": split,
        "state_part": state_part,
        "step": run.step,
        "config": json.loads(run.settings.to_json()),
    }
    save_features(path, found, classes, about, names)
    return found

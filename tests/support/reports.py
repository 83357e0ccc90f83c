"""A whole report in one call, for tests that need no checks between its parts."""

import pathlib

from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.tables import Metrics, painters, write_numbers, write_pictures


def write_report(
    out: pathlib.Path, metrics: Metrics, inputs: PictureInputs | None = None
) -> pathlib.Path:
    """Writes metrics.json and report.md, then the pictures; none without `inputs`.

    Returns:
      The folder written to.
    """
    folder = write_numbers(out, metrics)
    if inputs is not None:
        write_pictures(folder, metrics, painters(metrics, lambda: inputs))
    return folder

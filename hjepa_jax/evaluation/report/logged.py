"""An evaluation's scores, histograms, and pictures beside the curves of its run."""

from __future__ import annotations

import logging
import math
import pathlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.config import Settings
from hjepa_jax.errors import UserError, first_line
from hjepa_jax.evaluation import geometry
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import headline, headline_ks, in_sqrt_h
from hjepa_jax.runtime.writers.open import create_writer

_log = logging.getLogger(__name__)


def _folder(info: Metrics, one: Metrics) -> str:
    """Returns what the tags of an encoder's figures begin with; each kind of H has its own."""
    base = "eval/projector" if info.get("features") == "projector" else "eval"
    if one.get("coordinates", "raw") == "raw":
        return base
    return f"{base}/posthoc_{one['posthoc']['kind']}" if "posthoc" in one else f"{base}/sqrt_h"


def scores(metrics: Metrics) -> dict[str, float]:
    """Returns the trained encoder's figures by tag; those that exist.

    They are 'eval/knn20', 'eval/knn20_weighted' for weighted votes, and the like, and in the
    coordinates H^{1/2} z 'eval/sqrt_h/knn20', or 'eval/posthoc_chain/knn20' for an H that was not
    trained. Those of the projector's output are 'eval/projector/knn20' and the like.
    """
    k, found = metrics["headline_k"], dict[str, float]()
    for name in ("trained", in_sqrt_h("trained")):
        if (one := metrics["encoders"].get(name)) is None:
            continue
        ks = headline_ks(one, k)
        tags = {name: f"knn{used}" for name, used in ks.items()}
        tags["knn_weighted"] = f"knn{ks['knn_weighted']}_weighted"
        found |= {
            f"{_folder(metrics['info'], one)}/{tags.get(name, name)}": value
            for name, value in headline(one, k).items()
            if math.isfinite(value)
        }
    return found


def log_evaluation(
    workdir: pathlib.Path,
    saved: Settings,
    metrics: Metrics,
    states: npt.NDArray[np.float32],
    report: pathlib.Path,
    epoch_steps: int | None,
) -> None:
    """Adds an evaluation on the run's own data to its `metrics.jsonl` and other writers.

    A folder that cannot be written to, as of somebody else's run, is told and left as it is.

    Args:
      workdir: folder of the run.
      saved: the run's settings.
      metrics: content of metrics.json.
      states: of test images, [M, D], as evaluated.
      report: folder of the pictures.
      epoch_steps: steps of an epoch; None = unknown.
    """
    info = metrics["info"]
    if "trained_on" in info or "step" not in info:
        return
    try:
        writer = create_writer(workdir, epoch_steps=epoch_steps, writers=saved.log.writers)
    except (UserError, OSError) as error:
        _log.warning("the scores are not added to %s (%s)", workdir, first_line(error))
        return
    writer.write_scalars(info["step"], scores(metrics))
    folder = _folder(info, metrics["encoders"]["trained"])
    spread = {f"{folder}/{name}": values for name, values in geometry.spreads(states).items()}
    writer.write_histograms(info["step"], spread)
    for path in sorted(report.glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        writer.write_images(info["step"], {f"{folder}/{path.stem}": pixels})
    writer.close()

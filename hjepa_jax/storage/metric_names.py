"""The tags under which metrics are written: `loss/prediction` for what the code calls `pred`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Name in the code, in alarms, and in config.checkpoint.best_metric -> tag in files and displays.
TAGS = {
    "total": "loss/total",
    "pred": "loss/prediction",
    "energy": "loss/energy",
    "budget": "loss/budget",
    "var": "loss/variance",
    "var_q": "loss/variance_q",
    "var_p": "loss/variance_p",
    "logdet": "loss/logdet",
    "logdet_q": "loss/logdet_q",
    "logdet_p": "loss/logdet_p",
    "mean": "loss/mean",
    "sigreg": "loss/sigreg",
    "spec": "loss/spectrum",
    "grad_norm": "optim/gradient_norm",
    "lr": "optim/lr",
    "images_per_second": "speed/images_per_second",
    "data_wait_share": "data/wait_share",
    "corrupt_images": "data/corrupt_images",
    "skipped_batches": "data/skipped_batches",
    "V_var": "method/potential_variance",
    "lam_min": "method/eigenvalue_min",
    "lam_max": "method/eigenvalue_max",
    "lam_cond": "method/condition_number",
    "loglam_min": "method/log_eigenvalue_min",
    "loglam_max": "method/log_eigenvalue_max",
    "g0": "method/envelope_first",
    "g_last": "method/envelope_last",
}
for _part in ("q", "p", "z"):
    TAGS |= {
        f"{_part}_pr": f"state/{_part}_participation_ratio",
        f"{_part}_logdet": f"state/{_part}_logdet",
        f"{_part}_eigmax": f"state/{_part}_largest_eigenvalue_share",
        f"{_part}_std_min": f"state/{_part}_std_min",
        f"{_part}2": f"state/{_part}_mean_square",
        f"{_part}_mean2": f"state/{_part}_squared_mean",
    }
_NAMES = {tag: name for name, tag in TAGS.items()}


def tag_of(name: str, terms: Collection[str] = ()) -> str:
    """Returns the tag of a metric.

    Args:
      name: its name in the code; one with a slash is a tag already.
      terms: names of the method's loss terms, which go to `loss/`; other unknown names go to
        `method/`.
    """
    if name in TAGS or "/" in name:
        return TAGS.get(name, name)
    return f"{'loss' if name in terms else 'method'}/{name}"


def tagged(values: Mapping[str, float], terms: Collection[str] = ()) -> dict[str, float]:
    """Returns metrics by tag; see `tag_of`."""
    return {tag_of(name, terms): value for name, value in values.items()}


def name_of(tag: str) -> str:
    """Returns the name in the code of a metric given by tag or name."""
    if tag in _NAMES:
        return _NAMES[tag]
    group, slash, rest = tag.partition("/")
    return rest if slash and group in ("loss", "method") else tag

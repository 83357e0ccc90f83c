"""Target `reports`: comparisons and sweeps of evaluations with damaged files."""

from __future__ import annotations

import json
import logging
import pathlib
import random
from collections.abc import Callable

from hjepa_jax.evaluation.compare.page import page
from hjepa_jax.evaluation.compare.runs import group_runs, load_result
from hjepa_jax.tools import sweep
from hjepa_jax.tools.fuzz.damage import damage_bytes, damage_json, damage_place

_RUNS = ("a-seed0", "a-seed1", "b-seed0")


def _encoder(rng: random.Random) -> dict[str, object]:
    """Returns random metrics of an encoder."""

    def figures(count: int) -> list[float]:
        return sorted(rng.random() for _ in range(count))

    found = {
        "knn": {
            "k_values": [1, 5, 20],
            "top1": figures(3),
            "top1_interval": [[0.1, 0.9], None, [0.2, 0.8]],
            "top5": figures(3),
        },
        "linear_probe": {
            "top1": rng.random(),
            "top1_interval": rng.choice(([0.1, 0.9], None)),
            "top5": rng.choice((rng.random(), None)),
        },
    }
    return {
        "state_part": "q",
        **found,
        "state_parts": {"q": found, "p": found},
        "few_shot": {"5": {"top1": rng.random(), "top1_std": 0.1}},
        "coarse": {"superclass": found},
        "diagnostics": {
            "covariance_spectrum_topq": {
                "eigenvalues": figures(6)[::-1],
                "effective_rank": 7.0,
                "participation_ratio": 3.0,
                "rankme": 5.0,
                "mean_share": 0.5,
            },
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
    }


def _write_run(folder: pathlib.Path, name: str, rng: random.Random) -> None:
    """Writes a workdir and a report."""
    report, workdir = folder / "eval" / name, folder / "runs" / name
    for place in (report, workdir):
        place.mkdir(parents=True)
    config = {"seed": int(name[-1]), "train": {"lr": 0.1 if name[0] == "a" else 0.2}}
    (workdir / "config.json").write_text(json.dumps(config))
    metrics = {
        "schema_version": 1,
        "info": {
            "run": name,
            "step": 60,
            "data": "digits",
            "device": "cpu",
            "test_images": {"fingerprint": "0123"},
            "settings": {"evaluation.probe_epochs": 50, "evaluation.knn_k": [1, 5]},
        },
        "notes": ["With 36 test images ..."],
        "num_classes": 10,
        "headline_k": 20,
        "encoders": {kind: _encoder(rng) for kind in ("trained", "random")},
    }
    (report / "metrics.json").write_text(json.dumps(metrics))
    (report / "neighbors.png").write_bytes(b"\x89PNG")


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Damages a file of three runs; returns a description, and their sweep and comparison."""
    logging.getLogger("hjepa_jax").setLevel(logging.ERROR)
    for name in _RUNS:
        _write_run(folder, name, rng)
    name = rng.choice(_RUNS)
    file = rng.choice(("metrics.json",) * 6 + ("neighbors.png", "config.json"))
    path = folder / ("runs" if file == "config.json" else "eval") / name / file
    damage = rng.choice(("json", "json", "json", "bytes", "place"))
    if damage == "place" or file == "neighbors.png":
        what = damage_place(rng, path)
    else:
        change = damage_json if damage == "json" else damage_bytes
        what, content = change(rng, path.read_bytes())
        path.write_bytes(content)
    runs = [sweep.SweepRun(run, run[0], ()) for run in _RUNS]

    def attempt() -> None:
        json.dumps(sweep.results(runs, folder))
        sweep.markdown(sweep.results(runs, folder)).encode()
        results = [load_result(folder / "runs" / run, folder / "eval") for run in _RUNS]
        page(group_runs(results)).encode()

    return f"{name}/{file}: {what}", attempt

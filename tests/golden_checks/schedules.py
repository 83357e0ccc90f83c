"""What the recorded runs say of themselves, without their encoder (train_steps.npz and YAML).

Hyper-parameters, the schedules of a learned spectrum, and the losses of the first step's states.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from golden_checks import training
from golden_checks.common import assert_close, golden_file, subtree
from hjepa_jax.config.checks import typed
from hjepa_jax.interop.torch_names import predictor_from_torch
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.methods.hjepa_settings import logdet_of
from hjepa_jax.objectives.hamsigreg_updates import update_loss
from hjepa_jax.objectives.regularizers import projection_rank
from hjepa_jax.training.setup import build_method

# Names of the codes, and what a key of the YAML means that it lacks.
CODES = {
    "base_code": ("identity", "r2", "laplacian"),
    "gauge_code": ("logdet", "trace"),
    "binning_code": ("linear_radius", "linear_radius_sq", "quantile_radius"),
    "match_code": ("q", "qp"),
    "h_update_mode_code": ("min", "max"),
}
ABSENT = {"token_hw": -1, "split_qp": False, "encoder_stem": "cifar"}


def cases() -> list[Any]:
    missing = pytest.mark.skip(reason="train_steps.npz is not in the folder of golden vectors")
    return training.GROUPS or [pytest.param("none", marks=missing)]


def method_of(group: str) -> Any:
    per_epoch = int(training.FILE[f"{group}/hp/batches_per_epoch"])
    return build_method(typed(training.recorded_config(group)), per_epoch)


def published_value(published: Any, name: str) -> Any:
    """Returns the value of a key of the YAML by dotted name, as `hp` has it; None if it has none.

    The record has a few keys that the YAML leaves to the scripts.
    """
    *sections, leaf = name.split(".")
    for section in sections:
        published = published.get(section, {})
    if leaf == "stem_is_imagenet":
        return published.get("encoder_stem", ABSENT["encoder_stem"]) == "imagenet"
    if leaf.endswith("_code"):
        word = published.get(leaf.removesuffix("_code"))
        return CODES[leaf].index(word) if leaf in CODES and word is not None else None
    value = published.get(leaf, ABSENT.get(leaf))
    return -1 if leaf == "token_hw" and value is None else value


@pytest.mark.parametrize("group", cases())
def test_golden_schedules_hyper_parameters(group: str) -> None:
    """The record and the YAML, which the other checks read, are of the same run."""
    path = golden_file(f"train_steps_{group}.yaml")
    assert path is not None
    published = yaml.safe_load(path.read_text())
    names = [n for n in subtree(training.FILE, f"{group}/hp/") if n != "batches_per_epoch"]
    known = {name: published_value(published, name) for name in names}
    assert sum(value is not None for value in known.values()) > 10
    for name, value in known.items():
        if value is not None:
            assert training.FILE[f"{group}/hp/{name}"].item() == float(value), name


def distinct(pairs: np.ndarray) -> np.ndarray:
    """Drops what repeats its predecessor: the record holds every epoch's pair several times."""
    return np.array(
        [pair for i, pair in enumerate(pairs) if i == 0 or (pair != pairs[i - 1]).any()]
    )


@pytest.mark.parametrize("group", cases())
def test_golden_schedules_of_the_spectrum(group: str) -> None:
    method = method_of(group)
    if not isinstance(method, HamSIGReg):
        return
    root, steps = training.FILE, range(int(training.FILE[f"{group}/num_steps"]))
    found = np.stack([root[f"{group}/alpha"], root[f"{group}/beta"]], axis=1)
    pairs = np.array([[float(x) for x in method.schedule(jnp.int32(step))] for step in steps])
    expected, found = distinct(pairs.astype(np.float32)), distinct(found.astype(np.float32))
    # Two calls a step are recorded, so that the record ends in the middle of the run.
    assert len(found) > 1
    assert_close(expected[: len(found)], found, 1e-6, "alpha, beta")
    updates = [step + 1 for step in steps if method.is_due(jnp.int32(step))]
    assert updates == root[f"{group}/h_update_steps"].tolist()
    section = method.hamsigreg
    np.testing.assert_allclose(root[f"{group}/h/lr"], section.lr, rtol=1e-12)
    spectral = root[f"{group}/loss/spec"][root[f"{group}/h_update_steps"] - 1]
    update = update_loss(
        jnp.asarray(root[f"{group}/h/loss_reg"]),
        jnp.asarray(spectral),
        mode=section.update_mode,
        weight=method.sigreg.weight,
        spectral_weight=section.regularizer_weight,
        adversarial_multiplier=section.adversarial_multiplier,
    )
    np.testing.assert_allclose(update, root[f"{group}/h/loss_total"], rtol=1e-4)


@pytest.mark.parametrize("group", cases())
def test_golden_schedules_first_losses(group: str) -> None:
    """The loss of the recorded states of the first step, which are float32."""
    method, file = method_of(group), training.FILE
    views = file[f"{group}/x"].shape[1]
    z = file[f"{group}/z_step0"].astype(np.float64)
    for half in ("q", "p") if f"{group}/R_index" in file else ():
        rank = file[f"{group}/R_{half}"].shape[-1]
        settings = logdet_of(method.options, half)
        assert rank == projection_rank(settings.dim, z.shape[1] // 2, len(z)), half
    with jax.enable_x64(True):
        params, state = {}, {}
        predictor = subtree(file, f"{group}/init/predictor.")
        if predictor:
            params["predictor"] = predictor_from_torch(predictor)[0]
        learned = subtree(file, f"{group}/init/learnable_h.")
        if learned:
            state["params"] = learned
        params, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, state))
        drawn = training.recorded_randomness(group, 0, method)
        _, metrics = jax.jit(method.loss)(
            params, state, jnp.asarray(z).reshape(views, -1, z.shape[-1]), drawn, jnp.int32(0)
        )
    compared = 0
    for theirs, values in subtree(file, f"{group}/loss/").items():
        ours = {"reg": "sigreg"}.get(theirs, theirs)
        if ours in metrics:
            # The states are rounded to float32, and the log-determinant amplifies that.
            np.testing.assert_allclose(
                metrics[ours], values[0], rtol=1e-3, atol=1e-6, err_msg=theirs
            )
            compared += 1
    assert compared >= 3

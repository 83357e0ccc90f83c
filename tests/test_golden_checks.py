"""The golden checks take every hyper-parameter from the files: others pass, wrong ones fail."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import artificial_golden
import numpy as np
import pytest
import yaml

from golden_checks import common, dynamics, objectives, objectives_ham, schedules, training
from hjepa_jax.objectives.hamsigreg_spectrum import bin_indices

WEIGHTS = {"curvature_weight": 0.3, "loglambda_l2_weight": 0.7, "cond_max": 1.2, "cond_weight": 0.1}
FREE = {"eps_ridge": 0.07, "log_lambda_clip": 0.4, **WEIGHTS}


def below(prefix: str, group: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": value for name, value in group.items()}


def altered(group: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns a copy in which a number is larger by a quarter and 0.01, or a code another one."""
    value = group[name]
    return {**group, name: value * 1.25 + 0.01 if value.dtype.kind == "f" else 1 - value}


@pytest.mark.parametrize("gauge", [0, 1])
def test_an_experimental_envelope_with_other_weights_and_an_active_clip(
    gauge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = bin_indices(7, 4, 4, "linear_radius").astype(np.int64)
    group = artificial_golden.experimental(index, 3 + gauge, gauge=gauge, **FREE)
    assert np.isclose(group["health/loglam_max"], 0.4)
    check = objectives_ham.test_golden_objectives_ham_experimental
    monkeypatch.setattr(objectives_ham, "HAM", below("other", group))
    check("other")
    if gauge:
        return
    for name in (*FREE, "gauge"):
        monkeypatch.setattr(objectives_ham, "HAM", below("other", altered(group, name)))
        with pytest.raises(AssertionError):
            check("other")


def use(
    monkeypatch: pytest.MonkeyPatch,
    folder: pathlib.Path,
    group: Mapping[str, np.ndarray],
    published: Mapping[str, Any],
) -> None:
    """Makes a group 'other' what the checks of training find."""
    path = folder / "train_steps_other.yaml"
    path.write_text(yaml.safe_dump(published))
    monkeypatch.setattr(training, "FILE", below("other", group))
    monkeypatch.setenv("HJEPA_GOLDEN_DIR", str(folder))
    assert common.golden_file(path.name) == path


def with_value(published: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Returns a copy of a YAML with another value of a dotted key."""
    result = copy.deepcopy(dict(published))
    *sections, leaf = name.split(".")
    inner: Any = result
    for section in sections:
        inner = inner[section]
    assert inner[leaf] != value
    inner[leaf] = value
    return result


HYPER = schedules.test_golden_schedules_hyper_parameters
SPECTRUM = schedules.test_golden_schedules_of_the_spectrum
LOSSES = schedules.test_golden_schedules_first_losses
OPTIONS = "regularizer.ham_kwargs"


def test_a_run_whose_spectrum_starts_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """And the same with one wrong key after another."""
    index = bin_indices(artificial_golden.SIDE, artificial_golden.SIDE, 5, "linear_radius")
    group, published = artificial_golden.ham(index), artificial_golden.HAM
    use(monkeypatch, tmp_path, group, published)
    for check in (HYPER, SPECTRUM, LOSSES):
        check("other")
    for check, name, value in (
        (SPECTRUM, "train.h_learnable_start_epoch", 0),
        (SPECTRUM, "train.h_learnable_ramp_epochs", 1),
        (SPECTRUM, "train.h_identity_epochs", 0),
        (SPECTRUM, "train.h_update_interval", 2),
        (SPECTRUM, "train.h_adv_mult", 2.0),
        (SPECTRUM, "train.reg_lr", 0.03),
        (SPECTRUM, "regularizer.spectral_weight", 0.4),
        (LOSSES, f"{OPTIONS}.delta_clip", 0.0),
        (LOSSES, f"{OPTIONS}.curvature_weight", 0.3),
        (LOSSES, f"{OPTIONS}.span_max", 1.0),
        (LOSSES, "regularizer.n_points", 9),
        (LOSSES, "train.lambda_reg", 0.08),
        (HYPER, f"{OPTIONS}.base_ridge", 1.0),
    ):
        use(monkeypatch, tmp_path, group, with_value(published, name, value))
        with pytest.raises(AssertionError):
            check("other")
    for name in ("hp/train.h_learnable_start_epoch", f"hp/{OPTIONS}.gauge_code"):
        use(monkeypatch, tmp_path, altered(group, name), published)
        with pytest.raises(AssertionError):
            HYPER("other")


def test_a_run_whose_halves_have_log_det_settings_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """And the same with one wrong key after another."""
    group, published = artificial_golden.hjepa(), artificial_golden.HJEPA
    use(monkeypatch, tmp_path, group, published)
    for check in (HYPER, LOSSES):
        check("other")
    indices = [
        training.projection_indices("other", half, schedules.method_of("other")) for half in "qp"
    ]
    assert indices == [[0, 0, 1, 1], [0, 0, 0, 1]]
    for name, value in (
        ("regularizer.p_logdet_eps", 0.01),
        ("regularizer.p_logdet_proj_dim", 4),
        ("regularizer.q_logdet_refresh_interval", 3),
        ("regularizer.q_eigmax_frac_ceiling", 0.3),
        ("regularizer.p_std_floor", 0.9),
        ("loss.p_weight", 0.5),
        ("train.lambda_mean", 0.6),
        ("hjepa.dt", 0.25),
    ):
        use(monkeypatch, tmp_path, group, with_value(published, name, value))
        with pytest.raises(AssertionError):
            LOSSES("other")


@pytest.mark.parametrize(
    ("module", "file", "case", "names"),
    [
        (objectives_ham, "HAM", "learnable_x_kitchen", ("cfg/delta_clip", "cfg/cond_weight")),
        (objectives_ham, "HAM", "learnable_x_clipped", ("cfg/log_lambda_clip", "gauge", "beta")),
        (objectives_ham, "HAM", "chain1d_even_logdet", ("kappa", "beta", "normalize_trace")),
        (objectives, "LOSSES", "hcl", ("residual_scale",)),
        (objectives, "LOSSES", "logdet/all_active", ("eps", "pr_weight", "logdet_floor")),
        (objectives, "SIGREG", "wrapper", ("t_min",)),
    ],
)
def test_an_altered_hyper_parameter_fails(
    module: Any, file: str, case: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(module, file)
    if not original:
        pytest.skip("golden vectors are not in this folder")
    group = next(n for n in common.groups(original, f"{case}/")) if case == "wrapper" else ""
    prefix = f"{case}/{group}/" if group else f"{case}/"
    checks = {
        "learnable": lambda: objectives_ham.test_golden_objectives_ham_learnable(case),
        "chain1d": lambda: objectives_ham.test_golden_objectives_ham_fixed_spectrum(case),
        "hcl": lambda: objectives.test_golden_objectives_prediction("qp_e1_bi1_det1"),
        "logdet/all": lambda: objectives.test_golden_objectives_logdet_floor("all_active"),
        "wrapper": lambda: objectives.test_golden_objectives_two_sided(group),
    }
    (check,) = (run for start, run in checks.items() if case.startswith(start))
    for name in names:
        entries = altered(common.subtree(original, prefix), name)
        others = {key: original[key] for key in original if not key.startswith(prefix)}
        monkeypatch.setattr(module, file, {**others, **{prefix + k: v for k, v in entries.items()}})
        with pytest.raises(AssertionError):
            check()


def test_a_case_without_codes_is_what_its_name_says() -> None:
    case = "bf16_separable_symplectic_silu_depth2"
    assert dynamics._named(case, dynamics.ACTIVATIONS) == "silu"
    assert dynamics._named(case, dynamics.HAMILTONIANS) == "separable"

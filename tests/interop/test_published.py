"""Configurations of the published scripts: every key is followed, without effect, or refused."""

from __future__ import annotations

import copy
import math
import pathlib
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_jax.config import base_config, resolve, rows
from hjepa_jax.config.files import flatten
from hjepa_jax.errors import ConfigError
from hjepa_jax.interop.published import page
from hjepa_jax.interop.published.keys import CHECKED, FIXED, MAPPED, NO_EFFECT
from hjepa_jax.interop.published.scripts import SECTIONS
from hjepa_jax.interop.published.translate import Translation, translate

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENCODER = {"encoder_mode": "tokens", "token_layer": "layer3", "token_d_f": 32}
TRAIN = {"epochs": 20, "lr": "1e-3", "weight_decay": 0.01, "warmup_epochs": 2, "min_lr_ratio": 0.1}
HJEPA: dict[str, Any] = {
    "seed": 3,
    "data": {"root": "./data", "batch_size": 64, "drop_last": True, "num_local_views": 0},
    "model": {**ENCODER, "encoder_stem": "cifar", "split_qp": True, "embed_dim": 7},
    "hjepa": {"dt": 0.1, "steps": 3, "residual_scale_warmup_epochs": 5, "base_coeff": 0.3},
    "loss": {"match": "q", "p_weight": 0.7},
    "regularizer": {
        "q_logdet_floor": -1.5,
        "p_logdet_floor": -1.25,
        "q_std_floor": 0.3,
        "q_logdet_eps": 1e-3,
        "p_logdet_eps": 1e-3,
        "q_pr_norm_floor": 0.1,
        "ddp_sync": True,
    },
    "train": {**TRAIN, "lambda_var": 0.25, "grad_clip": 2.0, "h_lr": 3.0, "precision": "fp32"},
}
IMAGENET = {
    **HJEPA,
    "model": {**ENCODER, "encoder_stem": "imagenet", "token_hw": 8, "split_qp": True},
    "loss": {"match": "qp", "p_weight": 0.5, "bidirectional": True},
}
SIGREG: dict[str, Any] = {
    "data": {"batch_size": 64, "drop_last": False},
    "model": ENCODER,
    "train": {**TRAIN, "lambda_reg": 0.05, "grad_clip": 2.0, "lambda_var": 0.25},
    "regularizer": {
        "type": "sigreg",
        "num_slices": 16,
        "weight_type": "uniform",
        "refresh_interval": 4,
    },
}
GRID = {"h": 8, "w": 8, "d_f": 32}
LEARNABLE: dict[str, Any] = {
    **SIGREG,
    "train": {**TRAIN, "reg_lr": 0.01, "h_identity_epochs": 1, "h_update_mode": "min"},
    "regularizer": {
        "type": "ham_sigreg",
        "ham_kind": "learnable",
        "spectral_weight": 0.3,
        "ham_kwargs": {**GRID, "bins": 6, "base": "r2"},
    },
}


def changed(published: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Returns a copy with keys set by their dotted name, '.' written as '__'; ... removes one."""
    result = copy.deepcopy(published)
    for path, value in values.items():
        *sections, name = path.split("__")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is ...:
            del inner[name]
        else:
            inner[name] = value
    return result


def differences(found: Translation) -> dict[str, object]:
    """Returns the values of the fields that are not those of the base configuration."""
    base = dict(flatten(base_config()))
    return {name: value for name, value in flatten(found.config) if value != base[name]}


CIFAR_DATA = {"data.name": "cifar100", "data.download": True, "data.batch_size": 64}
SCHEDULE = {
    "train.epochs": 20,
    "train.lr": 1e-3,
    "train.weight_decay": 0.01,
    "train.warmup_epochs": 2.0,
    "train.min_lr_ratio": 0.1,
}
FLOORS = {
    "loss.p_logdet_floor": -1.25,
    "loss.q_std_floor": 0.3,
    "loss.p_std_floor": 0.3,
    "loss.logdet_eps": 1e-3,
    "loss.q_pr_floor": 0.1,
    "loss.p_pr_floor": None,
    "loss.q_eigmax_ceiling": None,
    "loss.p_eigmax_ceiling": None,
    "loss.var_weight": 0.25,
}
FLOW = {"dynamics.dt": float(np.float32(0.1)), "dynamics.steps": 3, "dynamics.base_coeff": 0.3}
COMMON = {**SCHEDULE, "evaluation.reference_evaluation": True}
PLAIN = {"model.split_qp": False, "evaluation.state_part": "qp", "train.grad_clip": None}


def test_an_hjepa_configuration_of_the_cifar_script() -> None:
    found = translate(HJEPA)
    assert differences(found) == {
        **{"seed": 3, "model.compute_dtype": "float32", "train.grad_clip": 2.0},
        **{"loss.p_weight": 0.7, "dynamics.residual_scale_warmup_epochs": 5.0},
        **{"parity.epochwise_residual_warmup": True},
        **CIFAR_DATA,
        **COMMON,
        **FLOORS,
        **FLOW,
    }
    assert set(found.without_effect) == {"data.root", "model.embed_dim", "train.h_lr"}
    resolve(found.config)


def test_an_hjepa_configuration_of_the_imagenet_script() -> None:
    found = translate(IMAGENET)
    assert differences(found) == {
        **{"seed": 3, "model.compute_dtype": "float32", "train.grad_clip": 2.0},
        **{"data.name": "folder", "data.batch_size": 64, "data.image_size": 224},
        **{"data.global_scale": (0.4, 1.0), "data.test_split": "val", "data.eval_resize": 256},
        **{"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)},
        **{"data.augment.blur_kernel": 23, "resnet.stem": "imagenet", "resnet.token_grid": 8},
        **{"loss.match": "qp", "train.predictor_lr": 3.0},
        **{"dynamics.residual_scale_warmup_epochs": 0.0},
        **dict.fromkeys(
            [
                "parity.forward_directions_only",
                "parity.q_variance_floor_only",
                "parity.unclipped_predictor",
                "parity.shared_lr_floor",
            ],
            True,
        ),
        **COMMON,
        **FLOORS,
        **FLOW,
    }
    idle = {"data.root", "loss.p_weight", "hjepa.residual_scale_warmup_epochs"}
    assert set(found.without_effect) == idle
    assert translate(changed(IMAGENET, train__h_lr=...)).config.train.predictor_lr == 1e-4


def test_a_sigreg_configuration_ignores_what_the_script_does() -> None:
    found = translate(SIGREG)
    expected = {"method": "lejepa", "sigreg.weight": 0.05, "sigreg.num_slices": 16}
    expected |= {
        "data.drop_last": False,
        "sigreg.weight_type": "uniform",
        "sigreg.refresh_interval": 4,
    }
    assert differences(found) == {**expected, **CIFAR_DATA, **COMMON, **PLAIN}
    assert set(found.without_effect) == {"train.grad_clip", "train.lambda_var"}


def test_a_learnable_spectrum() -> None:
    found = translate(LEARNABLE)
    assert differences(found) == {
        **{"method": "hamsigreg", "hamsigreg.kind": "learnable", "hamsigreg.gauge": "logdet"},
        **{"hamsigreg.init_loglambda_span": 0.0, "hamsigreg.bins": 6, "hamsigreg.base": "r2"},
        **{"hamsigreg.regularizer_weight": 0.3, "hamsigreg.lr": 0.01, "data.drop_last": False},
        **{"hamsigreg.identity_epochs": 1.0, "hamsigreg.update_mode": "min"},
        **{"hamsigreg.reference_layout": True},
        **CIFAR_DATA,
        **COMMON,
        **PLAIN,
    }
    assert found.without_effect == ()
    resolve(found.config)


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        ({"type": "ham_sigreg"}, {"method": "hamsigreg", "hamsigreg.kind": "chain"}),
        (
            {"type": "ham_sigreg", "ham_kwargs": {**GRID, "kappa": 2, "normalize_trace": False}},
            {
                **{"method": "hamsigreg", "hamsigreg.kind": "chain_grid", "hamsigreg.kappa": 2.0},
                **{"hamsigreg.gauge": "logdet", "hamsigreg.reference_layout": True},
            },
        ),
        ({"type": "ham_sigreg", "ham_kind": "diag"}, {"method": "hamsigreg"}),
        ({"type": "ham_sigreg", "ham_kind": "identity"}, {"method": "lejepa"}),
        ({"type": "none", "num_slices": 9}, {"method": "lejepa", "sigreg.weight": 0.0}),
    ],
    ids=["chain", "chain_grid", "diag", "identity", "none"],
)
def test_kinds_of_the_regularizer(regularizer: dict[str, Any], expected: dict[str, object]) -> None:
    found = differences(translate({"model": ENCODER, "train": TRAIN, "regularizer": regularizer}))
    data = {"data.name": "cifar100", "data.download": True}
    assert found == {**expected, **data, **COMMON, **PLAIN}


def test_a_warm_up_may_be_longer_than_the_training() -> None:
    """As in the published script; ours refuses it."""
    config = translate(changed(HJEPA, train__epochs=4)).config
    assert resolve(config).value("dynamics.residual_scale_warmup_epochs") == 5
    config.parity.epochwise_residual_warmup = False
    with pytest.raises(ConfigError, match="residual_scale_warmup_epochs=5 would not finish"):
        resolve(config)


def test_the_schedules_of_a_learnable_spectrum() -> None:
    keys: dict[str, object] = {"h_learnable_start_epoch": 2, "h_learnable_ramp_epochs": 2}
    keys |= {"freeze_h_epochs": 3, "h_grad_scale": 0.5, "h_alpha_start_epoch": 4}
    found = translate(
        changed(LEARNABLE, **{f"train__{name}": value for name, value in keys.items()})
    )
    added = differences(found).items() - differences(translate(LEARNABLE)).items()
    assert dict(added) == {
        "hamsigreg.learnable_start_epoch": 3,
        "hamsigreg.learnable_ramp_epochs": 2.0,
        "hamsigreg.frozen_epochs": 3.0,
        "hamsigreg.grad_scale": 0.5,
        "hamsigreg.alpha_start_epoch": 5,
    }
    assert found.without_effect == ()
    resolve(found.config)
    from_zero = translate(changed(LEARNABLE, train__h_learnable_start_epoch=0)).config
    assert from_zero.hamsigreg.learnable_start_epoch == 1
    chain = {"type": "ham_sigreg", "ham_kind": "chain", "ham_kwargs": {"beta": 0.3}}
    assert translate({**SIGREG, "regularizer": chain}).config.hamsigreg.beta == 0.3
    idle = translate(changed(SIGREG, train__freeze_h_epochs=3)).without_effect
    assert "train.freeze_h_epochs" in idle


def test_each_half_has_log_det_settings_of_its_own() -> None:
    keys = {"q_logdet_proj_dim": 64, "p_logdet_proj_dim": 32, "q_logdet_refresh_interval": 16}
    keys |= {"p_logdet_refresh_interval": 4}
    own = {"p_logdet_eps": 1e-4, **keys}
    found = translate(changed(HJEPA, **{f"regularizer__{name}": own[name] for name in own}))
    added = dict(differences(found).items() - differences(translate(HJEPA)).items())
    expected = {"logdet_dim": 64, "p_logdet_dim": 32, "p_logdet_refresh_interval": 4}
    expected |= {"p_logdet_eps": 1e-4}
    assert added == {f"loss.{name}": value for name, value in expected.items()}


def test_the_two_sided_statistic_and_the_warmup_of_the_weight() -> None:
    two_sided = {"regularizer__t_min": -4, "regularizer__num_t": 20, "regularizer__n_points": 5}
    found = translate(changed(SIGREG, **two_sided, train__lambda_reg_warmup_epochs=3))
    fields = found.config.sigreg
    assert (fields.t_min, fields.t_max, fields.num_t, fields.n_points) == (-4.0, 5.0, 20, 9)
    assert (fields.weight_warmup_epochs, fields.epochwise_weight_warmup) == (3.0, True)
    # The published wrapper is always weighted by the Gaussian.
    assert {"regularizer.n_points", "regularizer.weight_type"} <= set(found.without_effect)
    resolve(found.config)


@pytest.mark.parametrize(
    ("change", "constant"),
    [
        ({}, False),
        ({"train__warmup_epochs": 20}, True),
        ({"train__warmup_epochs": 0}, False),
        ({"train__warmup_epochs": 0, "train__min_lr_ratio": 0}, True),
        ({"train__min_lr_ratio": 0}, False),
    ],
)
def test_the_rate_is_constant_where_the_scripts_have_no_schedule(
    change: dict[str, object], constant: bool
) -> None:
    for published in (HJEPA, IMAGENET):
        config = translate(changed(published, **change)).config
        assert constant == ((config.train.warmup_epochs, config.train.min_lr_ratio) == (0, 1))
        assert config.parity.shared_lr_floor == (published is IMAGENET and not constant)


def test_forms_of_the_energy_that_ignore_fields() -> None:
    learnable = translate(changed(HJEPA, hjepa__hamiltonian="learnable"))
    assert learnable.config.dynamics.base_coeff == 1.0
    assert learnable.config.parity.reference_leapfrog
    assert "hjepa.base_coeff" in learnable.without_effect
    quadratic = translate(changed(HJEPA, hjepa__hamiltonian="quadratic", hjepa__depth=5))
    resolve(quadratic.config)
    idle = {"hjepa.base_coeff", "hjepa.depth", "hjepa.residual_scale_warmup_epochs"}
    assert idle <= set(quadratic.without_effect)


@pytest.mark.parametrize(
    ("published", "change", "words"),
    [
        (HJEPA, {"extra": 3}, r"extra is 3, but no such key"),
        (HJEPA, {"evaluation": {"k": 3}}, r"evaluation is \{'k': 3\}, but no such key"),
        *((HJEPA, {f"{name}__lrr": 7}, rf"{name}.lrr is 7, but no such") for name in SECTIONS[:4]),
        (HJEPA, {"train__weigth_decay": 7}, "did you mean train.weight_decay"),
        (LEARNABLE, {"regularizer__ham_kwargs__alpha": 1}, "ham_kwargs.alpha is 1, but no such"),
        (LEARNABLE, {"regularizer__ham_kwargs__kappa": 1}, "kappa does not belong to .*learnable"),
        (LEARNABLE, {"regularizer__ham_kwargs__h": 4}, "h is 4, but the encoder's tokens have 8"),
        (LEARNABLE, {"regularizer__ham_kwargs__d_f": "x"}, "d_f is 'x': it must be a whole"),
        (LEARNABLE, {"regularizer__ham_kwargs__w": ...}, r"has no regularizer.ham_kwargs.w"),
        (LEARNABLE, {"regularizer__ham_kind": "chain"}, "h_identity_epochs is 1.0, but whether"),
        (LEARNABLE, {"regularizer__ham_kind": "kind"}, "ham_kind is 'kind': it can be 'identity'"),
        (SIGREG, {"regularizer__t_min": -1}, "has no regularizer.num_t: add it"),
        (SIGREG, {"regularizer__type": ...}, "has no regularizer.type: add it"),
        (SIGREG, {"regularizer__type": "vicreg"}, "type is 'vicreg': it can be 'sigreg', "),
        (HJEPA, {"data__drop_last": "no"}, "drop_last is 'no': it must be True or False"),
        (HJEPA, {"regularizer__ddp_sync": 1}, "ddp_sync is 1, which cannot be followed"),
        (LEARNABLE, {"train__h_alpha_start_epoch": 1.5}, "h_alpha_start_epoch is 1.5: .*whole"),
        (LEARNABLE, {"regularizer__ham_kwargs__beta": 0.5}, "beta does not belong to .*learnable"),
        (HJEPA, {"train__precision": "fp16"}, "precision is 'fp16': it can be 'fp32', 'bf16'"),
        (HJEPA, {"train__epochs": True}, "epochs is True: it must be a whole number"),
        (HJEPA, {"data__batch_size": "auto"}, "batch_size is 'auto': it must be a whole number"),
        (HJEPA, {"train__lr": np.ones(3)}, "lr is array.*: it must be a number"),
        (HJEPA, {"regularizer__p_logdet_eps": 7}, "p_logdet_eps is 7: it must lie between .* 1"),
        (HJEPA, {"hjepa": None}, "hjepa is None: it must be a section"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    published: dict[str, Any], change: dict[str, object], words: str
) -> None:
    translate(published)
    with pytest.raises(ConfigError, match=words) as caught:
        translate(changed(published, **change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_the_tables_name_every_key_once_and_fields_that_exist() -> None:
    tables = [MAPPED, FIXED, CHECKED, NO_EFFECT]
    keys = [key for table in tables for key in table]
    assert len(keys) == len(set(keys))
    assert {entry.field for entry in MAPPED.values()} <= set(rows())
    assert {key.rpartition(".")[0] for key in keys} == {"", *SECTIONS}


def test_the_page_has_the_table() -> None:
    text = (ROOT / "docs/parity.md").read_text()
    found = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    assert found == page.table().strip(), "replace it by page.table()"
    for key in (*MAPPED, *FIXED, *CHECKED, *NO_EFFECT):
        section, _, name = key.rpartition(".")
        assert f"`{section}` | `{name}` | " in found or not section, key


ODD = (None, True, False, "x", "1e-3", "auto", "", [], [0.2, 1.0], {}, {"a": 1}, b"x", 1j)
ODD += (-1, 0, 1, 3, 2.5, math.nan, math.inf, 1e400, 10**30, "nan", [None], object())
# Keys whose field is not simply the value, or which decide about the script.
SPECIAL = {"train.warmup_epochs", "train.min_lr_ratio", "regularizer.type", "regularizer.ham_kind"}
SPECIAL |= {"hjepa.dt", "train.grad_clip", "train.precision", "regularizer.ham_kwargs.gauge"}
SPECIAL |= {"regularizer.ham_kwargs.normalize_trace"}
SPECIAL |= {f"regularizer.p_logdet_{name}" for name in ("proj_dim", "eps", "refresh_interval")}
SPECIAL |= {"train.h_learnable_start_epoch", "train.h_alpha_start_epoch"}


def valid(rng: random.Random, key: str) -> object:
    """Returns a value that a key may have, if its branch is right."""
    if key in FIXED:
        return FIXED[key][0]
    if key not in MAPPED:
        return rng.choice([8, 32, "text"])
    row = rows()[MAPPED[key].field]
    if row.choices:
        return rng.choice(["none", "sigreg", "chain", "fp32", *row.choices])
    if row.kind in (int, float) and row.length is None and row.default is not None:
        return row.default * rng.choice([1, 2])
    return rng.choice([True, False]) if row.kind is bool else row.default


def draw(rng: random.Random) -> dict[str, Any]:
    """Returns a configuration with some keys removed, and others set, most of them validly."""
    published = copy.deepcopy(rng.choice([HJEPA, IMAGENET, SIGREG, LEARNABLE]))
    known = [*MAPPED, *MAPPED, *FIXED, *CHECKED, *NO_EFFECT, "train.momentum", "name"]
    for key in rng.sample(known, rng.randint(1, 6)):
        *sections, name = key.split(".")
        inner = published
        for section in sections:
            # HJEPA is what a section `hjepa` makes of a configuration.
            inner = inner.setdefault(section, {})
        if rng.random() < 0.3:
            inner.pop(name, None)
        else:
            inner[name] = rng.choice(ODD) if rng.random() < 0.2 else valid(rng, key)
    return published


def leaves(published: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Returns the values by dotted key."""
    found: dict[str, object] = {}
    for name, value in published.items():
        path = f"{prefix}{name}"
        found |= leaves(value, f"{path}.") if path in SECTIONS else {path: value}
    return found


def without(published: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns a copy without some keys, which keeps all sections."""
    result = copy.deepcopy(published)
    for key in keys:
        *sections, name = key.split(".")
        inner = result
        for section in sections:
            inner = inner[section]
        del inner[name]
    return result


def check_followed_exactly(published: dict[str, Any]) -> bool:
    """Returns whether a configuration is accepted; then every key is where it belongs."""
    given_keys = leaves(published)
    try:
        found = translate(published)
    except ConfigError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert sentence.endswith((".", "?")), sentence
        named = [*given_keys, "regularizer.ham_kwargs.", "has no regularizer."]
        assert any(key in sentence for key in named), sentence
        return False
    assert sorted((*found.mapped, *found.without_effect)) == sorted(given_keys)
    config = dict(flatten(found.config))
    for key in set(found.mapped) & set(MAPPED) - SPECIAL:
        value = given_keys[key]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and rows()[MAPPED[key].field].kind is float:
            value = float(value)
        elif (key, value) == ("train.h_lr", None):
            value = 0.1 * config["train.lr"]
        assert config[MAPPED[key].field] == value, key
    if found.without_effect:
        assert translate(without(published, found.without_effect)).config == found.config
    return True


def test_no_rate_of_the_hamiltonian_is_a_tenth_of_the_main_rate() -> None:
    missing = without(IMAGENET, ("train.h_lr",))
    for published in (missing, {**missing, "train": {**missing["train"], "h_lr": None}}):
        assert translate(published).config.train.predictor_lr == pytest.approx(1e-4)
        assert check_followed_exactly(published)


def test_any_subset_of_keys_and_values_is_followed_exactly_or_refused_by_name() -> None:
    accepted: list[bool] = []

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.randoms(use_true_random=False))
    def check(rng: random.Random) -> None:
        accepted.append(check_followed_exactly(draw(rng)))

    check()
    assert sum(accepted) > 25
    assert len(accepted) - sum(accepted) > 25

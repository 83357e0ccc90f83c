"""Configuration: validation sentences, JSON round trip, and that every field is used."""

import ast
import pathlib
import re

import pytest

from hjepa_jax.config import base_config, files, resolve, rows, total_steps
from hjepa_jax.config.checks import typed
from hjepa_jax.config.settings import schema
from hjepa_jax.config.unknown import RENAMED, unknown_field
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import robustness
from hjepa_jax.recipes import cifar100, imagenet100, lejepa, quickstart

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALL = [
    (module, variant)
    for module in (cifar100, imagenet100, lejepa, quickstart)
    for variant in ("", "smoke", *module.METHODS, *(f"{name}-smoke" for name in module.METHODS))
]


@pytest.mark.parametrize(("module", "variant"), ALL)
def test_every_config_is_valid_and_survives_json(module, variant) -> None:
    config = module.get_config(variant)
    resolve(config)
    assert files.from_json(typed(config).to_json()) == config


def test_default_variant_is_hjepa() -> None:
    assert cifar100.get_config() == cifar100.get_config("hjepa")
    assert imagenet100.get_config() == imagenet100.get_config("hjepa")


def test_published_recipes() -> None:
    """The values of the published tables that a later edit must not move."""
    cifar, imagenet = cifar100.get_config(), imagenet100.get_config()
    assert (cifar.data.batch_size, cifar.train.epochs) == (512, 30)
    assert (imagenet.data.batch_size, imagenet.train.epochs) == (256, 45)
    assert (cifar.loss.match, cifar.loss.p_weight, imagenet.loss.match) == ("q", 0.2, "qp")
    assert (cifar.train.predictor_lr, imagenet.train.predictor_lr) == (None, 5e-5)
    assert (cifar.loss.q_pr_floor, cifar.loss.p_pr_floor) == (0.12, 0.16)
    assert (imagenet.loss.q_pr_floor, imagenet.loss.q_eigmax_ceiling) == (0.25, 0.10)
    assert cifar100.get_config("sigreg").train.grad_clip is None
    assert imagenet100.get_config("sigreg").model.split_qp
    assert not cifar100.get_config("sigreg").model.split_qp


def test_lejepa_recipes() -> None:
    """The numbers of their public descriptions."""
    for variant in ("cifar10", "cifar100"):
        config = lejepa.get_config(variant)
        assert (config.data.name, config.train.epochs, config.data.batch_size) == (
            variant,
            300,
            256,
        )
        assert (config.train.optimizer, config.train.lr) == ("lars", 0.3)
        assert (config.train.weight_decay, config.train.decay_exclude) == (
            1e-4,
            ("biases", "norms"),
        )
        assert config.model.projector_widths == (2048, 2048, 128)
        assert (config.resnet.width, config.resnet.stage_blocks) == (64, (2, 2, 2, 2))
        assert (config.sigreg.num_slices, config.sigreg.weight * 256) == (256, 10)
    config = lejepa.get_config("imagenette")
    assert (config.model.encoder, config.vit.patch_size, config.vit.width) == ("vit", 8, 384)
    assert (config.data.image_size, config.data.num_global_views) == (128, 4)
    assert (config.train.optimizer, config.train.lr, config.train.epochs) == ("adamw", 2e-3, 800)
    assert (config.sigreg.weight, config.model.projector_widths[-1]) == (0.02, 16)
    assert lejepa.get_config() == lejepa.get_config("cifar10")


def test_names_of_corruptions_are_the_known_ones() -> None:
    assert set(rows()["evaluation.robustness"].choices) == set(robustness.CORRUPTIONS)


def _changed(**fields):
    config = base_config()
    for path, value in fields.items():
        section, _, name = path.rpartition("__")
        target = config
        for part in section.split("__") if section else []:
            target = target[part]
        target[name] = value
    return config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "hjpea"}, ["config.method", "'hjepa'"]),
        ({"train__epocs": 3}, ["config.train.epocs", "config.train.epochs"]),
        ({"sigreg__num_slices": 3}, ["config.sigreg.num_slices", "no effect", "'lejepa'"]),
        ({"model__split_qp": False, "evaluation__state_part": "qp"}, ["split_qp", "[q | p]"]),
        ({"model__projector": "mlp"}, ["config.model.projector", "identity", "halves"]),
        (
            {"model__projector": "halves", "model__projector_widths": (8, 8, 8, 8, 6)},
            ["config.model.projector_widths", "5 layers", "1 to 4"],
        ),
        (
            {"model__projector": "halves", "model__projector_widths": (7, 6)},
            ["config.model.projector", "7 outputs", "even"],
        ),
        (
            {
                "method": "lejepa",
                "model__projector": "halves",
                "model__split_qp": False,
                "evaluation__state_part": "qp",
            },
            ["config.model.projector", "config.model.split_qp", "'mlp'"],
        ),
        (
            {
                "model__projector": "halves",
                "model__projector_widths": (8, 6),
                "model__projector_dim": 64,
            },
            ["config.model.projector_dim", "no effect", "config.model.projector_widths=()"],
        ),
        ({"model__projector_widths": (8, 6)}, ["config.model.projector_widths", "no effect"]),
        ({"train__momentum": 0.8}, ["config.train.momentum", "no effect", "'lars'"]),
        (
            {"train__optimizer": "lars", "train__b2": 0.99},
            ["config.train.b2", "no effect", "config.train.optimizer='adamw'"],
        ),
        ({"train__optimizer": "sgd"}, ["config.train.optimizer", "'adamw'", "'lars'"]),
        ({"train__decay_exclude": ("bias",)}, ["config.train.decay_exclude", "'biases'"]),
        ({"resnet__token_dim": 7}, ["config.resnet.token_dim", "even"]),
        ({"data__num_global_views": 1}, ["num_global_views", "2 or more"]),
        ({"data__batch_size": 0}, ["config.data.batch_size", "above 0"]),
        ({"data__global_scale": (0.5, 0.1)}, ["config.data.global_scale", "low"]),
        ({"data__augment__gray_probability": 1.5}, ["gray_probability", "between 0 and 1"]),
        ({"dynamics__learn_dt": True}, ["learn_dt", "collapses"]),
        ({"loss__pairing": "local_to_global"}, ["num_local_views"]),
        ({"evaluation__headline_k": 7}, ["headline_k", "knn_k"]),
        ({"evaluation__robustness": ("grey",)}, ["evaluation.robustness", "'grey'", "'gray'"]),
        ({"evaluation__few_shot": (5, 0)}, ["evaluation.few_shot", "above 0"]),
        ({"evaluation__probe_folds": 1}, ["probe_folds", "2 or more"]),
        ({"resnet__stage_blocks": (2, 2, 2)}, ["stage_blocks is (2, 2, 2)", "four stages"]),
        ({"resnet__stage_blocks": (2, 2, 0, 2)}, ["stage_blocks", "above 0"]),
        ({"resnet__depth": 51}, ["config.resnet.depth is 51", "one of 18, 34, 50, 101, 152"]),
        (
            {"resnet__depth": 50, "resnet__stage_blocks": (1, 1, 1, 1)},
            ["config.resnet.stage_blocks", "no effect", "config.resnet.depth=None"],
        ),
        ({"data__local_size": 16}, ["local_size", "no effect"]),
        ({"checkpoint__best_mode": "max"}, ["best_mode", "no effect", "keep_best"]),
        ({"train__max_skips_in_a_row": 2}, ["max_skips_in_a_row", "no effect", "'skip'"]),
        (
            {"checkpoint__keep_best": 1, "checkpoint__best_metric": "online/knn_top1"},
            ["best_metric", "online_every_epochs"],
        ),
        (
            {"checkpoint__keep_best": 1, "checkpoint__best_metric": "online/knn"},
            ["best_metric", "online/knn_top1 or online/knn_top5"],
        ),
        ({"train__accumulation": 3}, ["config.train.accumulation", "divide", "batch_size=512"]),
        ({"resnet__remat": "block"}, ["config.resnet.remat", "'blocks'"]),
        (
            {
                "data__num_local_views": 2,
                "data__local_size": 16,
                "loss__pairing": "local_to_global",
            },
            ["local_size", "token_grid"],
        ),
    ],
)
def test_problems_are_one_clear_sentence(fields, words) -> None:
    config = _changed(**fields)
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="':sigreg'"):
        cifar100.get_config("sigrge")
    with pytest.raises(ConfigError, match="names 2 methods"):
        cifar100.get_config("hjepa-sigreg")


def test_steps_of_a_run() -> None:
    config = cifar100.get_config()
    assert total_steps(resolve(config).train, 97) == 30 * 97
    config.train.max_steps = 5
    assert total_steps(resolve(config).train, 97) == 5


def test_optional_fields_take_none_and_keep_their_type() -> None:
    config = base_config()
    config.train.grad_clip = None
    config.train.grad_clip = 2.0
    with pytest.raises(TypeError):
        config.train.grad_clip = "much"


def test_every_field_is_documented_and_used() -> None:
    code = "\n".join(
        path.read_text()
        for path in (ROOT / "hjepa_jax").rglob("*.py")
        if path.parent.name != "config"
        and path.name not in ("config_check.py", "variants.py", "keys.py")
    )
    names = {n.attr for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute)}
    # Settings dataclasses take fields by name from their section.
    names |= set(re.findall(r"^\s+(\w+): ", code, re.MULTILINE))
    for path, row in rows().items():
        leaf = path.split(".")[-1]
        assert leaf in names or f'"{leaf}"' in code, f"config.{path} is read nowhere"
        assert row.spec.meaning.endswith("."), path


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"model": {"width": 4}},
            "config.model.width is now config.resnet.width",
        ),
        (
            {"model": {"mode": "global"}},
            "config.model.mode is now config.resnet.head",
        ),
    ],
)
def test_a_field_of_an_older_version_gets_one_clear_sentence(values, sentence) -> None:
    with pytest.raises(ConfigError) as caught:
        files.merge(base_config(), values)
    assert str(caught.value) == f"{sentence}: use the new name."


def test_old_objectives_and_spectra_are_named_by_their_successors() -> None:
    of = schema()
    said = unknown_field(of, "objective")
    assert said is not None
    assert "is now config.method: 'hjepa', 'lejepa'" in said
    assert unknown_field(of, "spectral.kind") == (
        "config.spectral.kind is now config.hamsigreg.kind: use the new name."
    )
    assert unknown_field(of, "spectral.regulariser_weight") == (
        "config.spectral.regulariser_weight is now config.hamsigreg.regularizer_weight: use the "
        "new name."
    )


def test_a_configuration_of_version_0_1_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^it was written by hjepa_jax 0\.1, whose runs [^\n]*$"):
        files.from_json('{"objective": "sigreg", "spectral": {"kind": "diag"}, "seed": 3}')


def test_old_names_are_gone_and_new_ones_exist() -> None:
    assert not set(RENAMED) & set(rows())
    assert set(RENAMED.values()) <= set(rows())


@pytest.mark.parametrize("variant", ["hjepa", "sigreg", "smoke"])
def test_settings_are_written_as_the_configuration_is(variant):
    config = cifar100.get_config(variant)
    assert resolve(config).to_json() == typed(config).to_json()

"""The rules that choose settings from a census, and their reasons."""

import dataclasses

import pytest

from hjepa_jax.config.checks import contradictions, typed, with_defaults
from hjepa_jax.config.files import set_field
from hjepa_jax.config.settings import rows
from hjepa_jax.errors import ConfigError
from hjepa_jax.recipes import folder as recipe
from hjepa_jax.training.automatic.census import Census
from hjepa_jax.training.automatic.choices import RULES, choose

FEW = Census(
    count=120,
    has_test=False,
    labeled=0,
    classes=0,
    sampled=119,
    short_side=(122, 363, 800),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    files=True,
    platform="cpu",
    devices=1,
    cores=2,
)
GPUS = dataclasses.replace(FEW, count=50_000, platform="gpu", devices=8, cores=32)
TINY = dataclasses.replace(FEW, count=4_000, short_side=(28, 28, 28), has_test=True)


def values(census: Census, variant: str = "", **given) -> dict:
    """The chosen values by field, for the recipe with fields given as section__field."""
    config = recipe.get_config(variant)
    for name, value in given.items():
        set_field(config, name.replace("__", "."), value)
    plain, wanted = with_defaults(config)
    found = choose(census, typed(plain), wanted)
    chosen = typed(plain).replace({path: choice.value for path, choice in found.items()})
    assert not list(contradictions(chosen))
    assert not set(given) & {path.replace(".", "__") for path in found}
    return {path: choice.value for path, choice in found.items()}


def test_a_few_photographs_on_a_cpu() -> None:
    assert values(FEW) == {
        "data.test_holdout": 24,
        "data.image_size": 64,
        "data.batch_size": 32,
        "data.mean": (0.5, 0.4, 0.3),
        "data.std": (0.2, 0.2, 0.1),
        "data.augment.blur_kernel": 7,
        "data.num_workers": 0,
        "model.compute_dtype": "float32",
        "resnet.stem": "imagenet",
        "resnet.width": 16,
        "resnet.token_dim": 16,
        "resnet.token_grid": None,
        "train.epochs": 200,
        "train.warmup_epochs": 10.0,
        "dynamics.residual_scale_warmup_epochs": 10.0,
        "loss.logdet_dim": 16,
        "evaluation.batch_size": 32,
        "checkpoint.every_steps": 60,
        "log.every_steps": 6,
    }


def test_many_photographs_on_several_accelerators() -> None:
    found = values(GPUS)
    expected = {
        "data.test_holdout": 10_000,
        "data.image_size": 96,
        "data.batch_size": 256,
        "data.augment.blur_kernel": 11,
        "data.num_workers": 16,
        "model.compute_dtype": "bfloat16",
        "resnet.stem": "imagenet",
        "resnet.width": 64,
        "resnet.token_dim": 32,
        "resnet.token_grid": None,  # 6 x 6
        "train.epochs": 128,  # 20,000 steps of 156
        "train.warmup_epochs": 10.0,
        "loss.logdet_dim": 128,
        "checkpoint.every_steps": None,
        "log.every_steps": 50,
    }
    assert {path: found[path] for path in expected} == expected


def test_small_images_are_not_enlarged() -> None:
    found = values(TINY)
    assert found["data.test_holdout"] is None
    assert (found["data.image_size"], found["resnet.stem"]) == (24, "cifar")
    assert (found["resnet.token_grid"], found["data.batch_size"]) == (None, 128)
    tiny = dataclasses.replace(TINY, short_side=(8, 8, 8))
    assert values(tiny)["data.image_size"] == 16


CASES = [
    # A rule, a change of the census, what is given, and the value chosen.
    ("data.image_size", {"short_side": (63, 500, 500)}, {}, 48),
    ("data.image_size", {"platform": "tpu", "short_side": (500, 500, 500)}, {}, 224),
    ("data.batch_size", {}, {"data__test_holdout": 100}, 8),
    ("data.batch_size", {"devices": 3}, {}, 30),
    ("data.batch_size", {"devices": 2}, {"train__accumulation": 3}, 30),
    ("data.batch_size", {"count": 9}, {}, 2),
    ("data.test_holdout", {"labeled": 50, "classes": 2}, {}, 10),
    ("data.test_holdout", {"count": 6}, {}, 2),
    ("data.num_workers", {"platform": "gpu", "cores": 8}, {}, 6),
    ("data.num_workers", {"platform": "gpu", "cores": 8, "files": False}, {}, 0),
    ("data.num_workers", {"platform": "gpu"}, {}, 0),
    ("resnet.token_grid", {"platform": "gpu"}, {"data__image_size": 64}, 8),
    ("resnet.token_grid", {"platform": "gpu"}, {"data__image_size": 224}, 8),
    ("resnet.token_grid", {}, {"resnet__token_layer": "layer2", "data__image_size": 96}, 8),
    ("train.epochs", {}, {"data__batch_size": 96}, 400),
    ("train.epochs", {"count": 500_000}, {}, 10),
    ("train.warmup_epochs", {}, {"train__epochs": 50}, 5.0),
    ("train.warmup_epochs", {}, {"train__max_steps": 60}, 2.0),
    ("dynamics.residual_scale_warmup_epochs", {}, {"train__warmup_epochs": 3.0}, 3.0),
    ("loss.logdet_dim", {}, {"data__batch_size": 8}, 4),
    ("evaluation.batch_size", {}, {"data__batch_size": 48}, 48),
    ("checkpoint.every_steps", {"count": 20_000}, {}, None),
    ("log.every_steps", {}, {"train__max_steps": 2}, 1),
]


@pytest.mark.parametrize(("path", "census", "fields", "value"), CASES)
def test_each_rule_heeds_the_images_the_device_and_what_is_given(
    path, census, fields, value
) -> None:
    assert values(dataclasses.replace(FEW, **census), **fields)[path] == value


def test_fields_of_parts_that_are_not_used_are_not_chosen() -> None:
    found = values(FEW, "sigreg")
    assert not [path for path in found if path.startswith(("loss.", "dynamics."))]
    assert "dynamics.residual_scale_warmup_epochs" not in values(FEW, "identity")
    assert "resnet.token_dim" not in values(FEW, "sigreg", resnet__head="global")


def test_too_few_images_for_a_test_set_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there are 4 images and no test split: give at least"):
        values(dataclasses.replace(FEW, count=4))


def test_every_field_that_may_be_auto_has_a_rule() -> None:
    assert {path for path, row in rows().items() if row.spec.auto} == set(RULES)

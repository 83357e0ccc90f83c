"""Recipes of the comparison: equal scales, tuned values, and errors."""

import pathlib

import pytest

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.tools.reproduction.recipes import TITLES, default_methods, recipes
from hjepa_jax.tools.sweep import override_flag


def settings_of(recipe):
    """The settings of a recipe."""
    return resolve_arguments(
        [f"--config={recipe.source}", *(override_flag(text) for text in recipe.overrides)]
    )


def tuned(folder: pathlib.Path, method: str, source: str, *values: str) -> pathlib.Path:
    """A folder of `hjepa tune` with the best values of a method."""
    path = folder / "best" / f"{method}.flags"
    path.parent.mkdir(exist_ok=True)
    lines = ["# the best", f"--config={source}", *(f"--config.{value}" for value in values)]
    path.write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("scale", ["full", "middle", "small"])
def test_methods_of_a_scale_share_data_size_and_steps(scale) -> None:
    found = recipes(default_methods(scale), scale, None, ["seed=3"])
    assert ("lejepa" in found) == (scale == "middle")
    settings = {name: settings_of(recipe) for name, recipe in found.items()}
    shared = {
        (s.seed, s.data, s.value("resnet.width"), s.train.epochs, s.train.lr, s.train.warmup_epochs)
        for s in settings.values()
    }
    assert len(shared) == 1
    assert all(s.evaluation.pixel_baseline for s in settings.values())
    assert set(found) <= set(TITLES)
    if scale == "middle":
        assert settings["sigreg"].model.projector == "identity"
        assert settings["lejepa"].model.projector_widths == (2048, 2048, 128)
        flow = settings["hjepa"]
        assert flow.train.warmup_epochs / flow.train.epochs == pytest.approx(10 / 30)
        assert flow.value("dynamics.residual_scale_warmup_epochs") == flow.train.warmup_epochs


def test_tuned_values_are_beside_the_published_ones(tmp_path) -> None:
    tuned(tmp_path, "hjepa", "cifar100:hjepa", "train.lr=0.004", "loss.match=qp")
    widths = "model.projector_widths=512,512,64"
    tuned(tmp_path, "lejepa", "cifar100:sigreg", "model.projector=mlp", widths)
    found = recipes(["hjepa", "lejepa"], "middle", tmp_path, ["data.batch_size=256"])
    assert list(found) == ["hjepa", "lejepa", "hjepa-tuned", "lejepa-tuned"]
    assert set(found) <= set(TITLES)
    published, best = settings_of(found["hjepa"]), settings_of(found["hjepa-tuned"])
    assert (published.train.lr, best.train.lr) == (5e-4, 0.004)
    assert (published.value("loss.match"), best.value("loss.match")) == ("q", "qp")
    assert settings_of(found["lejepa-tuned"]).model.projector_widths == (512, 512, 64)
    for name in found:
        assert settings_of(found[name]).data.batch_size == 256


def test_a_method_without_tuned_values_is_an_error(tmp_path) -> None:
    with pytest.raises(UserError, match=r"best/hjepa\.flags cannot be read .*: tune the method"):
        recipes(["hjepa"], "middle", tmp_path, [])
    tuned(tmp_path, "hjepa", "quickstart:hjepa", "train.lr=0.004")
    with pytest.raises(UserError, match=r"another configuration than cifar100:hjepa"):
        recipes(["hjepa"], "middle", tmp_path, [])
    with pytest.raises(UserError, match="'large' is none of full, middle, small"):
        recipes(["hjepa"], "large", None, [])

"""Odd settings: validation ends in a sentence or accepts them, and what it accepts trains."""

import random

import pytest

from hjepa_jax import config_check
from hjepa_jax.errors import ConfigError, TrainingError
from hjepa_jax.tools import fuzz, fuzz_settings


def test_validation_of_odd_settings_ends_in_sentences() -> None:
    refused, lines = 0, []
    for number in range(200):
        _, config, _ = fuzz_settings.draw(random.Random(f"7/{number}"))
        try:
            config_check.validate(config)
        except ConfigError as error:
            refused += 1
            lines += str(error).splitlines()
    assert all(line.endswith((".", "?")) for line in lines)
    assert 100 < refused < 190


def test_an_accepted_odd_setting_trains(tmp_path) -> None:
    config = fuzz_settings._tiny("sigreg")
    config.train.b1 = 0.0
    fuzz_settings.run(config, {"train.b1": 0.0}, tmp_path)
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_a_divergence_must_be_explained_by_a_field_that_was_drawn(tmp_path, monkeypatch) -> None:
    def diverge(config, folder):
        raise TrainingError("NaN or infinite at step 0: lower config.train.lr.")

    monkeypatch.setattr(fuzz_settings, "train", diverge)
    config = fuzz_settings._tiny("sigreg")
    with pytest.raises(AssertionError, match="another field is blamed"):
        fuzz_settings.run(config, {"seed": 3}, tmp_path)
    with pytest.raises(TrainingError):
        fuzz_settings.run(config, {"train.lr": 5.0}, tmp_path)


def test_the_target_is_registered() -> None:
    assert fuzz.TARGETS["settings"] == "hjepa_jax.tools.fuzz_settings"

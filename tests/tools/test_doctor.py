"""The doctor's findings on versions: the tested range, and one sentence outside it."""

import importlib.metadata
import platform

import pytest

from hjepa_jax.tools import doctor

CLASSIFIERS = ("3", "3.9", "3.12", "3.11")


class _Metadata(dict):
    """Metadata with the classifiers of four Pythons, of which '3' is no version."""

    def get_all(self, name: str) -> list[str]:
        assert name == "Classifier"
        return [f"Programming Language :: Python :: {version}" for version in CLASSIFIERS]


@pytest.mark.parametrize(
    ("running", "remedy"),
    [
        ("3.11.9", None),
        ("3.13.0", "outside the tested range: use Python 3.12"),
        ("3.10.1", "outside the tested range: use Python 3.12"),
    ],
)
def test_python_is_compared_with_the_classifiers(monkeypatch, running, remedy) -> None:
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: _Metadata())
    monkeypatch.setattr(platform, "python_version", lambda: running)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: tuple(running.split(".")))
    (found,) = doctor.check_python()
    assert found.fact.startswith(running)
    assert found.fact.endswith(", tested with 3.9 to 3.12")
    assert found.remedy == remedy


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        ("0.10.0", None),
        ("0.12.0.1", None),
        ("0.13.0", "outside the tested range: pip install 'jax<0.13,>=0.10'"),
        ("0.9.2", "outside the tested range: pip install 'jax<0.13,>=0.10'"),
    ],
)
def test_jax_is_compared_with_the_requirement(monkeypatch, installed, remedy) -> None:
    requirements = ["jax>=0.10,<0.13", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    monkeypatch.setattr(doctor, "KNOWN_BAD", ())
    (found,) = doctor.check_versions()
    assert found == ("jax", f"{installed}, tested with >=0.10,<0.13", remedy)


def test_the_installed_python_and_jax_are_within_the_range() -> None:
    found = {finding.subject: finding for finding in doctor.check_versions()}
    assert found["jax"].remedy is None
    assert found["jax"].fact.startswith(importlib.metadata.version("jax") + ", tested with >=0.")
    (python,) = doctor.check_python()
    assert python.remedy is None

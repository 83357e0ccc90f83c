"""Names of topologies, and compilers that are not installed."""

import importlib.util

import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.tools.plan import topologies
from hjepa_jax.tools.plan.topologies import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("name", "chips", "platform"),
    [("v5e:2x2", 4, "tpu"), ("v5e:4x4", 16, "tpu"), ("v4:2x2x2", 8, "tpu"), ("h100:8", 8, "cuda")],
)
def test_names(name: str, chips: int, platform: str) -> None:
    topology = parse_topology(name)
    assert topology.chips == chips
    assert topology.chip.platform == platform


@pytest.mark.parametrize("name", ["", "v5e", "v5e:3x3", "v5p:2x2", "h100:9", "h100", "a100:1"])
def test_unknown_names_are_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"--topology={name} is unknown: choose one of") as caught:
        parse_topology(name)
    kind = name.partition(":")[0]
    for known in [kind] if kind in CHIPS else CHIPS:
        assert f"{known}:{{{CHIPS[known].layouts[0]}," in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:1", "cuda")])
def test_a_missing_compiler_is_one_sentence(name: str, extra: str, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"--topology={name} needs .*'hjepa_jax\[{extra}\]'"):
        topologies.devices(parse_topology(name))


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("v5e:1x1", "tpu"),
        ("v5e:4x4", "tpu"),
        ("v5p:2x2x1", "tpu"),
        ("v6e:2x4", "tpu"),
        ("h100:8", "gpu"),
    ],
)
def test_compilers_know_the_devices(name: str, platform: str) -> None:
    topology = parse_topology(name)
    try:
        topologies.compiler_version(topology)
    except UserError as error:
        pytest.skip(str(error))
    found = topologies.devices(topology)
    assert len(found) == topology.chips
    assert {device.platform for device in found} == {platform}


def test_a_layout_that_the_compiler_refuses_is_one_sentence() -> None:
    odd = topologies.Topology("v5e:3x5", CHIPS["v5e"], "3x5")
    try:
        version = topologies.compiler_version(odd)
    except UserError as error:
        pytest.skip(str(error))
    with pytest.raises(UserError, match=f"--topology=v5e:3x5 is refused by {version}: "):
        topologies.devices(odd)

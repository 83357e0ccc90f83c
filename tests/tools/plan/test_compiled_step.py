"""The step compiled for accelerators: the report, and the whole command."""

import collections
import contextlib
import pathlib
import re
import subprocess

import forked
import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.tools.plan.compiled_step import CompiledStep, bounds, report
from hjepa_jax.tools.plan.program_text import Counts, count_program
from hjepa_jax.tools.plan.topologies import compiler_version, parse_topology


def step(**changed) -> CompiledStep:
    counts = Counts(
        traffic=3_352_000_000,
        kernels=collections.Counter({"fusion": 7, "all-reduce": 2}),
        collectives=collections.Counter({"all-reduce": 2}),
        reduced=collections.Counter({"all-reduce": 4_500_000}),
    )
    made = CompiledStep(
        topology=parse_topology("h100:2"),
        compiler="some-compiler 1.2",
        device="Some GPU",
        devices=2,
        images=512,
        arguments=2**20,
        temporary=3 * 2**30,
        peak=3 * 2**30 + 2**20,
        operations=98_940_000_000,
        counts=counts,
        text="",
    )
    return made._replace(**changed)


def test_the_slowest_resource_bounds_the_rate() -> None:
    """A tenth of a ms of products, one ms of memory, and a hundredth of communication."""
    found = {bound.resource: bound.seconds for bound in bounds(step())}
    assert found == pytest.approx({"compute": 1e-4, "memory": 1e-3, "communication": 1e-5})
    text = report(step())
    assert "at most 512000 images/s, by memory: a bound" in text
    assert "| all-reduce | 2 | 4.5 MB | 4.5 MB |" in text
    assert "9 kernels: 7 fusion, 2 all-reduce" in text
    assert "peak 3.001 GiB of 74.51 GiB" in text
    assert "not run" in text
    assert "unknown length" not in text
    assert "peak rates: NVIDIA" in text
    assert "at most 51200 images/s, by compute" in report(step(operations=9_894_000_000_000))


def test_the_commonest_kernels_are_named() -> None:
    kinds = collections.Counter({letter * 2: 10 - place for place, letter in enumerate("abcdefgh")})
    text = report(step(counts=Counts(kernels=kinds)))
    assert "52 kernels: 10 aa, 9 bb, 8 cc, 7 dd, 6 ee, 5 ff, 7 others" in text


def test_half_a_chip_has_half_its_rates() -> None:
    """Of a TPU v4, each of the two cores is a device."""
    whole = step(topology=parse_topology("v4:2x2x1"), devices=4)
    half = whole._replace(devices=8)
    for one, two in zip(bounds(whole)[:2], bounds(half)[:2], strict=True):
        assert two.seconds == pytest.approx(2 * one.seconds)


def test_a_single_device_sends_nothing() -> None:
    counts = Counts(traffic=1, endless=3)
    text = report(step(topology=parse_topology("h100:1"), devices=1, counts=counts))
    assert "| none | 0 | 0 B | 0 B |" in text
    assert "| communication | 0 B | 450 GB/s | 0 | unbounded |" in text
    assert "loops of unknown length, counted as one turn: 3" in text


PLAN = ("-m", "hjepa_jax.tools.cli", "plan")


def run(*arguments: str, program: tuple[str, ...] = PLAN) -> subprocess.CompletedProcess[str]:
    return forked.run(*program, *arguments)


@pytest.mark.parametrize("name", ["h100:1", "h100:8", "v5e:2x2"])
def test_command_compiles_the_step(name: str, tmp_path: pathlib.Path) -> None:
    """Nothing but shapes and the compiler is needed."""
    topology = parse_topology(name)
    try:
        version = compiler_version(topology)
    except UserError as error:
        pytest.skip(str(error))
    path = tmp_path / "step.hlo"
    config = ("--config=configs/cifar100.py:sigreg-smoke", "--config.resnet.stage_blocks=(2,2,2,2)")
    done = run(*config, f"--topology={name}", f"--hlo={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: {topology.chips} x " in done.stdout
    assert version in done.stdout
    assert "16 images per step" in done.stdout
    # 24.75 MFLOP on each of eight devices for the encoder, by hand, and little for the loss.
    found = re.search(r"([\d.]+) MFLOP in matrix products", done.stdout)
    assert found is not None
    assert 24.75 < float(found[1]) * topology.chips / 8 < 1.03 * 24.75
    assert ("| all-reduce |" in done.stdout) == (topology.chips > 1)
    counts = count_program(path.read_text())
    assert counts.kernels["fusion"] > 50
    assert f"{sum(counts.kernels.values())} kernels: " in done.stdout
    if topology.chips > 1:
        # Two for each of 11 normalizations, two for the loss, and the gradients, perhaps merged.
        assert 22 <= counts.collectives["all-reduce"] <= 25


@pytest.mark.parametrize(("name", "extra"), [("h100:1", "cuda"), ("v5e:4x4", "tpu")])
def test_command_names_the_compiler_that_is_missing(name: str, extra: str) -> None:
    with contextlib.suppress(UserError):
        pytest.skip(f"{compiler_version(parse_topology(name))} is installed")
    done = run(f"--topology={name}")
    assert done.returncode == 1
    assert done.stderr == (
        f"hjepa plan: --topology={name} needs XLA's compiler for {extra.upper()}, which is not "
        f"installed: pip install 'hjepa_jax[{extra}]'.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--topology=h100:99",), "--topology=h100:99 is unknown: choose one of h100:{1,2,"),
        (("--topology=v5e:2x2", "--devices=2"), "--devices is not used with --topology=v5e:2x2"),
        (("--hlo=step.hlo",), "--hlo needs --topology"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hjepa plan: {sentence}")
    assert done.stderr.count("\n") == 1


def test_the_script_is_the_command() -> None:
    done = run("--efficiency=0", program=("scripts/step_cost.py",))
    assert done.returncode == 1
    assert done.stderr == "hjepa plan: --efficiency is 0.0: it must be above 0.\n"

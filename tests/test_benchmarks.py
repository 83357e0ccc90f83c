"""Every benchmark runs at a small size and prints what it promises; sides take turns."""

import argparse
import os
import pathlib
import re
import subprocess
import sys

import gpu
import pytest
import run_all as command
import turns

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Lines that must be there, of hjepa_jax and of what it is measured beside.
EXPECTED = {
    "train_step": [
        r"ceiling \d+ GFLOP/s, copy [\d.]+ GB/s",
        r"^\| hjepa_jax \| [\d.]+ \| 1\.00 \|.*%",
        r"^\| XLA's operations \| [\d.]+ \| [\d.]+ \|.*%",
        r"^\| hjepa_jax in one process \| global \| [\d.]+ \| 1\.00 \| [\d.]+ \|",
        r"^\| hjepa_jax in 2 processes \| global \| [\d.]+ \| [\d.]+ \| [\d.]+ \|",
    ],
    "encoders": [
        rf"^{encoder}, 32 px, batch 2; .*\n(\|.*\n)+\| {way} \| [\d.]+ \|"
        for encoder in ("resnet50", "vit_s8")
        for way in ("hjepa_jax", "XLA's operations")
    ],
    "convolutions": [
        rf"^\| 2 x 8 x 16 \| {which} \| {way} \| [\d.]+ \| [\d.]+ \| \d+% \| [\de.+-]+ \|"
        for which in ("forward", "input gradient", "kernel gradient")
        for way in ("XLA", "unrolled groups of 2", "im2col", "Winograd in XLA", "padded to 128")
    ]
    + [r"^\| 2 x 8 x 16 \| kernel gradient \| scanned groups of 2 \|"],
    "method_levers": [
        r"^\| Cholesky of q and p, rank 16 \| batched \|",
        r"^\| largest eigenvalue, rank 16 \| power iteration, 30 products \|",
        r"^\| flow, 2 steps \| two forces per step \|",
        r"^\| encoder, 2 views \| one pass for each view \|",
    ],
    "sigreg": [
        r"^N=64  D=32  K=16  T=17  \(ceiling",
        r"^  hjepa_jax .* ms .*% of ceiling.* x projections",
        r"^  direct .* ms .* x projections",
    ],
    "leapfrog": [
        *(r"^\| +1 \|.*%.*e-0[6-9] \|$", r"^\| +4 \|.*%.*e-0[6-9] \|$"),
        # A train step, whose memory the recomputed flow lowers.
        r"^\| +16 \| +[\d.]+ \| +[\d.]+ \| +\d[\d.]* \|$",
    ],
    "knn": [r"^hjepa_jax .* 1\.00 .*% +100\.00% +\d+", r"^scikit-learn .*% +\d+\.\d+% +\d+"],
    "probe": [
        r"^\| hjepa_jax \| [\d.]+ \| 1\.00 \| \d+% \|",
        r"^\| hjepa_jax, logistic \|",
        r"^\| scikit-learn, logistic \|",
    ],
    "startup": [r"^\| import \|", r"^\| compilation \|", r"^\| whole process \| [\d.]+ \|"],
    "input_pipeline": [
        rf"^{size} px, 2\+{local} views: images/s/core hjepa_jax \d"
        for size in (32, 80)
        for local in (0, 6)
    ],
    "feed": [
        # Two views of 17 parameters; of images sent, 3072 bytes more of each.
        r"^\| views made on the host \| [\d.]+ \| 49216 \| \d+ \|$",
        r"^\| images sent \| [\d.]+ \| 25728 \| \d+ \|$",
        r"^\| images resident \| [\d.]+ \| 1152 \| \d+ \|$",
        *(rf"^\| {together} \| [\d.]+ \|$" for together in (1, 4)),
    ],
}


def run_all(*arguments: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    """Runs the README's command on one CPU device, without the help of PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/run_all.py"), *arguments],
        cwd=cwd,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_runs_and_prints_its_figures(name: str) -> None:
    done = run_all("--scale", "tiny", "--only", name)
    assert done.returncode == 0, done.stderr
    for pattern in EXPECTED[name]:
        assert re.search(pattern, done.stdout, re.MULTILINE), f"{pattern}\n{done.stdout}"


def test_none_is_left_out() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    helpers = {"gpu", "gpu_parts", "run_all", "shares", "torch_shares", "torch_step", "turns"}
    assert scripts - helpers == set(EXPECTED)
    assert all(set(sizes) == set(EXPECTED) for sizes in command.SCALES.values())


def run_gpu(*arguments: str, out: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs benchmarks/gpu.py, at its smallest size, on the CPU."""
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks/gpu.py"),
            "--scale=tiny",
            f"--out={out}",
            *arguments,
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_gpu_parts_run_and_are_written_down(tmp_path: pathlib.Path) -> None:
    done = run_gpu("--only", "device", "epoch", "processes", out=tmp_path)
    assert done.returncode == 0, done.stdout
    for pattern in (
        r"^device: cpu, \d of them$",
        r"^\| 2 epochs of 4 steps, batch 16 \|",
        r"^\| images/s, best \| [1-9]\d* \|$",
        r"^\| share of the time waiting for data, last \| [\d.]+% \|$",
        r"^\| distributed runtime of one process, s \| [\d.]+ \|$",
    ):
        assert re.search(pattern, done.stdout, re.MULTILINE), f"{pattern}\n{done.stdout}"
    assert (tmp_path / "gpu.md").read_text() == done.stdout


def test_gpu_names_what_did_not_finish(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that fails, one that takes too long, and one for which no time is left."""
    parts = {
        "fails": gpu.Part((), ("-c", "print(7); 1 / 0"), 60),
        "hangs": gpu.Part((), ("-c", "import time; print(8); time.sleep(100)"), 2),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--scale=tiny", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"fails \(exit status 1\), hangs \(stopped after 2 s\)"):
        gpu.main()
    report = (tmp_path / "gpu.md").read_text()
    assert "\n7\n" in report
    assert "ZeroDivisionError" in report
    assert "\n8\n" in report
    done = run_gpu("--only", "knn", "--minutes=0", out=tmp_path)
    assert done.returncode == 1
    assert "knn (not started: the 0 minutes are over)" in done.stderr


def test_the_tests_of_a_gpu_exist() -> None:
    assert [path for path in gpu.DEVICE_TESTS if not (ROOT / path).exists()] == []


def test_one_that_fails_is_named(tmp_path: pathlib.Path) -> None:
    """The sizes of `tiny` with no turns at all, which no benchmark can take a median of."""
    done = run_all("--scale", "tiny", "--only", "input_pipeline", "--repeats", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "these benchmarks failed: input_pipeline"


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A B A B, each of its own seconds, by a clock that the sides move themselves."""
    clock, ran = [0.0], []

    def side(name: str, *seconds: float):
        left = list(seconds)

        def run() -> None:
            ran.append(name)
            clock[0] += left.pop(0)

        return run

    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(turns.time, "process_time", lambda: 10 * clock[0])
    spent = turns.take_turns({"a": side("a", 1, 5, 2), "b": side("b", 7, 9, 8)}, 3)
    assert ran == ["a", "b"] * 3
    assert spent == {"a": (2, 20), "b": (8, 80)}

    # A clock of other processes in place of this one's.
    given = {"a": side("a", 1)}
    assert turns.take_turns(given, 1, processor=lambda: 100 * clock[0]) == {"a": (1, 100)}

    ran.clear()
    spent = turns.take_turns({"a": side("a", 0.25, 0.25, 2), "b": side("b", 3, 4)}, 1, settle=0.5)
    assert ran == ["a", "a", "a", "b", "b"]
    assert spent == {"a": (2, 20), "b": (4, 40)}


def test_the_ceiling_is_in_operations_and_bytes_of_a_second() -> None:
    args = argparse.Namespace(matrix=64, copy_mb=3)
    assert set(turns.ceiling_runners(args)) == {"product", "copy"}
    spent = {"side": turns.Spent(1, 1), "product": turns.Spent(2, 2), "copy": turns.Spent(0.5, 1)}
    ceiling = turns.pop_ceiling(spent, args)
    # Four of each in a turn, as the runners do.
    assert ceiling == (4 * 64**3, 4 * 12 * 2**20)
    assert set(spent) == {"side"}

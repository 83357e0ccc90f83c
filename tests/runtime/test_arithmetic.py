"""The section `runtime`: what it sets, when it is too late, and that XLA gets it."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from hjepa_jax import main
from hjepa_jax.config.settings import Runtime
from hjepa_jax.errors import UserError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import arithmetic, distributed
from hjepa_jax.train import train
from hjepa_jax.training.automatic import census
from hjepa_jax.training.automatic.resolved import resolved

WANTED = Runtime(deterministic=True)
FLAG = "--xla_gpu_deterministic_ops"
OTHER = "--xla_force_host_platform_device_count=1"


@pytest.fixture(autouse=True)
def no_flags(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", OTHER)


def started(monkeypatch, platform: str | None) -> None:
    """Pretends that a backend has started, or that none has."""
    monkeypatch.setattr(
        arithmetic.xla_bridge, "backends_are_initialized", lambda: platform is not None
    )
    monkeypatch.setattr(jax, "default_backend", lambda: platform)


def test_the_flag_is_added_before_a_backend_starts_and_only_if_wanted(monkeypatch) -> None:
    started(monkeypatch, None)
    arithmetic.set_up(Runtime())
    assert os.environ["XLA_FLAGS"] == OTHER
    for _ in range(2):
        arithmetic.set_up(WANTED)
        assert os.environ["XLA_FLAGS"] == f"{OTHER} {FLAG}=true"


@pytest.mark.parametrize("given", [FLAG, f"{FLAG}=true", f"{FLAG}=false {FLAG}=1"])
def test_a_flag_that_is_there_serves_a_started_gpu(given, monkeypatch) -> None:
    started(monkeypatch, "gpu")
    monkeypatch.setenv("XLA_FLAGS", given)
    arithmetic.set_up(WANTED)
    assert os.environ["XLA_FLAGS"] == given


def test_a_started_gpu_without_it_is_one_sentence(monkeypatch, caplog) -> None:
    started(monkeypatch, "gpu")
    with pytest.raises(UserError, match=rf"already uses its GPU.*XLA_FLAGS={FLAG}=true") as caught:
        arithmetic.set_up(WANTED)
    assert "\n" not in str(caught.value)
    arithmetic.set_up(WANTED, needed=False)
    assert caplog.messages == [str(caught.value)]
    assert os.environ["XLA_FLAGS"] == OTHER


def test_a_started_cpu_needs_nothing(monkeypatch) -> None:
    started(monkeypatch, "cpu")
    arithmetic.set_up(WANTED)
    assert os.environ["XLA_FLAGS"] == OTHER


def test_a_flag_that_contradicts_or_is_unknown_is_refused(monkeypatch) -> None:
    """XLA ends a process that gives it an unknown flag."""
    started(monkeypatch, None)
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=false")
    with pytest.raises(UserError, match=rf"XLA_FLAGS has {FLAG}=false: remove"):
        arithmetic.set_up(WANTED)
    monkeypatch.setattr(arithmetic, "_FLAG", "xla_gpu_no_such_flag")
    with pytest.raises(UserError, match=r"jaxlib [\d.]+ has no --xla_gpu_no_such_flag: set it to"):
        arithmetic.set_up(WANTED)
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=false"


CHILD = """
import jax
from hjepa_jax.recipes import quickstart
from hjepa_jax.training.automatic.resolved import resolved
config = quickstart.get_config("smoke")
config.runtime.deterministic = True
resolved(config)
jax.jit(lambda x: x + 1)(1.0)
"""


def test_a_configuration_that_asks_for_it_reaches_the_compiler(tmp_path) -> None:
    """XLA writes down the options that it compiles with."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path}", "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    options = [path.read_text() for path in tmp_path.glob("*debug_options")]
    assert options
    assert all("xla_gpu_deterministic_ops: true" in text for text in options)


@pytest.mark.parametrize("entry", ["the command", "train", "evaluate"])
def test_every_entry_sets_it_up_first(entry, monkeypatch, tmp_path) -> None:
    """Before processes meet, and before a device is asked for its memory."""
    config = quickstart.get_config("smoke")
    config.runtime.deterministic = True
    started(monkeypatch, "gpu")
    monkeypatch.setattr(distributed, "find_cluster", lambda *_: pytest.fail("too late"))
    arguments = ["hjepa", "--config=quickstart:smoke", "--config.runtime.deterministic=True"]
    main.PROGRAM.parse([*arguments, f"--workdir={tmp_path}"])
    calls = {
        "the command": lambda: main.main([]),
        "train": lambda: train(config, tmp_path),
        "evaluate": lambda: evaluate(config, tmp_path),
    }
    with pytest.raises(UserError, match="already uses its GPU"):
        calls[entry]()


def test_fields_are_chosen_after_the_set_up(monkeypatch) -> None:
    config = quickstart.get_config("smoke")
    config.runtime.deterministic = True
    with config.ignore_type():
        config.train.epochs = "auto"
    started(monkeypatch, "gpu")
    monkeypatch.setattr(census, "take", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match="already uses its GPU"):
        resolved(config)


def test_the_precision_is_that_of_the_products_traced_inside() -> None:
    def lowered(precision) -> str:
        def product(x: jax.Array) -> jax.Array:
            with arithmetic.products(precision):
                return x @ x

        return jax.jit(jax.grad(lambda x: jnp.sum(product(x)))).lower(jnp.ones((2, 2))).as_text()

    for precision, word in (("tf32", "[HIGH, HIGH]"), ("highest", "[HIGHEST, HIGHEST]")):
        assert lowered(precision).count(f"precision = {word}") == 2
        assert jax.config.values["jax_default_matmul_precision"] is None
    assert "HIGH" not in lowered("default")


@pytest.mark.parametrize(
    ("runtime", "platform", "words"),
    [
        (Runtime(), "gpu", ""),
        (Runtime(matmul_precision="tf32"), "gpu", "float32 products of the encoder in tf32"),
        (WANTED, "gpu", f"deterministic operations (XLA_FLAGS={FLAG}=true)"),
        (WANTED, "tpu", "deterministic operations, as always on a TPU"),
    ],
)
def test_what_is_set_is_said(runtime, platform, words, monkeypatch) -> None:
    started(monkeypatch, platform)
    assert arithmetic.described(runtime) == words

"""`hjepa doctor`: checks versions, devices, data, disk, and dry-runs a configuration.

    hjepa doctor --config=cifar100 [--workdir=runs/x]

Every line says 'ok', or 'problem' and how to fix it. The exit status is 1 if there is a problem.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from absl import flags
from ml_collections import ConfigDict
from packaging.requirements import Requirement
from packaging.version import Version

from hjepa_jax.config import Settings
from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

# The dry run would tell of itself between the findings.
PROGRAM = Program("doctor", __doc__, level=logging.WARNING)
_CONFIG = define_config(None, "Configuration to check and dry-run.", values=PROGRAM.flags)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs", "Folder whose disk is checked.", flag_values=PROGRAM.flags
)

# Versions that are known to fail: (package, specifier, reason and remedy).
KNOWN_BAD = (
    ("numpy", "<2.1", "older than jax's wheels accept; pip install -U numpy"),
    ("protobuf", "<4.21", "TensorBoard events cannot be written; pip install -U protobuf"),
    ("orbax-checkpoint", "<0.12", "has no AnyPreservationPolicy; pip install -U orbax-checkpoint"),
)


class Finding(NamedTuple):
    """One line of the report; `remedy` is None if there is no problem."""

    subject: str
    fact: str
    remedy: str | None = None


def tested_pythons() -> list[str]:
    """Returns the Python versions that the project is tested on, such as '3.11', oldest first."""
    classifiers = importlib.metadata.metadata("hjepa_jax").get_all("Classifier") or []
    names = (line.removeprefix("Programming Language :: Python :: ") for line in classifiers)
    return sorted((name for name in names if re.fullmatch(r"3\.\d+", name)), key=Version)


def check_python() -> Iterator[Finding]:
    """Compares this Python with those that the project is tested on."""
    tested = tested_pythons()
    fact = f"{platform.python_version()} on {platform.platform()}"
    fact += f", tested with {tested[0]} to {tested[-1]}"
    known = ".".join(platform.python_version_tuple()[:2]) in tested
    remedy = None if known else f"outside the tested range: use Python {tested[-1]}"
    yield Finding("python", fact, remedy)


def check_versions() -> Iterator[Finding]:
    """Compares the installed packages with the requirements of this project."""
    for line in importlib.metadata.requires("hjepa_jax") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "not installed", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(Version(version), prereleases=True)
        remedy = None if fits else f"outside the tested range: pip install '{requirement}'"
        bounds = sorted(requirement.specifier, key=lambda bound: Version(bound.version))
        fact = f"{version}, tested with {','.join(map(str, bounds))}"
        yield Finding(requirement.name, fact, remedy)
    for name, specifier, why in KNOWN_BAD:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Requirement(f"x{specifier}").specifier.contains(Version(version)):
            yield Finding(name, version, why)


def check_devices() -> Iterator[Finding]:
    """Lists the devices and reports a GPU that jax does not use."""
    import jax

    devices = jax.devices()
    yield Finding("devices", f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})")
    if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
        yield Finding(
            "gpu",
            "an NVIDIA driver is installed, but jax runs on the CPU",
            "install the CUDA extra: pip install 'hjepa_jax[cuda]'",
        )


def check_kernels() -> Iterator[Finding]:
    """Reports which convolutions CPU devices use."""
    from hjepa_jax.kernels.build import kernels
    from hjepa_jax.runtime.devices import on_cpu

    if on_cpu():
        found = kernels()
        fact = found.description if found else f"XLA's, slower: {found.description}"
        yield Finding("cpu kernels", fact)


def check_tensorflow() -> Iterator[Finding]:
    """Reports an installed TensorFlow, which is not needed but slows startup, as clu imports it."""
    found = importlib.util.find_spec("tensorflow") is not None
    yield Finding(
        "tensorflow",
        "installed (not needed, and slows startup)" if found else "not installed (not needed)",
    )


def check_disk(workdir: pathlib.Path) -> Iterator[Finding]:
    """Checks that checkpoints can be written, and the free disk space."""
    check_writable_folder(workdir, "--workdir", checkpoints=True, keep=False)
    folder = workdir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    low = free < 2
    yield Finding(
        "disk",
        f"{free:.1f} GiB free at {folder}",
        "less than 2 GiB: checkpoints may not fit; choose another --workdir" if low else None,
    )


def check_cache() -> Iterator[Finding]:
    """Reports where compiled programs are cached."""
    from hjepa_jax.runtime import compilation_cache

    folder = compilation_cache.enable()
    missing = "none, as there is no writable home folder, so every start compiles again; set "
    missing += "XDG_CACHE_HOME to a permanent folder to avoid that"
    yield Finding("cache", missing if folder is None else str(folder))


def check_shared_memory(settings: Settings) -> Iterator[Finding]:
    """Checks that the batches of worker processes fit into shared memory."""
    from hjepa_jax.data.pipeline import shared_memory_needed
    from hjepa_jax.data.sources.open import open_split
    from hjepa_jax.data.workers import blocks

    if not settings.data.num_workers:
        return
    blocks.remove_leftovers()
    needed, free = (
        shared_memory_needed(settings.data, open_split(settings, "train")),
        blocks.free_bytes(),
    )
    room = "unknown" if free is None else blocks.mib(free)
    fact = f"{room} free, {blocks.mib(needed)} needed by data.num_workers"
    yield Finding("shared memory", fact, blocks.shortage(needed))


def check_data(settings: Settings) -> Iterator[Finding]:
    """Opens both splits and decodes one image of each."""
    from hjepa_jax.data.sources.base import decode
    from hjepa_jax.data.sources.open import open_split

    for split in ("train", "test"):
        source = open_split(settings, split)
        image = decode(source.record(0))
        yield Finding(
            f"data {split}",
            f"{source.description}; the first is {image.shape[1]}x{image.shape[0]}, checksum "
            f"{source.fingerprint()}",
        )


def check_dry_run(settings: Settings) -> Iterator[Finding]:
    """Trains two steps of the configuration in a temporary folder."""
    from hjepa_jax.console import BOARD
    from hjepa_jax.train import train

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, BOARD.busy("dry run", covers=True):
        state = train(settings.replace({"train.max_steps": 2}), pathlib.Path(folder))
    seconds = time.perf_counter() - start
    yield Finding("dry run", f"{int(state.step)} steps in {seconds:.0f} s, including compilation")


def findings(config: ConfigDict | None, workdir: pathlib.Path) -> Iterator[Finding]:
    """Yields the findings of every check; a check that raises becomes a finding with its error."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", check_python),
        ("versions", check_versions),
        ("devices", check_devices),
        ("cpu kernels", check_kernels),
        ("tensorflow", check_tensorflow),
        ("disk", lambda: check_disk(workdir)),
        ("cache", check_cache),
    ]
    if config is not None:
        from hjepa_jax.training.automatic.resolved import resolved

        settings = functools.cache(lambda: resolved(config))

        def check_config() -> Iterator[Finding]:
            settings()
            yield Finding("config", "all fields are known, used and consistent")

        checks.append(("config", check_config))
        checks.append(("data", lambda: check_data(settings())))
        checks.append(("shared memory", lambda: check_shared_memory(settings())))
        checks.append(("dry run", lambda: check_dry_run(settings())))
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # the doctor reports whatever is broken and continues
            text = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            yield Finding(name, "failed", text)


def report(found: Iterator[Finding], stream: TextIO | None = None) -> bool:
    """Prints the findings as they arrive; returns False if there is a problem."""
    stream = stream or sys.stdout
    healthy = True
    for finding in found:
        healthy &= finding.remedy is None
        mark = "ok     " if finding.remedy is None else "problem"
        tail = "" if finding.remedy is None else f" -> {finding.remedy}"
        print(f"{mark}  {finding.subject}: {finding.fact}{tail}", file=stream, flush=True)
    return healthy


def main(argv: list[str]) -> None:
    """Prints the report and exits with 1 if there is a problem."""
    del argv
    from hjepa_jax.runtime import compilation_cache

    compilation_cache.enable()
    workdir = local_path(_WORKDIR.value, "--workdir")
    if not report(findings(_CONFIG.value, workdir)):
        sys.exit(1)


def run() -> None:
    """Entry point of `python -m hjepa_jax.tools.doctor`."""
    PROGRAM.run(main)


if __name__ == "__main__":
    run()

"""Compiles the C++ kernels for this machine's processor, once, and registers them with XLA.

The library is kept in the cache folder under the digest of all that it depends on. Where it cannot
be made (no compiler, or `HJEPA_JAX_NATIVE=off`), `kernels` says why and warns once, and the callers
compute with XLA's own operations: the same to float32 rounding, in up to twice the time.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hjepa_jax.runtime.compilation_cache import cache_folder, processor_tag
from hjepa_jax.runtime.devices import is_single_cpu

_SWITCH = "HJEPA_JAX_NATIVE"
_COMPILERS = ("c++", "g++", "clang++")
_ARM = platform.machine().lower() in ("arm64", "aarch64")
_PROCESSOR = "-mcpu=native" if _ARM else "-march=native"
_FLAGS = ("-std=c++17", "-O3", _PROCESSOR, "-ffp-contract=fast", "-fPIC", "-w")
_HANDLERS = (
    "hjepa_batch_norm",
    "hjepa_batch_norm_gradient",
    "hjepa_characteristic_function",
    "hjepa_convolution",
    "hjepa_convolution_input_gradient",
    "hjepa_convolution_kernel_gradient",
    "hjepa_merge_top_k",
)
_COMPILE_SECONDS = 300
_TEMPORARY = "hjepa_jax-native-"

_log = logging.getLogger("hjepa_jax")


class Kernels(NamedTuple):
    """What became of the native kernels.

    Attributes:
      suffix: of the handlers' registered names, '' where there are none: it changes with their
        source, so that a cached executable never calls another version.
      description: where they come from, or why there are none; a clause without a full stop.
    """

    suffix: str
    description: str

    def __bool__(self) -> bool:
        """Whether they can be called."""
        return bool(self.suffix)


class _Unavailable(Exception):
    """Why the kernels cannot be had."""


class _SwitchedOff(_Unavailable):
    """Because the user does not want them."""


@functools.cache
def kernels() -> Kernels:
    """Returns the native kernels of this process, compiled and registered at the first call."""
    library = None
    try:
        library, suffix, compiler = _library()
        loaded = ctypes.CDLL(str(library))
    except _SwitchedOff as error:
        return Kernels("", str(error))
    except (_Unavailable, OSError) as error:
        _log.warning(
            "No native CPU kernels, so that XLA's slower ones are used: %s. Mend that, or set "
            "%s=off to be told no more.",
            error,
            _SWITCH,
        )
        return Kernels("", str(error))
    finally:
        if library is not None and library.parent.name.startswith(_TEMPORARY):
            shutil.rmtree(library.parent, ignore_errors=True)  # once loaded, it is in memory
    for name in _HANDLERS:
        handler = jax.ffi.pycapsule(getattr(loaded, name))
        jax.ffi.register_ffi_target(name + suffix, handler, platform="cpu")
    return Kernels(suffix, f"compiled by {compiler}")


def use_native(work: float, least: float, *arrays: jax.Array) -> bool:
    """Returns whether the native kernels compute what is traced now.

    They do for float32 arrays, `work` of at least `least` (compiling and calling them must pay)
    and a single CPU device, where they can be had; they are compiled only if all else holds.
    """
    single = all(array.dtype == jnp.float32 for array in arrays)
    return single and work >= least and is_single_cpu() and bool(kernels())


def call(name: str, results: Any) -> Callable[..., Any]:
    """Returns the call of handler `hjepa_<name>` with the given results (`jax.ffi.ffi_call`).

    The kernels must be available.
    """
    return jax.ffi.ffi_call(f"hjepa_{name}{kernels().suffix}", results, vmap_method="sequential")


def _library() -> tuple[pathlib.Path, str, str]:
    """Returns (the library, the suffix of its handlers, the compiler's name); compiles if needed.

    Raises:
      _Unavailable: switched off, no compiler, or it fails.
      OSError: if the cache folder cannot be written.
    """
    if os.environ.get(_SWITCH, "").lower() in ("off", "0", "false"):
        raise _SwitchedOff(f"switched off by {_SWITCH}")
    named = os.environ.get("CXX")
    candidates = (named,) if named else _COMPILERS
    compiler = next((path for name in candidates if (path := shutil.which(name))), None)
    if compiler is None:
        raise _Unavailable(f"no C++ compiler ({', '.join(candidates)}) is on the PATH")
    version = _run([compiler, "--version"]).partition("\n")[0]
    source = pathlib.Path(__file__).parent / "csrc"
    files = sorted((*source.glob("*.h"), *source.glob("*.cc")))
    parts = [version, processor_tag(), *_FLAGS, *(path.read_text() for path in files)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    kept = cache_folder()
    # Without a cache it is compiled at every start.
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_TEMPORARY)) if kept is None else kept / "native"
    library = folder / f"{digest}.so"
    if not _is_intact(library):
        _compile(compiler, source, library)
    return library, f"_{digest}", version


def _checksum(library: pathlib.Path) -> pathlib.Path:
    return library.with_suffix(".sha256")


def _is_intact(library: pathlib.Path) -> bool:
    """Whether a library is what was compiled: one that is cut off would end the process."""
    try:
        expected = _checksum(library).read_text()
        return hashlib.sha256(library.read_bytes()).hexdigest() == expected
    except (OSError, ValueError):
        return False


def _compile(compiler: str, source: pathlib.Path, library: pathlib.Path) -> None:
    """Compiles the sources to `library`, which appears whole or not at all."""
    _log.info("compiling the CPU kernels, once for this machine")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        output = pathlib.Path(folder) / library.name
        objects = {path: output.with_name(f"{path.stem}.o") for path in source.glob("*.cc")}
        include = ["-isystem", jax.ffi.include_dir()]

        def compile_one(path: pathlib.Path) -> None:
            _run([compiler, *_FLAGS, *include, "-c", str(path), "-o", str(objects[path])])

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(compile_one, objects))
        _run([compiler, "-shared", *map(str, sorted(objects.values())), "-o", str(output)])
        checksum = _checksum(output)
        checksum.write_text(hashlib.sha256(output.read_bytes()).hexdigest())
        # Another process may have been as quick: the compiler makes the same of the same.
        os.replace(output, library)
        os.replace(checksum, _checksum(library))


def _run(command: list[str]) -> str:
    """Runs a command and returns its output.

    Raises:
      _Unavailable: if it fails; with its first line of error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise _Unavailable(f"{command[0]} fails: {lines[0].strip()}")
    return done.stdout

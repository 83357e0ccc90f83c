"""Compiles the C++ kernels for this machine's processor, once, and registers them with XLA.

Own code because the kernels are the hot path on CPUs: with XLA's operations a training step takes
2.8 to 6.3 times as long (benchmarks/RESULTS.md).

The library is kept in the cache folder, named by the digest of everything it depends on. If it
cannot be built (no compiler, or `HJEPA_JAX_NATIVE=off`), `kernels` warns once with the reason, and
callers use XLA's operations, which agree to float32 rounding.
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
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.runtime.compilation_cache import cache_folder, processor_tag
from hjepa_jax.runtime.devices import offer_cpu_forms, varying_alike

_SWITCH = "HJEPA_JAX_NATIVE"
_COMPILERS = ("c++", "g++", "clang++")
_ARM = platform.machine().lower() in ("arm64", "aarch64")
_PROCESSOR = "-mcpu=native" if _ARM else "-march=native"
_FLAGS = ("-std=c++17", "-O3", _PROCESSOR, "-ffp-contract=fast", "-fPIC", "-w")
_HANDLERS = (
    "hjepa_batch_norm",
    "hjepa_batch_norm_gradient",
    "hjepa_batch_norm_moments",
    "hjepa_batch_norm_sums",
    "hjepa_characteristic_function",
    "hjepa_convolution",
    "hjepa_convolution_input_gradient",
    "hjepa_convolution_kernel_gradient",
    "hjepa_layer_norm",
    "hjepa_layer_norm_gradient",
    "hjepa_merge_top_k",
)
_COMPILE_SECONDS = 300
_TEMPORARY = "hjepa_jax-native-"

_log = logging.getLogger("hjepa_jax")


class Kernels(NamedTuple):
    """The native kernels of this process, or why there are none.

    Attributes:
      suffix: suffix of every registered handler name; '' if there are none. It changes with the
        source, so that a cached executable never calls another version.
      description: which compiler built them, or why there are none; a clause without a period.
    """

    suffix: str
    description: str

    def __bool__(self) -> bool:
        """Returns whether the kernels can be called."""
        return bool(self.suffix)


class _Unavailable(Exception):
    """The kernels cannot be built or loaded; the message gives the reason."""


class _SwitchedOff(_Unavailable):
    """The user switched the kernels off."""


@functools.cache
def kernels() -> Kernels:
    """Returns the kernels of this process; the first call compiles and registers them."""
    library = None
    try:
        library, suffix, compiler = _library()
        loaded = ctypes.CDLL(str(library))
    except _SwitchedOff as error:
        return Kernels("", str(error))
    except (_Unavailable, OSError) as error:
        _log.warning(
            "No native CPU kernels, so XLA's slower operations are used: %s. Fix this, or set "
            "%s=off to silence this warning.",
            error,
            _SWITCH,
        )
        return Kernels("", str(error))
    finally:
        if library is not None and library.parent.name.startswith(_TEMPORARY):
            shutil.rmtree(library.parent, ignore_errors=True)  # a loaded library stays in memory
    for name in _HANDLERS:
        handler = jax.ffi.pycapsule(getattr(loaded, name))
        jax.ffi.register_ffi_target(name + suffix, handler, platform="cpu")
    return Kernels(suffix, f"compiled by {compiler}")


def use_native(work: float, least: float, *arrays: jax.Array) -> bool:
    """Returns whether to offer the native kernels to the computation being traced.

    The caller then passes both forms to `jax.lax.platform_dependent`, which takes the native one
    where the computation is lowered for the CPU. The kernels are compiled only if all other
    conditions hold, and never on a host that computes on accelerators.

    Args:
      work: size of the computation, in any unit.
      least: smallest work for which compiling and calling the kernels pays off.
      *arrays: the operands, which must be float32.

    Returns:
      True for enough work on float32 arrays of one device, on a CPU host with kernels.
    """
    is_float32 = all(array.dtype == jnp.float32 for array in arrays)
    return is_float32 and work >= least and offer_cpu_forms() and bool(kernels())


def call_native(
    name: str,
    operands: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    **attributes: np.generic | bool,
) -> tuple[jax.Array, ...]:
    """Calls the handler `hjepa_<name>`; the kernels must be available.

    Inside `jax.shard_map` the results vary over every axis that an operand varies over.

    Args:
      name: the handler's name without prefix and suffix.
      operands: the handler's arguments, in order.
      results: the shapes and dtypes of its results, in order.
      **attributes: the handler's attributes, of exactly the dtypes that it declares.

    Returns:
      The results.
    """
    target = f"hjepa_{name}{kernels().suffix}"
    operands = varying_alike(*operands)
    handler = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    # A sequence of result types gives a sequence of results.
    values = cast("Sequence[jax.Array]", handler(*operands, **attributes))
    return varying_alike(operands[0], *values)[1:]


def _library() -> tuple[pathlib.Path, str, str]:
    """Compiles the library unless it is cached.

    Returns:
      (the library's path, the suffix of its handlers, the compiler's version line).

    Raises:
      _Unavailable: if the kernels are switched off, there is no compiler, or it fails.
      OSError: if the cache folder is not writable.
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
    # Without a cache folder every process compiles.
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_TEMPORARY)) if kept is None else kept / "native"
    library = folder / f"{digest}.so"
    if not _is_intact(library):
        _compile(compiler, source, library)
    return library, f"_{digest}", version


def _checksum(library: pathlib.Path) -> pathlib.Path:
    return library.with_suffix(".sha256")


def _is_intact(library: pathlib.Path) -> bool:
    """Returns whether the library is undamaged; loading a truncated one would kill the process."""
    try:
        expected = _checksum(library).read_text()
        return hashlib.sha256(library.read_bytes()).hexdigest() == expected
    except (OSError, ValueError):
        return False


def _compile(compiler: str, source: pathlib.Path, library: pathlib.Path) -> None:
    """Compiles the sources to `library` atomically."""
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
        # Another process may have finished at the same time; its output is identical.
        os.replace(output, library)
        os.replace(checksum, _checksum(library))


def _run(command: list[str]) -> str:
    """Runs a command and returns its standard output.

    Raises:
      _Unavailable: if it fails; the message has its first error line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise _Unavailable(f"{command[0]} fails: {lines[0].strip()}")
    return done.stdout

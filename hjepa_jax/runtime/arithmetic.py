"""The section `runtime`: precision of products, and XLA's deterministic operations on GPUs."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import mmap
import os
import pathlib
from importlib.metadata import version

import jax
from jax._src import xla_bridge

from hjepa_jax.config.settings import MatmulPrecision, Runtime
from hjepa_jax.errors import UserError

_log = logging.getLogger(__name__)

_JAX_NAMES = {"tf32": "tensorfloat32", "highest": "highest"}
# It also turns autotuning off, which may choose other operations in the next process.
_FLAG = "xla_gpu_deterministic_ops"
_WANTED = f"--{_FLAG}=true"


def products(precision: MatmulPrecision) -> contextlib.AbstractContextManager[object]:
    """Traces products and convolutions that state no precision of their own with this one.

    It belongs to what is traced inside, and not to the process.

    Args:
      precision: `config.runtime.matmul_precision`; 'default' leaves JAX's own setting.
    """
    if precision == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(_JAX_NAMES[precision])


def set_up(runtime: Runtime, *, needed: bool = True) -> None:
    """Sets XLA's flags in this process's environment; called before the first use of a device.

    Args:
      runtime: the section of the configuration.
      needed: whether what cannot be set any more is an error, or only a warning.

    Raises:
      UserError: if a flag is needed and cannot take effect, or the installed jaxlib lacks it.
    """
    given = _given()
    if not runtime.deterministic or given in ("", "true", "1"):
        return
    if given is not None:
        raise UserError(
            f"config.runtime.deterministic is True, but XLA_FLAGS has --{_FLAG}={given}: remove "
            "that from XLA_FLAGS."
        )
    # JAX has no public name for this.
    if xla_bridge.backends_are_initialized():
        if jax.default_backend() == "gpu":
            _too_late(needed)
        return
    if not _is_known():
        raise UserError(
            f"config.runtime.deterministic is True, but the installed jaxlib {version('jaxlib')} "
            f"has no --{_FLAG}: set it to False, or install a version that 'hjepa doctor' lists."
        )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_WANTED}".strip()


def _given() -> str | None:
    """Returns the value of the flag in XLA_FLAGS, '' without one; None if it is not there."""
    found = None
    for argument in os.environ.get("XLA_FLAGS", "").split():
        name, _, value = argument.partition("=")
        if name.lstrip("-") == _FLAG:
            found = value.lower()
    return found


def _too_late(needed: bool) -> None:
    sentence = (
        "config.runtime.deterministic is True, but this process already uses its GPU, and XLA "
        f"reads its flags once: start Python with XLA_FLAGS={_WANTED}."
    )
    if needed:
        raise UserError(sentence)
    _log.warning("%s", sentence)


def _is_known() -> bool:
    """Returns whether jaxlib's code names the flag; XLA ends a process with an unknown flag."""
    found = importlib.util.find_spec("jaxlib")
    folders = [] if found is None else found.submodule_search_locations or []
    for library in (path for folder in folders for path in pathlib.Path(folder).glob("*.so")):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(_FLAG.encode()) >= 0:
                return True
    return False


def described(runtime: Runtime) -> str:
    """Returns what the section sets here, in a few words; '' if that is nothing."""
    precision, platform = runtime.matmul_precision, jax.default_backend()
    parts = [] if precision == "default" else [f"float32 products of the encoder in {precision}"]
    if runtime.deterministic and platform == "gpu":
        parts.append(f"deterministic operations (XLA_FLAGS={_WANTED})")
    elif runtime.deterministic:
        parts.append(f"deterministic operations, as always on a {platform.upper()}")
    return ", ".join(parts)

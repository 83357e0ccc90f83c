"""The persistent compilation cache: a second start does not compile again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax


def processor_tag() -> str:
    """Returns a short name of this processor's kind, jaxlib's version included.

    Code compiled for one processor can fail on another, and home folders are shared between
    machines.
    """
    parts = [platform.machine(), platform.processor(), importlib.metadata.version("jaxlib")]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def cache_folder() -> pathlib.Path:
    """Returns the folder of all that is kept between runs: `$XDG_CACHE_HOME/hjepa_jax`."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "hjepa_jax"


def enable() -> pathlib.Path:
    """Turns the cache on and returns its folder.

    The folder is jax's own setting (JAX_COMPILATION_CACHE_DIR) where one is given, else
    `$XDG_CACHE_HOME/hjepa_jax` (`~/.cache/hjepa_jax`).
    """
    settings: Any = jax.config
    given = settings.jax_compilation_cache_dir
    if given:
        return pathlib.Path(given)
    folder = cache_folder() / processor_tag()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder

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


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of all that is kept between runs: `$XDG_CACHE_HOME/hjepa_jax`.

    None where nothing can be kept: without a home folder, which a user number that no account
    belongs to (as in containers) does not have, or where it cannot be written to.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
        folder = base / "hjepa_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if folder.is_absolute() and os.access(folder, os.W_OK | os.X_OK) else None


def enable() -> pathlib.Path | None:
    """Turns the cache on and returns its folder, or None where there can be none.

    The folder is jax's own setting (JAX_COMPILATION_CACHE_DIR) where one is given, else
    `$XDG_CACHE_HOME/hjepa_jax` (`~/.cache/hjepa_jax`).
    """
    settings: Any = jax.config
    given = settings.jax_compilation_cache_dir
    if given:
        return pathlib.Path(given)
    kept = cache_folder()
    if kept is None:
        return None
    folder = kept / processor_tag()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder

"""The persistent compilation cache, which avoids recompilation at the next start."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform

import jax


def processor_tag() -> str:
    """Returns a short tag of this processor's model and jaxlib's version.

    Code compiled for one processor can fail on another, and machines may share home folders.
    """
    parts = [platform.machine(), platform.processor(), importlib.metadata.version("jaxlib")]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def cache_folder() -> pathlib.Path | None:
    """Returns the folder for files kept between runs, `$XDG_CACHE_HOME/hjepa_jax`.

    None if there is no home folder (a user id without an account, as in containers) or it is not
    writable.
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
    """Turns on the cache and returns its folder; None if no folder is usable.

    The folder is jax's own setting (JAX_COMPILATION_CACHE_DIR) if given, else
    `$XDG_CACHE_HOME/hjepa_jax` (`~/.cache/hjepa_jax`).
    """
    given = jax.config.values["jax_compilation_cache_dir"]
    if given:
        return pathlib.Path(given)
    kept = cache_folder()
    if kept is None:
        return None
    folder = kept / processor_tag()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder

"""Prints the newest other Python on this machine that the project supports, or an empty line.

setup.cfg names the supported versions. Pythons are looked for on PATH, and among pyenv's.
"""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Debian ships Pythons without ensurepip, which make no virtual environment.
CHECK = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"


def supported() -> list[str]:
    """Returns the versions of setup.cfg's classifiers, such as '3.11'."""
    parsed = configparser.ConfigParser()
    parsed.read_string((ROOT / "setup.cfg").read_text())
    found = re.findall(r":: Python :: (\d+\.\d+)$", parsed["metadata"]["classifiers"], re.M)
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def candidates(version: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yields programs that should be this version of Python."""
    for folder in environment.get("PATH", "").split(os.pathsep):
        found = shutil.which(f"python{version}", path=folder) if folder else None
        if found:
            yield found
    # Its programs on PATH are scripts that refuse a version which is not the chosen one.
    pyenv = pathlib.Path(environment.get("PYENV_ROOT", "/nowhere"))
    for folder in sorted(pyenv.glob(f"versions/{version}.*"), reverse=True):
        yield str(folder / "bin" / f"python{version}")


def works(program: str, version: str) -> bool:
    """Returns whether a program is this version of Python and can make virtual environments."""
    try:
        done = subprocess.run([program, "-c", CHECK], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def newest_other(default: str, environment: Mapping[str, str]) -> str | None:
    """Returns the program of the newest supported Python on the machine that is not `default`."""
    for version in reversed(supported()):
        for program in candidates(version, environment) if version != default else ():
            if works(program, version):
                return program
    return None


if __name__ == "__main__":
    print(newest_other(f"{sys.version_info.major}.{sys.version_info.minor}", os.environ) or "")

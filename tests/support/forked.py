"""Programs in processes forked from one that has imported the package, which takes seconds of CPU.

`run` stands for `subprocess.run` of `sys.executable` with its output captured: the program has
arguments, environment, working directory, output, and exit status of its own. One process for each
pytest worker waits to be forked; it has no threads of Python and has not started JAX's backend.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Read when the package or a library is imported, so that they cannot differ between programs.
_READ_AT_IMPORT = ("JAX_", "OPENBLAS_", "PYTHON", "TF_")


def run(
    *arguments: object,
    cwd: pathlib.Path = ROOT,
    timeout: float = 300.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program of Python.

    Args:
      *arguments: '-m' and a module, or a file, which `cwd` may be the start of; then what it is
        given.
      cwd: its working directory.
      timeout: seconds after which it is killed.
      env: variables that are set or changed, besides those of this process.

    Raises:
      subprocess.TimeoutExpired: if it takes longer than `timeout`.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    parent, started = _parent()
    differing = {
        name
        for name in environment.keys() | started.keys()
        if name.startswith(_READ_AT_IMPORT) and environment.get(name) != started.get(name)
    }
    assert not differing, f"{differing} are read at import: start a process without a fork"
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        given = list(map(str, arguments))
        request = {"argv": given, "cwd": str(cwd), "env": environment, "streams": streams}
        pid = _ask(parent, request)
        killer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        killer.start()
        code = _answer(parent)
        # An expired timer has no thread any more.
        expired = not killer.is_alive()
        killer.cancel()
        out, err = (pathlib.Path(path).read_text(errors="replace") for path in streams)
    if expired:
        raise subprocess.TimeoutExpired(given, timeout, out, err)
    return subprocess.CompletedProcess(given, code, out, err)


@functools.cache
def _parent() -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Returns the process that is forked, and the environment that it started with."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(parent.communicate)
    return parent, environment


def _ask(parent: subprocess.Popen[str], request: dict[str, Any]) -> int:
    assert parent.stdin is not None
    print(json.dumps(request), file=parent.stdin, flush=True)
    return _answer(parent)


def _answer(parent: subprocess.Popen[str]) -> int:
    assert parent.stdout is not None
    return int(parent.stdout.readline())


def _next_program() -> dict[str, Any] | None:
    """Forks at each request; returns it in the child, and None in the parent when all is done."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def _become(request: dict[str, Any]) -> None:
    """Makes this process the one of a program, and runs it."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in enumerate(request["streams"], 1):
        with open(path, "w") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdin = open(0)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    first, *rest = request["argv"]
    module, rest = (rest[0], rest[1:]) if first == "-m" else (None, rest)
    path = os.path.abspath(first)
    sys.path[0] = request["cwd"] if module else os.path.dirname(path)
    sys.argv = [path, *rest]
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(path, run_name="__main__")


def _end(code: int) -> NoReturn:
    """Ends as the interpreter does, but for freeing all objects, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    gc.freeze()  # pages that are not written to stay shared
    program = _next_program()
    if program is None:
        return
    code = 0
    try:
        _become(program)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    _end(code)


if __name__ == "__main__":
    import hjepa_jax.evaluate
    import hjepa_jax.train  # noqa: F401

    # Besides those of OpenBLAS, which restarts its own in a child.
    assert threading.active_count() == 1
    main()

"""Runs seeded odd inputs against the package and classifies the outcomes.

    python -m hjepa_jax.tools.fuzz TARGET --seed=0 --count=1000

An attempt is refused with an error message (a UserError), or right (its result passed a check).
Anything else is a defect of the package: a traceback, a hang, a crash, or too much memory; the exit
status is then 1. An attempt depends only on target, seed and number, so `--first=N --count=1`
repeats number N.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

# Module of each target; worker.py says what it must define.
TARGETS: dict[str, str] = {
    "data": "hjepa_jax.tools.fuzz.data",
    "runs": "hjepa_jax.tools.fuzz.runs",
    "images": "hjepa_jax.tools.fuzz.images",
    "reports": "hjepa_jax.tools.fuzz.reports",
    "settings": "hjepa_jax.tools.fuzz.settings",
    "torch": "hjepa_jax.tools.fuzz.torch",
}


@dataclasses.dataclass
class Report:
    """The outcomes of the attempts.

    Attributes:
      tried: number of attempts.
      refused: number refused with an error message.
      right: number accepted with the right result.
      other: a line for each attempt with another outcome, which is a defect.
    """

    tried: int = 0
    refused: int = 0
    right: int = 0
    other: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"tried {self.tried}: {self.refused} refused with a message, {self.right} right, "
            f"{len(self.other)} defects"
        )
        return "\n".join([head, *(f"  {line}" for line in self.other)])


class _Worker:
    """A process that makes attempts, which isolates the fuzzer from their crashes and hangs."""

    def __init__(self, module: str):
        command = [sys.executable, "-m", "hjepa_jax.tools.fuzz.worker", module]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def ask(self, request: dict[str, object]) -> None:
        """Sends a request; if the worker has died, `reply` shows it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self, seconds: float) -> dict[str, Any] | None:
        """Returns the next reply, or None if the process ended.

        Raises:
          queue.Empty: if there is none within `seconds`.
        """
        line = self._lines.get(timeout=seconds)
        return json.loads(line) if line else None

    def death(self) -> str:
        """Describes how the process ended, with its last line on stderr."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the process died ({how}) {lines[-1] if lines else ''}".strip()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def run(module: str, *, seed: int, count: int, first: int = 0, seconds: float = 30.0) -> Report:
    """Makes attempts `first` to `first + count` of a target.

    Args:
      module: dotted name of the target's module.
      seed: seed of all attempts.
      count: number of attempts.
      first: number of the first attempt.
      seconds: time limit of one attempt.

    Returns:
      The outcomes.
    """
    report = Report()
    worker = None
    try:
        for number in range(first, first + count):
            if worker is None:
                worker = _Worker(module)
                assert worker.reply(120.0) is not None, worker.death()
            with tempfile.TemporaryDirectory(
                prefix="hjepa_jax_fuzz_", ignore_cleanup_errors=True
            ) as folder:
                worker.ask({"seed": seed, "number": number, "folder": folder})
                alive = _attempt(worker, report, number, seconds)
            if not alive:
                worker.close()
                worker = None
    finally:
        if worker is not None:
            worker.close()
    return report


def _attempt(worker: _Worker, report: Report, number: int, seconds: float) -> bool:
    """Counts one attempt; returns whether its worker can make another."""
    report.tried += 1
    about = f"number {number}"
    try:
        reply = worker.reply(seconds)
        if reply is not None:
            about = f"number {number} ({reply['about']})"
            reply = worker.reply(seconds)
    except queue.Empty:
        report.other.append(f"{about}: not finished within {seconds:g} s")
        return False
    if reply is None:
        report.other.append(f"{about}: {worker.death()}")
        return False
    if reply["outcome"] == "other":
        report.other.append(f"{about}: {reply['what']}")
    else:
        setattr(report, reply["outcome"], getattr(report, reply["outcome"]) + 1)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Runs a target from the command line; exits with 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt")
    parser.add_argument("--seconds", type=float, default=30.0, help="time limit of one attempt")
    parser.add_argument("--out", type=pathlib.Path, help="also write the report to this file")
    given = parser.parse_args(arguments)
    report = run(
        TARGETS[given.target],
        seed=given.seed,
        count=given.count,
        first=given.first,
        seconds=given.seconds,
    )
    print(report)
    if given.out:
        given.out.write_text(f"{report}\n")
    sys.exit(1 if report.other else 0)


if __name__ == "__main__":
    main()

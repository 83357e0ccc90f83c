"""The progress of a download: a bar at a terminal, a few log lines elsewhere."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_log = logging.getLogger(__name__)
_SHARE = 0.1


def megabytes(size: int | None) -> str:
    """Returns a size in MB (10^6 bytes) for messages."""
    return "an unknown number of bytes" if size is None else f"{size / 1e6:,.1f} MB"


class Display:
    """Shows how much of a file has arrived."""

    def __init__(self, name: str):
        """Sets the name of the file."""
        self._name = name
        self._next = 0.0
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, received: int, total: int | None) -> None:
        """Shows the bytes received, of `total` if that is known."""
        if self._bar is not None:
            self._bar.update(self._task, completed=received, total=total)
        elif total and received >= self._next * total:
            _log.info("%s: %s of %s", self._name, megabytes(received), megabytes(total))
            self._next = (received // (total * _SHARE) + 1) * _SHARE

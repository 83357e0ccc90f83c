"""The sides of `benchmarks/train_step.py --devices N`: a batch that N devices or processes share.

Each side has processes of its own, which wait while another has its turn: one process with N of
jax's CPU devices, or N processes on the loopback interface, by jax or by PyTorch's
DistributedDataParallel over gloo. Every device has one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

_HOST = "127.0.0.1"
# Before what a worker answers; libraries may print other lines.
_ANSWER = "@ "


class Side(NamedTuple):
    """One way to share a batch.

    Attributes:
      library: 'hjepa_jax', 'PyTorch DDP', or 'PyTorch DDP channels-last'.
      processes: number of processes.
      batch_norm: 'global' or 'local' statistics.
    """

    library: str
    processes: int
    batch_norm: str

    @property
    def name(self) -> str:
        """The row's first cells."""
        how = "in one process" if self.processes == 1 else f"in {self.processes} processes"
        return f"{self.library} {how} | {self.batch_norm}"


def sides(devices: int, batch_norms: Sequence[str]) -> Iterator[Side]:
    """Yields those that can run here, the reference of each kind of batch norm first."""
    torch = (
        ("PyTorch DDP", "PyTorch DDP channels-last") if importlib.util.find_spec("torch") else ()
    )
    for batch_norm in batch_norms:
        yield Side("hjepa_jax", 1, batch_norm)
        yield Side("hjepa_jax", devices, batch_norm)
        for library in torch:
            yield Side(library, devices, batch_norm)


class Workers:
    """The processes of a side; calling it does steps in all of them and returns the loss."""

    def __init__(self, side: Side, devices: int, given: pathlib.Path) -> None:
        """Starts them and waits until each has done its first step.

        Args:
          side: how they share the batch.
          devices: number of devices.
          given: a file with what `work` reads.

        Raises:
          RuntimeError: if one ends before it has.
        """
        with socket.socket() as free:
            free.bind((_HOST, 0))
            address = f"{_HOST}:{free.getsockname()[1]}"
        here = devices // side.processes
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(here),
            # Threads of XLA's CPU client, and those of torch and of LAPACK.
            "NPROC": str(here),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.side, self._processors = side, [0.0] * side.processes
        self._workers = [
            subprocess.Popen(
                [sys.executable, __file__, json.dumps(side), str(rank), address, str(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(side.processes)
        ]
        self.first_loss = self._answers()

    def __call__(self, count: int = 1) -> float:
        """Does `count` steps and returns the loss of the last."""
        for worker in self._workers:
            _open(worker.stdin).write(f"{count}\n")
            _open(worker.stdin).flush()
        return self._answers()

    def processor(self) -> float:
        """Returns the seconds of processor time that all of them had spent at their last step."""
        return sum(self._processors)

    def close(self) -> None:
        """Ends them."""
        for worker in self._workers:
            _open(worker.stdin).close()
        for worker in self._workers:
            worker.wait(timeout=60)

    def _answers(self) -> float:
        loss = float("nan")
        for rank, worker in enumerate(self._workers):
            for line in _open(worker.stdout):
                if line.startswith(_ANSWER):
                    self._processors[rank], loss = json.loads(line.removeprefix(_ANSWER))
                    break
            else:
                raise RuntimeError(f"process {rank} of {self.side} ended: see its error above")
        return loss


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@contextlib.contextmanager
def started(
    batch_norms: Sequence[str], devices: int, args: argparse.Namespace, start: dict[str, Any]
) -> Iterator[dict[str, Workers]]:
    """The workers of all sides by name.

    Args:
      batch_norms: kinds of statistics.
      devices: number of devices.
      args: of `benchmarks/train_step.py`, with `batch` as one number.
      start: what PyTorch starts from, the arguments of `TorchStep`.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        given = pathlib.Path(folder) / "given.pickle"
        given.write_bytes(pickle.dumps((args, start)))
        workers = {}
        for side in sides(devices, batch_norms):
            workers[side.name] = Workers(side, devices, given)
            stack.callback(workers[side.name].close)
        yield workers


def work(side: Side, rank: int, address: str, given: pathlib.Path) -> None:
    """Runs in each process of a side: does as many steps as each line says."""
    train_step = importlib.import_module("train_step")
    # Written by this benchmark's own process.
    args, start = pickle.loads(given.read_bytes())
    config = train_step.configured(args, args.batch)
    config.model.batch_norm = side.batch_norm
    views = train_step.random_views(config)
    if side.library == "hjepa_jax":
        distributed = importlib.import_module("hjepa_jax.runtime.distributed")
        if side.processes > 1:
            distributed.start(distributed.Cluster(address, side.processes, rank))
        size = views.shape[1] // side.processes
        own = views[:, rank * size : (rank + 1) * size]
        step = train_step.our_runner(config, own, contextlib.nullcontext())[0]
    else:
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://{address}", rank=rank, world_size=side.processes
        )
        channels_last = side.library.endswith("last")
        torch_step = importlib.import_module("torch_step")
        step = torch_step.TorchStep(config, views=views, channels_last=channels_last, **start)
    count = 1
    while count:
        loss = step(count)
        print(_ANSWER + json.dumps([time.process_time(), loss]), flush=True)
        count = int(sys.stdin.readline() or 0)


if __name__ == "__main__":
    work(Side(*json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4]))

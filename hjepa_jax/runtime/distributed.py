"""Several processes as one program: start-up through jax.distributed, agreement, joint shutdown.

Every process runs the same command. Their number and roles come from flags, from the environment
(JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or from SLURM or Open MPI.

Launchers are not left to jax's own detection: it gives a task alone on its node a single GPU, waits
for tasks that an interactive shell never started, and does not know Open MPI 5.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from hjepa_jax.config import Settings, may_differ_between_processes
from hjepa_jax.errors import ConfigError, UserError, first_line
from hjepa_jax.runtime import rendezvous

_log = logging.getLogger(__name__)

# A process without a heartbeat for this long is considered dead, and the others exit.
HEARTBEAT_SECONDS = 30
# Timeout for jax's start-up, once all processes have met.
_CONNECT_SECONDS = 60
# At the end the others wait for process 0, which draws the evaluation's figures.
_END_SECONDS = 1800
# jax ends every process once process 0 is gone, so it gives the others time to report first.
_LAST_WORDS_SECONDS = 3.0
# Texts in jax's errors after another process has exited.
_LOST_PEER = re.compile(
    r"gloo|nccl|coordination|connection (closed|reset)|heartbeat", re.IGNORECASE
)

# Flag -> environment variable.
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_EXAMPLE = "--coordinator_address=HOST:PORT --num_processes=2 --process_id=0"


class Cluster(NamedTuple):
    """This process among the others.

    Attributes:
      coordinator_address: 'host:port' where process 0 listens.
      num_processes: number of processes, at least 2.
      process_id: number of this process, from 0.
      local_device_ids: this process's GPUs on its machine; None = all visible ones.
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


class _Launched(NamedTuple):
    """What a launcher reports about this process.

    Attributes:
      values: values by name in `_VARIABLES`.
      number_here: index of this process on its machine, from 0.
      tasks_here: number of processes on this machine.
    """

    values: Mapping[str, str | int]
    number_here: int
    tasks_here: int


def _whole_number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}, which is not a whole number.") from None


def _explicit(
    given: Mapping[str, str | int | None], environ: Mapping[str, str]
) -> dict[str, str | int]:
    """Returns the values of flags and JAX's variables, which must not contradict each other."""
    found: dict[str, str | int] = {}
    for name, variable in _VARIABLES.items():
        flag, value = given.get(name), environ.get(variable)
        if value is not None and name != "coordinator_address":
            value = _whole_number(value, variable)
        if flag is not None and value is not None and flag != value:
            raise UserError(
                f"--{name}={flag} contradicts {variable}={value} in the environment: give only one "
                f"of them."
            )
        chosen = value if flag is None else flag
        if chosen is not None:
            found[name] = chosen
    return found


def _first_host(nodes: str) -> str:
    """Returns the first host of a SLURM node list such as 'gpu[001-004,007],login1'."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host.")
    return "".join(part or "" for part in match.groups())


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Returns the tasks of the SLURM step on this node, from a list such as '4(x2),1'."""
    counts: list[int] = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    ):
        counts += [int(count)] * int(times or 1)
    return counts[min(int(environ.get("SLURM_NODEID", 0)), len(counts) - 1)]


def _slurm(environ: Mapping[str, str]) -> _Launched | None:
    """Returns what SLURM reports about a step of several tasks; None without one."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    # In an interactive shell of an allocation, SLURM_NTASKS counts tasks that were never started.
    count = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    if count < 2 or any(name not in environ for name in needed):
        return None
    # Ports above 61439 are ephemeral; the job number distinguishes jobs.
    port = environ.get("JAX_COORDINATOR_PORT") or 61440 + int(environ["SLURM_JOB_ID"]) % 4096
    values = {
        "coordinator_address": f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{port}",
        "num_processes": count,
        "process_id": int(environ["SLURM_PROCID"]),
    }
    return _Launched(values, int(environ["SLURM_LOCALID"]), _tasks_here(environ))


def _open_mpi(environ: Mapping[str, str]) -> _Launched | None:
    """Returns what Open MPI's mpirun reports, except the coordinator's address; None without it."""
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) < 2:
        return None
    values = {
        "num_processes": int(environ["OMPI_COMM_WORLD_SIZE"]),
        "process_id": int(environ["OMPI_COMM_WORLD_RANK"]),
    }
    number, tasks = (int(environ[f"OMPI_COMM_WORLD_LOCAL_{name}"]) for name in ("RANK", "SIZE"))
    return _Launched(values, number, tasks)


def _local_devices(launched: _Launched, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the GPU of a task that shares its machine: one per task, in order."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    bound = visible is not None and "," not in visible
    if launched.tasks_here == 1 or bound or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    return (launched.number_here,)


def find_cluster(
    given: Mapping[str, str | int | None], environ: Mapping[str, str]
) -> Cluster | None:
    """Determines this process's role among several; None for a single process.

    Args:
      given: values of the flags 'coordinator_address', 'num_processes' and 'process_id'; None for
        those not given.
      environ: the environment variables.

    Raises:
      UserError: if a value is missing, contradictory or invalid.
    """
    explicit = _explicit(given, environ)
    launched = _slurm(environ) or _open_mpi(environ)
    values = {**(launched.values if launched else {}), **explicit}
    alone = values.get("num_processes") == 1 and values.get("process_id", 0) == 0
    if not values or alone:
        return None
    missing = [name for name in _VARIABLES if name not in values]
    if missing:
        raise UserError(
            f"{' and '.join(f'--{name}' for name in missing)} missing: several processes need all "
            f"three flags ({_EXAMPLE}) or their variables ({', '.join(_VARIABLES.values())})."
        )
    address = str(values["coordinator_address"])
    count, number = int(values["num_processes"]), int(values["process_id"])
    if not re.fullmatch(r"\S+:\d+", address):
        raise UserError(
            f"--coordinator_address is {address!r}: it must be host:port of process 0, "
            "for example node1:51234."
        )
    if not 0 <= number < count:
        raise UserError(
            f"--process_id is {number}, but with --num_processes={count} it must lie in "
            f"0..{count - 1}."
        )
    # With explicit process numbers, SLURM's assignment of GPUs no longer applies.
    if launched is None or "process_id" in explicit:
        return Cluster(address, count, number)
    return Cluster(address, count, number, _local_devices(launched, environ))


def start(cluster: Cluster) -> None:
    """Joins the other processes; must be called before any use of a device.

    Raises:
      UserError: if the processes do not meet or have different numbers of devices.
    """
    if jax.config.values["jax_cpu_collectives_implementation"] is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = f"process {cluster.process_id} of {cluster.num_processes}"
    address = cluster.coordinator_address
    rendezvous.meet(address, cluster.num_processes, cluster.process_id)
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
            coordinator_bind_address=rendezvous.bind_address(address),
        )
    except RuntimeError as error:
        raise UserError(
            f"{who} could not join the others at {address}: {_first_line(error)}."
        ) from error
    local, total = jax.local_device_count(), jax.device_count()
    if local * cluster.num_processes != total:
        raise UserError(
            f"{who} has {local} of {total} devices: every process must have the same number."
        )
    _log.info("%s, %d of %d devices", who, local, total)


def is_primary() -> bool:
    """Returns whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def check_same(values: Mapping[str, object], remedy: str) -> None:
    """Compares each value between the processes; all of them must call this.

    Args:
      values: anything with a repr, by name; the same names in every process.
      remedy: what to do, the end of the error message.

    Raises:
      UserError: naming the values that differ, with their values here.
    """
    if jax.process_count() == 1:
        return
    digests = np.array([zlib.crc32(repr(v).encode()) for v in values.values()], np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(digests))
    same = (gathered == gathered[:1]).all(axis=0)
    differing = [f"{name} ({values[name]!r:.200} here)" for name, s in zip(values, same) if not s]
    if differing:
        raise UserError(f"the processes differ in {', '.join(differing)}: {remedy}.")


def check_same_config(settings: Settings, flags: Mapping[str, object] | None = None) -> None:
    """Compares the configuration and flags between the processes; all of them must call this.

    Raises:
      ConfigError: if they differ.
    """
    fields = {
        f"config.{name}": value
        for name, value in settings.values().items()
        if not may_differ_between_processes(name, settings)
    }
    try:
        check_same({**fields, **(flags or {})}, "start all of them with the same command")
    except UserError as error:
        raise ConfigError(str(error)) from None


def wait_for_all(name: str) -> None:
    """Waits until every process has reached this point, described by `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def sum_over_processes(count: int) -> int:
    """Returns the sum of every process's `count`; all of them must call this."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.array(count, np.int32))))


def _first_line(error: BaseException) -> str:
    return first_line(error, 300) or type(error).__name__


def _describe(error: BaseException) -> str:
    """Returns the message that a failed process prints."""
    if isinstance(error, Exception) and _LOST_PEER.search(str(error)):
        return (
            f"communication with the other processes failed ({_first_line(error)}): one of them "
            f"has exited, see its output; then start all of them again, and the run continues from "
            f"its "
            "newest checkpoint."
        )
    return str(error) if isinstance(error, UserError) else f"it failed with {error!r:.300}"


@contextlib.contextmanager
def session(cluster: Cluster | None) -> Iterator[None]:
    """Runs its body as one of several processes that exit together; does nothing for None.

    A process that fails exits at once with a message on stderr and status 1, instead of waiting for
    the others at jax's final barrier. The others exit when their next exchange with it fails, or
    after HEARTBEAT_SECONDS at the latest, by jax.
    """
    if cluster is None:
        yield
        return
    try:
        start(cluster)
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise  # an orderly exit, which all processes reach
        if not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
            traceback.print_exception(error)
        who = f"process {cluster.process_id} of {cluster.num_processes}"
        print(f"hjepa_jax: {who}: {_describe(error)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if cluster.process_id == 0:
            time.sleep(_LAST_WORDS_SECONDS)
        # A normal interpreter exit would wait for the others, which wait for this process.
        os._exit(1)

"""Rendezvous of a run's processes before jax starts, to report problems early and clearly.

jax's own start-up waits for minutes and then aborts if the address is wrong, the port is taken or a
process is missing. Here process 0 listens at the address first, the others announce themselves, and
once all have arrived, or one is wrong, process 0 notifies everyone.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import time

from hjepa_jax.errors import UserError
from hjepa_jax.storage.schema import JsonValue

_log = logging.getLogger(__name__)

_VARIABLE = "HJEPA_JAX_CONNECT_SECONDS"
_SECONDS = 45.0
# A process without a reply for this long is connected to something else.
_WELCOME_SECONDS = 10.0
_HELLO_SECONDS = 2.0
_RETRY_SECONDS = 0.1
_REMIND_SECONDS = 15.0
_ADDRESS = "--coordinator_address must be host:port of process 0"


def patience() -> float:
    """Returns the seconds that processes wait for each other; HJEPA_JAX_CONNECT_SECONDS sets them.

    Raises:
      UserError: if that variable is not a positive number.
    """
    text = os.environ.get(_VARIABLE)
    try:
        seconds = _SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"{_VARIABLE} is {text!r}: it must be a number of seconds above 0.")
    return seconds


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not 0 < int(port) < 2**16:
        raise UserError(f"{_ADDRESS}, but {address!r} has a port outside 1..65535.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind_address(address: str) -> str | None:
    """Returns the address process 0 listens on, for an IP address or 'localhost'.

    None means all of its addresses: a host name may resolve differently on each machine.
    """
    host, _ = _parts(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return address if host == "localhost" else None
    return address


def _listen(address: str) -> socket.socket:
    """Returns a listening socket at the coordinator's address.

    Raises:
      UserError: if it is taken or not this machine's.
    """
    host, port = _parts(address)
    try:
        if bind_address(address) is None:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=dual, backlog=1024
            )
        failure: OSError | None = None
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                return socket.create_server(place[:2], family=family, backlog=1024)
            except OSError as error:
                if failure is None or error.errno == errno.EADDRINUSE:
                    failure = error
        raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except OSError as error:
        raise UserError(f"process 0 cannot listen at {address}: {_cause(error)}") from error


def _cause(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "its port is taken. Give all processes another port, or stop its current user."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine does not have that address. {_ADDRESS}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "it may not use that port. Give all processes one above 1024."
    return f"{error.strerror or error}. {_ADDRESS}."


def _send(connection: socket.socket, **message: JsonValue) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, seconds: float) -> dict[str, JsonValue] | None:
    """Returns the next message; None if the other side closed or sent something else.

    Raises:
      TimeoutError: if nothing arrived in time.
    """
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        # Byte by byte, because the following bytes belong to the next message.
        byte = connection.recv(1)
        if not byte or len(line) > 10_000:
            return None
        line += byte
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _is_gone(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _drop_gone(here: dict[int, socket.socket]) -> dict[int, socket.socket]:
    """Drops processes that have exited since they connected; they may connect again."""
    for number in [number for number, connection in here.items() if _is_gone(connection)]:
        del here[number]
    return here


class _Reminder:
    """Logs once that a process is still waiting."""

    def __init__(self, sentence: str):
        self._sentence, self._at = sentence, time.monotonic() + _REMIND_SECONDS

    def check(self) -> None:
        if time.monotonic() > self._at:
            self._at = float("inf")
            _log.warning("%s", self._sentence)


def _host(address: str, count: int) -> None:
    """Waits for all the others, as process 0."""
    seconds = patience()
    here: dict[int, socket.socket] = {}
    reminder = _Reminder(f"process 0 of {count} still waits for the others at {address}")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(address))
        deadline = time.monotonic() + seconds
        failure = ""
        while not failure and len(_drop_gone(here)) < count - 1:
            reminder.check()
            if time.monotonic() > deadline:
                missing = [str(number) for number in range(1, count) if number not in here]
                failure = (
                    f"of {count} processes, number {', '.join(missing)} did not connect to "
                    f"{address} within {seconds:.0f} s: check their output, and whether they can "
                    f"reach that address; {_VARIABLE} sets a longer timeout"
                )
                break
            listener.settimeout(_RETRY_SECONDS)
            try:
                connection = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                continue
            failure = _admit(connection, here, count)
        for connection in here.values():
            with contextlib.suppress(OSError):
                connection.settimeout(_HELLO_SECONDS)
                _send(connection, go=not failure, error=failure)
        if failure:
            raise UserError(f"{failure}.")


def _admit(connection: socket.socket, here: dict[int, socket.socket], count: int) -> str:
    """Registers a connecting process; returns what is wrong with the group, or ''."""
    try:
        hello = _receive(connection, _HELLO_SECONDS)
    except OSError:
        return ""
    number, theirs = (hello or {}).get("hjepa_jax"), (hello or {}).get("count")
    if not isinstance(number, int) or not isinstance(theirs, int):
        return ""  # not a process of this run
    with contextlib.suppress(OSError):
        _send(connection, welcome=True)
    failure = ""
    if theirs != count:
        failure = (
            f"process 0 was started with --num_processes={count}, but process {number} with "
            f"{theirs}: start all of them with the same number"
        )
    elif number == 0 or number in _drop_gone(here):
        failure = f"two processes have --process_id={number}: each must have its own"
    if failure:
        with contextlib.suppress(OSError):
            _send(connection, go=False, error=failure)
    else:
        here[number] = connection
    return failure


def _join(address: str, count: int, number: int) -> None:
    """Reports to process 0 and waits until all processes have arrived."""
    seconds, who = patience(), f"process {number} of {count}"
    begun = time.monotonic()
    reminder = _Reminder(f"{who} still waits for process 0 at {address}")
    cause = "nothing answers there"
    while (left := begun + seconds - time.monotonic()) > 0:
        reminder.check()
        try:
            connection = socket.create_connection(_parts(address), timeout=min(left, 5.0))
        except OSError as error:
            cause = (
                "that host name does not exist"
                if isinstance(error, socket.gaierror)
                else f"nothing answers there ({error.strerror or error})"
            )
            time.sleep(_RETRY_SECONDS)
            continue
        with connection:
            try:
                _send(connection, hjepa_jax=number, count=count)
                welcome = _receive(connection, _WELCOME_SECONDS)
                if welcome is not None and "welcome" in welcome:
                    answer = _receive(connection, seconds + _WELCOME_SECONDS) or {}
                    if answer.get("go"):
                        return
                    if "error" in answer:
                        raise UserError(f"{who}: {answer['error']}.")
                    cause = "process 0 has exited"
                else:
                    cause = "something other than process 0 of this run answers there"
            except TimeoutError:
                cause = "something other than process 0 of this run listens there"
                break
            except OSError as error:
                cause = f"process 0 has exited ({error.strerror or error})"
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"{who} did not find process 0 at {address} within {time.monotonic() - begun:.0f} s: "
        f"{cause}. {_ADDRESS}, which must be running; {_VARIABLE} sets a longer timeout."
    )


def meet(address: str, count: int, number: int) -> None:
    """Waits until all processes of the run have arrived.

    Args:
      address: 'host:port' of process 0.
      count: number of processes.
      number: number of this process, from 0.

    Raises:
      UserError: within `patience` seconds, in every process that arrived, if one is missing or
        wrong.
    """
    if number == 0:
        _host(address, count)
    else:
        _join(address, count, number)

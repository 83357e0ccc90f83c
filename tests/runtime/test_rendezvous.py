"""How the processes of a run meet, and what they say when they do not."""

import concurrent.futures
import contextlib
import socket
import time

import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.runtime import distributed, rendezvous
from hjepa_jax.runtime.distributed import Cluster
from tests.runtime.test_distributed import free_port

GUARD = 60


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setenv("HJEPA_JAX_CONNECT_SECONDS", "1.5")
    monkeypatch.setattr(rendezvous, "_WELCOME_SECONDS", 1.0)


def together(address: str, *each: tuple[int, int]) -> list[str]:
    """Lets processes (count, number) meet; returns what each of them says, '' if all is well."""

    def one(count: int, number: int) -> str:
        try:
            rendezvous.meet(address, count, number)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(each)) as pool:
        waiting = [pool.submit(one, *process) for process in each]
        return [future.result(timeout=GUARD) for future in waiting]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", socket.gethostname()])
def test_processes_meet_in_any_order_and_leave_the_port_free(host) -> None:
    address = f"{host}:{free_port()}"
    for _ in range(2):  # a resumed run takes the same port at once
        assert together(address, (3, 2), (3, 0), (3, 1)) == [""] * 3


def test_a_taken_port_and_one_that_says_nothing_are_sentences() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        first, second = together(address, (2, 0), (2, 1))
    assert first == (
        f"process 0 cannot listen at {address}: its port is taken. Give all processes another "
        "port, or stop its current user."
    )
    assert f"process 1 of 2 did not find process 0 at {address}" in second
    assert "something other than process 0 of this run listens there" in second


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "nothing answers there"),
        ("no-such-host.invalid", "that host name does not exist"),
    ],
)
def test_nobody_at_the_address_is_a_sentence(host, words) -> None:
    (said,) = together(f"{host}:{free_port()}", (2, 1))
    assert words in said
    assert "--coordinator_address must be host:port of process 0" in said


def test_an_address_of_another_machine_is_a_sentence() -> None:
    (said,) = together(f"192.0.2.1:{free_port()}", (2, 0))  # reserved for documentation
    assert "this machine does not have that address" in said
    (said,) = together("127.0.0.1:65536", (2, 0))
    assert "a port outside 1..65535" in said


def test_missing_processes_are_named_to_those_that_came() -> None:
    said = together(f"127.0.0.1:{free_port()}", (4, 0), (4, 2))
    for sentence in said:
        assert "of 4 processes, number 1, 3 did not connect" in sentence


def test_numbers_given_twice_or_of_another_run_are_told_to_all() -> None:
    address = f"127.0.0.1:{free_port()}"
    said = together(address, (3, 0), (3, 1), (3, 1))
    assert sum("two processes have --process_id=1" in sentence for sentence in said) == 3
    said = together(address, (2, 0), (3, 1))
    for sentence in said:
        assert "--num_processes=2, but process 1 with 3" in sentence


def test_a_process_that_died_while_waiting_may_come_again() -> None:
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 3, 0)
        for attempt in (b'{"hjepa_jax": 1, "count": 3}\n', b"GET / HTTP/1.0\r\n\r\n", b""):
            until = time.monotonic() + GUARD
            while time.monotonic() < until:
                with contextlib.suppress(ConnectionRefusedError):
                    with socket.create_connection(("127.0.0.1", port)) as connection:
                        connection.sendall(attempt)
                    break
        others = [pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 3, 2)]
        time.sleep(0.3)  # with the one that died, all would be there
        others.append(pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 3, 1))
        for future in (first, *others):
            future.result(timeout=GUARD)


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("[::1]:5", "[::1]:5"),
        ("localhost:5", "localhost:5"),
        ("node1:5", None),
    ],
)
def test_jax_listens_at_the_address_as_given(monkeypatch, address, bound) -> None:
    given = {}
    monkeypatch.setattr(rendezvous, "meet", lambda *_: None)
    monkeypatch.setattr("jax.distributed.initialize", lambda **all: given.update(all))
    monkeypatch.setattr("jax.device_count", lambda: 2)
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    distributed.start(Cluster(address, 2, 0))
    assert given["coordinator_bind_address"] == bound
    assert given["coordinator_address"] == address


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf"])
def test_an_odd_patience_is_a_sentence(monkeypatch, text) -> None:
    monkeypatch.setenv("HJEPA_JAX_CONNECT_SECONDS", text)
    with pytest.raises(UserError, match="HJEPA_JAX_CONNECT_SECONDS"):
        rendezvous.patience()

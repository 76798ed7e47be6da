"""agent/sockets.py and what a process sees at a path: real sockets, and processes in mount namespaces of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent import processes, sockets

LISTENER = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listens", flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def _start(*words: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"listens\n"
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)
    assert process.stdout
    process.stdout.close()


@pytest.fixture
def hidden(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens in a mount of its own at `place`."""
    script = f'mount -t tmpfs tmpfs "{place}"; ln -s "{place}" "{place}/self"; exec "$@"'
    process = _start("unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", LISTENER, f"{place}/s")
    yield process
    _end(process)


@pytest.fixture
def plain(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = _start(sys.executable, "-c", LISTENER, f"{place}/s")
    yield process
    _end(process)


def test_a_socket_in_a_mount_that_only_the_server_sees_is_reached(hidden, place):
    """Broken: a service with PrivateTmp= could not be held."""
    with sockets.connect(hidden.pid, f"{place}/s", 5, uid=0) as connection:
        assert sockets.peer_of(connection)[0] == hidden.pid
    with sockets.connect(hidden.pid, f"{place}/self/s", 5, uid=0) as connection:
        assert sockets.peer_of(connection)[0] == hidden.pid


def test_another_server_at_the_same_path_is_not_taken_for_it(hidden, plain, place):
    """Broken: the server that we found would be called held, and another one would be."""
    with sockets.connect(hidden.pid, f"{place}/s", 5, uid=0) as connection:
        assert sockets.peer_of(connection)[0] == hidden.pid
    with pytest.raises(ConnectionError, match=f"process {plain.pid}, and not process {os.getpid()}, listens on {place}/s"):
        sockets.connect(os.getpid(), f"{place}/s", 5, uid=0)


def test_nobody_listens_is_said_with_the_path(plain, hidden, place):
    """Broken: a library's words, without the place."""
    _end(plain)
    with pytest.raises(ConnectionError, match=f"no connection to {place}/s: Connection refused"):
        sockets.connect(os.getpid(), f"{place}/s", 5, uid=0)
    with pytest.raises(ConnectionError, match=f"no connection to {place}/none: No such file"):
        sockets.connect(hidden.pid, f"{place}/none", 5, uid=0)


def test_a_server_that_accepts_nobody_is_not_waited_for_for_ever(place):
    """Broken: a server that hangs would hang the agent."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(f"{place}/s")
        server.listen(0)
        first.connect(f"{place}/s")
        with pytest.raises(TimeoutError, match=f"no connection to {place}/s in time"):
            sockets.connect(os.getpid(), f"{place}/s", 0.1, uid=0)


def test_a_mount_of_its_own_is_told_from_ours(hidden, plain, place):
    """Broken: what the agent sees at a server's path would be taken for the server's data."""
    assert processes.sees_the_same(plain.pid, str(place))
    assert not processes.sees_the_same(hidden.pid, str(place))
    assert processes.sees_the_same(hidden.pid, str(place.parent))

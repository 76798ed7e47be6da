"""Connections to the sockets of other processes, in whatever mount namespace a process has them.

A connection keeps to the limit of the phase that uses it (limits.py), whichever library reads from it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from quiesce.agent import limits, linux, looks, processes

SYSTEMD = 1
"""The process that begins to listen for a server that is started by its socket."""
_CREDENTIALS = struct.Struct("3i")


class Connection(socket.socket):
    """A socket of which no call waits beyond the limit of the current phase, and that takes no more than the limit allows.

    `settimeout` is a library's own limit for one call; the phase's limit counts if less is left of it.
    """

    _asked_s: Optional[float] = None

    def settimeout(self, value: Optional[float]) -> None:
        self._asked_s = value
        super().settimeout(value)

    def recv(self, size: int, flags: int = 0) -> bytes:
        with self._limited() as limit:
            data = super().recv(size, flags)
        if limit:
            limit.take(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:  # by `makefile`, for pg8000 and PyMySQL
        with self._limited() as limit:
            received = super().recv_into(buffer, nbytes, flags)
        if limit:
            limit.take(received)
        return received

    def send(self, data: Any, flags: int = 0) -> int:
        with self._limited():
            return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        with self._limited():
            super().sendall(data, flags)

    @contextmanager
    def _limited(self) -> Iterator[Optional[limits.Limit]]:
        """Raises TimeoutError if no time is left."""
        limit = limits.current()
        if not limit:
            yield None
            return
        left = limit.left_s()
        own = self._asked_s is not None and self._asked_s < left
        super().settimeout(self._asked_s if own else left)
        try:
            yield limit
        except socket.timeout:
            if not own:
                limit.end()
            raise


def connect(pid: int, path: str, timeout_s: float, *, uid: int) -> Connection:
    """A connection, as this user, to the socket at which this process listens, by its path in the process's own mounts.
    Example: a service with PrivateTmp= has a /tmp that nobody else sees. Raises ConnectionError, also if another process
    listens there, or if a link on the way is neither root's nor the process's user's; and TimeoutError. Both name the path."""
    connection = Connection(socket.AF_UNIX)
    try:
        timeout_s = _left_s(timeout_s)
        # Not by O_NONBLOCK, with which the kernel waits for no place in the queue of a server that is busy (unix(7), EAGAIN).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@2l", *divmod(int(timeout_s * 1e6), 10**6)))
        _connect(connection, pid, path, uid)
        connection.settimeout(timeout_s)
        peer = peer_of(connection)[0]
    except BlockingIOError:
        connection.close()
        raise TimeoutError(f"no connection to {path} in time") from None
    except OSError as error:
        connection.close()
        raise ConnectionError(f"no connection to {path}: {error.strerror}") from None
    if peer != pid and not (peer == SYSTEMD and path in processes.listening_paths(pid)):
        connection.close()
        raise ConnectionError(f"process {peer}, and not process {pid}, listens on {path}")
    return connection


@contextmanager
def closed_on_error(connection: Connection) -> Iterator[Connection]:
    """For a library that takes a connection over, and may fail before it has."""
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def connect_to_port(pid: int, port: int, timeout_s: float) -> Connection:
    """A connection to 127.0.0.1. Who answers is known only when it has answered: `require_answer_of`. Raises ConnectionError,
    TimeoutError."""
    if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):
        raise ConnectionError(f"process {pid} has a network of its own: port {port} is not reached")
    connection = Connection(socket.AF_INET)
    try:
        connection.settimeout(_left_s(timeout_s))
        connection.connect(("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return connection


def require_answer_of(pid: int, connection: socket.socket) -> None:
    """Raises ConnectionError unless this process has the other end of a connection over TCP, on which an answer has come."""
    if connection.family != socket.AF_INET:
        return
    port, own = connection.getpeername()[1], connection.getsockname()[1]
    if not processes.accepted(pid, port, own):
        raise ConnectionError(f"another process than {pid} answers on port {port}")


def _left_s(timeout_s: float) -> float:
    limit = limits.current()
    return min(timeout_s, limit.left_s()) if limit else timeout_s


def _connect(connection: socket.socket, pid: int, path: str, uid: int) -> None:
    # As root, for the user may not look there. What is found is the process's own by its links, its kind and its peer.
    descriptor = looks.open_path(processes.inside(pid, path, owners=(0, processes.owner(pid))))
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        with linux.as_user(uid):
            connection.connect(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket: who connected, or who began to listen. Source: unix(7),
    SO_PEERCRED."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(uid)

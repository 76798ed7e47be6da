"""Connections to the Unix sockets of other processes, in whatever mount namespace a process has them."""

from __future__ import annotations

import os
import socket
import struct

from quiesce.agent import linux, processes

SYSTEMD = 1
"""The process that begins to listen for a server that is started by its socket."""
_CREDENTIALS = struct.Struct("3i")


def connect(pid: int, path: str, timeout_s: float, *, uid: int = 0) -> socket.socket:
    """A connection, as this user, to the socket at which this process listens, by its path in the process's own mounts.
    Example: a service with PrivateTmp= has a /tmp that nobody else sees. Raises ConnectionError, also if another process
    listens there, and TimeoutError; both name the path."""
    connection = socket.socket(socket.AF_UNIX)
    try:
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


def _connect(connection: socket.socket, pid: int, path: str, uid: int) -> None:
    if processes.shares_mounts(pid):
        with linux.as_user(uid):
            connection.connect(path)
        return
    descriptor = os.open(processes.inside(pid, path), os.O_PATH | os.O_CLOEXEC)  # as root: the user may not look there
    try:
        with linux.as_user(uid):
            connection.connect(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket: who connected, or who began to listen. Source: unix(7),
    SO_PEERCRED."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(uid)

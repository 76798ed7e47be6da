"""A network among the copies of a group's members, with no way out: this process is its switch.

Each card of a copy is a TCP connection from QEMU to this process, over the loopback device. No bridge, no tap device and no
card of the host is part of it, so no other machine sees a frame, and the network ends with this process. Frames pass as QEMU
writes them (net/socket.c): four bytes with the length, the most significant first, then the frame.

Each card has a listening socket of its own, which is closed when the card is connected. Another program of this host can get
there first, and nothing more: `join` then raises, before the copy runs."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from quiesce.model.errors import HypervisorError

ADDRESS = "127.0.0.1"
JOIN_S = 10.0
"""Longest wait for QEMU's connection after libvirt has started it, in seconds."""
MAX_FRAME = 4096 + 65536
"""QEMU's own limit (NET_BUFSIZE in include/net/net.h)."""
MAX_WAITING = 4 << 20
"""Bytes that wait for one card at most. Further frames to it are dropped, as switches do."""
MAX_STATIONS = 4096
"""Addresses that a segment remembers."""
_LENGTH = struct.Struct("!I")


class _Port:
    """One card."""

    def __init__(self, connection: socket.socket, segment: _Segment) -> None:
        self.connection = connection
        self.segment = segment
        self.read = bytearray()
        self.to_write = bytearray()


class _Segment:
    """What is one network for the VMs: the cards on it, and which of them a station was last heard on."""

    def __init__(self) -> None:
        self.ports: list[_Port] = []
        self.stations: dict[bytes, _Port] = {}

    def remove(self, port: _Port) -> None:
        self.ports.remove(port)
        self.stations = {station: where for station, where in self.stations.items() if where is not port}

    def receivers(self, frame: bytes, sender: _Port) -> list[_Port]:
        """Of a frame: the card that its destination was heard on; all others if that is not known, or the frame is for many."""
        if len(self.stations) < MAX_STATIONS:
            self.stations[frame[6:12]] = sender
        known = self.stations.get(frame[:6]) if not frame[0] & 1 else None
        return [port for port in ([known] if known else self.ports) if port is not sender]


class Hub:
    """Use as a context manager. `plug` and `join` are to be called by one thread."""

    def __init__(self) -> None:
        self._segments: dict[str, _Segment] = {}
        self._waiting: list[tuple[socket.socket, _Segment]] = []
        self._new: list[_Port] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="network-of-copies", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended = True
        self._wake.send(b"x")
        self._thread.join()
        for listener, _ in self._waiting:
            listener.close()
        for port in self._new:
            port.connection.close()
        for end in (self._wake, self._woken):
            end.close()

    def plug(self, segment: str) -> tuple[str, int]:
        """Address and port that QEMU is to connect a card on this segment to. Raises HypervisorError."""
        try:
            listener = socket.create_server((ADDRESS, 0), backlog=2)
        except OSError as error:
            raise HypervisorError(f"a network for the copies cannot be made: {error.strerror}") from error
        self._waiting.append((listener, self._segments.setdefault(segment, _Segment())))
        host, port = listener.getsockname()
        return str(host), int(port)

    def join(self) -> None:
        """Connects the cards of a copy that libvirt has just started, paused. Raises HypervisorError if one is not there, or if
        another program of this host has connected instead: QEMU's connection is there when libvirt returns, so there are two
        then, or QEMU did not start."""
        while self._waiting:
            listener, segment = self._waiting.pop()
            with listener:
                listener.settimeout(JOIN_S)
                try:
                    connection = listener.accept()[0]
                except OSError as error:
                    raise HypervisorError("a network card of the copy was not connected") from error
                listener.setblocking(False)
                with suppress(BlockingIOError):
                    other = listener.accept()[0]
                    other.close()
                    connection.close()
                    raise HypervisorError(
                        "another program of this host connected to the network of the copies, so it is not used",
                        hint="try again; `ss -tnp` tells which program connects to ports of 127.0.0.1",
                    )
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._new.append(_Port(connection, segment))
        self._wake.send(b"x")

    def _serve(self) -> None:
        try:
            while not self._ended:
                for key, events in self._selector.select():
                    if isinstance(key.data, _Port):
                        self._move(key.data, events)
                    else:
                        self._woken.recv(4096)
                        self._take_new()
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.data, _Port):
                    key.data.connection.close()
            self._selector.close()

    def _take_new(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        for port in new:
            port.segment.ports.append(port)
            self._selector.register(port.connection, selectors.EVENT_READ, port)

    def _move(self, port: _Port, events: int) -> None:
        if port not in port.segment.ports:
            return  # it was dropped a moment ago
        try:
            if events & selectors.EVENT_WRITE:
                self._write(port)
            if events & selectors.EVENT_READ:
                self._read(port)
        except OSError:
            self._drop(port)

    def _read(self, port: _Port) -> None:
        data = port.connection.recv(1 << 18)
        if not data:
            self._drop(port)
            return
        port.read += data
        while len(port.read) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(port.read)
            if not 14 <= length <= MAX_FRAME:
                self._drop(port)
                return
            end = _LENGTH.size + length
            if len(port.read) < end:
                return
            whole = bytes(port.read[:end])
            del port.read[:end]
            for receiver in port.segment.receivers(whole[_LENGTH.size :], port):
                self._send(receiver, whole)

    def _send(self, port: _Port, data: bytes) -> None:
        if len(port.to_write) + len(data) <= MAX_WAITING:
            port.to_write += data
            try:
                self._write(port)
            except OSError:
                self._drop(port)

    def _write(self, port: _Port) -> None:
        with suppress(BlockingIOError):
            while port.to_write:
                del port.to_write[: port.connection.send(port.to_write)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.to_write else 0)
        self._selector.modify(port.connection, wanted, port)

    def _drop(self, port: _Port) -> None:
        """Its copy has ended, or does not write what QEMU writes."""
        if port in port.segment.ports:
            port.segment.remove(port)
            self._selector.unregister(port.connection)
            port.connection.close()

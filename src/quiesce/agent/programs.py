"""Programs of this machine that are writers themselves: they connect to the agent's socket and are asked like other writers.

    the program says   {"protocol": 1, "writer": "shop", "application": "shop", "level": "back-end", ...}   (`Registration`)
    the agent answers  {"registered": "external:shop"}   or {"error": "..."}, and hangs up

The service accepts the programs and keeps their connections. A conversation, forked from the service, inherits the connections
and asks the programs (writers/external.py), while the service waits for the conversation to end. The end of its connection
tells a program to let go.

A program that was connected and no longer is, is missed in every checkpoint until the machine restarts: it may hang or have
crashed, with its application writing or in need of recovery. A program that is stopped on purpose tells the agent so, over a
second connection, because a conversation may be using the first one:

    {"protocol": 1, "leave": "shop"}   is answered by   {"left": "external:shop"}
"""

from __future__ import annotations

import os
import re
import select
import socket
from dataclasses import dataclass
from typing import Any, Optional

from quiesce.agent import memory
from quiesce.agent.sockets import peer_of
from quiesce.codec import CodecError, decode
from quiesce.model.grades import Level
from quiesce.wire.framing import LineSplitter, ProtocolError, from_line, to_line
from quiesce.wire.messages import MAX_WINDOW_MS
from quiesce.wire.schema import from_wire, to_wire

SOCKET = "/run/quiesce/writers.sock"
PROTOCOL = 1
MAX_PROGRAMS = 64
MAX_CONNECTIONS = 2 * MAX_PROGRAMS
"""More than MAX_PROGRAMS, so that connections that have not registered yet keep no program out."""
MAX_TEXT = 100
"""Longest name of an application or version, in characters."""
MAX_PATHS = 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEPT = "programs"


@dataclass(frozen=True)
class Registration:
    """What a program tells of itself when it connects."""

    protocol: int
    writer: str
    """The program's name; unique."""
    application: str
    version: str = "unknown"
    level: Level = Level.BACK_END
    stateless: bool = False
    paths: tuple[str, ...] = ()
    """Directories that hold all the application's files."""
    hold_timeout_ms: Optional[int] = None
    """Longest that its hold may take."""

    @property
    def id(self) -> str:
        return f"external:{self.writer}"


@dataclass(frozen=True)
class _Leave:
    protocol: int
    leave: str


class Program:
    """A connection. Nothing is asked over it before its other end has registered."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = LineSplitter()
        self.registration: Optional[Registration] = None
        self.requests = 0
        """Number of requests sent in this conversation."""
        self.open = True

    def hang_up(self) -> None:
        """Ends the connection, also where other processes have copies of the descriptor. Idempotent; never raises."""
        self.open = False
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the program hung up first

    def has_ended(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


class Programs:
    """The programs that are connected, and those that are missed. No method waits, or raises because of a program."""

    def __init__(self, path: str = SOCKET) -> None:
        """Listens on `path`, for root alone. Raises OSError."""
        self._connections: dict[int, Program] = {}
        self._registered: dict[str, Program] = {}
        self._known = _recall()
        """By name, the connected and the missed ones."""
        self._listener = listen(path)
        self._epoll = select.epoll()
        # Edge-triggered: a connection not accepted for lack of descriptors waits for the next one, without a busy loop.
        self._epoll.register(self._listener, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        """A descriptor that polls as readable when `attend` has something to do."""
        return self._epoll.fileno()

    def attend(self) -> None:
        """Handles connections, messages and hang-ups since the last call."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._connections:
                self._hear(self._connections[descriptor])

    def connected(self) -> list[Program]:
        """The programs that registered and are connected, by name."""
        return [self._registered[name] for name in sorted(self._registered)]

    def missing(self) -> list[Registration]:
        """The programs that registered since the machine started, did not leave, and are not connected."""
        return [self._known[name] for name in sorted(self._known.keys() - self._registered.keys())]

    def close_all(self) -> None:
        """Closes every connection, which makes the programs let go. They may connect again."""
        for program in list(self._connections.values()):
            self._drop(program)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # no connection is left, or no descriptor for one
                return
            connection.setblocking(False)
            if peer_of(connection)[1] != os.geteuid():
                _refuse(connection, "only root may be a writer")
            elif len(self._connections) >= MAX_CONNECTIONS:
                _refuse(connection, f"there are {MAX_CONNECTIONS} connections already")
            else:
                self._connections[connection.fileno()] = Program(connection)
                self._epoll.register(connection, select.EPOLLIN)

    def _hear(self, program: Program) -> None:
        try:
            data = program.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(program)
            return
        lines = list(program.lines.feed(data))
        try:
            if program.registration or len(lines) > 1:
                raise ProtocolError("a program sends one line, and then only answers to requests")
            if lines:
                self._heed(program, lines[0])
        except ProtocolError as error:
            _send(program.connection, {"error": str(error)})
            self._drop(program)

    def _heed(self, program: Program, line: Optional[bytes]) -> None:
        """Raises ProtocolError with what to tell the program."""
        if line is None:
            raise ProtocolError("the line is too long")
        message = from_line(line)
        if message.get("protocol") != PROTOCOL:
            raise ProtocolError(f"this agent speaks protocol {PROTOCOL}")
        if "leave" in message:
            self._forget(from_wire(_Leave, message).leave)
            _send(program.connection, {"left": f"external:{message['leave']}"})
            self._drop(program)
        else:
            self._admit(program, from_wire(Registration, message))

    def _admit(self, program: Program, new: Registration) -> None:
        """Raises ProtocolError."""
        if not _NAME.fullmatch(new.writer):
            raise ProtocolError("Registration.writer: a name has 1 to 63 letters, digits, '.', '_', '-'")
        if max(len(new.application), len(new.version)) > MAX_TEXT or not new.application:
            raise ProtocolError(f"Registration.application and .version: 1 to {MAX_TEXT} characters")
        if len(new.paths) > MAX_PATHS or not all(map(os.path.isabs, new.paths)):
            raise ProtocolError(f"Registration.paths: at most {MAX_PATHS}, each starting with /")
        if new.hold_timeout_ms is not None and not 0 < new.hold_timeout_ms <= MAX_WINDOW_MS:
            raise ProtocolError(f"Registration.hold_timeout_ms: 1 to {MAX_WINDOW_MS}")
        other = self._registered.get(new.writer)
        if other and not other.has_ended():
            raise ProtocolError(f"a program is connected as {new.writer} already")
        if other:
            self._drop(other)
        if new.writer not in self._known and len(self._known) >= MAX_PROGRAMS:
            raise ProtocolError(f"there are {MAX_PROGRAMS} programs already")
        program.registration = new
        self._registered[new.writer] = program
        self._known[new.writer] = new
        self._remember()
        _send(program.connection, {"registered": new.id})

    def _forget(self, name: str) -> None:
        if name in self._registered:
            self._drop(self._registered[name])
        self._known.pop(name, None)
        self._remember()

    def _drop(self, program: Program) -> None:
        del self._connections[program.connection.fileno()]
        if program.registration:
            del self._registered[program.registration.writer]
        self._epoll.unregister(program.connection)
        program.hang_up()
        program.connection.close()

    def _remember(self) -> None:
        """Keeps the known programs, so that those that do not come back after a restart of the agent are missed, too."""
        memory.retain(_KEPT, {name: to_wire(registration) for name, registration in self._known.items()})


def _recall() -> dict[str, Registration]:
    known = {}
    for name, value in memory.recall(_KEPT).items():
        try:
            known[name] = decode(Registration, value)
        except CodecError:
            continue  # written by another version of the agent
    return known


def listen(path: str) -> socket.socket:
    """A non-blocking socket that only root can connect to. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(MAX_CONNECTIONS)
    return listener


def _refuse(connection: socket.socket, reason: str) -> None:
    _send(connection, {"error": reason})
    connection.close()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.send(to_line(message))
    except OSError:
        pass  # it is gone or does not read; the end of its connection tells it enough

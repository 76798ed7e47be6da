"""Programs that come to the agent's socket as a test wants, and the agent's side of it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quiesce.agent import memory
from quiesce.agent.programs import Programs

SHOP = {
    "protocol": 1,
    "writer": "shop",
    "application": "web shop",
    "version": "3.2",
    "level": "front-end",
    "stateless": False,
    "paths": ["/srv/shop"],
    "hold_timeout_ms": 3000,
}


@contextlib.contextmanager
def listening(directory: str | Path) -> Iterator[Programs]:
    """The service's side, which keeps what it remembers in the same directory."""
    usual, memory.DIRECTORY = memory.DIRECTORY, str(directory)
    found = Programs(f"{directory}/writers.sock")
    try:
        yield found
    finally:
        memory.DIRECTORY = usual
        found.close_all()
        found._listener.close()
        found._epoll.close()


def wakes(agent: Programs, seconds: float = 0.0) -> bool:
    """The service's wait would end."""
    return bool(select.select([agent], [], [], seconds)[0])


def attend(agent: Programs) -> None:
    """As the service does, until there is nothing more."""
    while wakes(agent):
        agent.attend()


class Peer:
    """A program's end of a connection."""

    def __init__(self, agent: Programs) -> None:
        self.agent = agent
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(agent._listener.getsockname())
        self.lines = self.socket.makefile("rb")

    def say(self, *messages: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.socket.sendall(b"".join(m if isinstance(m, bytes) else json.dumps(m).encode() + b"\n" for m in messages))

    def hear(self) -> Any:
        """A message, or None at the end of the connection."""
        with contextlib.suppress(ConnectionResetError):
            line = self.lines.readline()
            return json.loads(line) if line else None

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def join(agent: Programs, registration: dict[str, Any]) -> Peer:
    peer = Peer(agent)
    peer.say(registration)
    attend(agent)
    return peer


def named(name: str) -> dict[str, Any]:
    return {"protocol": 1, "writer": name, "application": name}


def ids(agent: Programs) -> tuple[list[str], list[str]]:
    """Of those that are connected, and those that are missing."""
    connected = [program.registration.id for program in agent.connected() if program.registration]
    return connected, [registration.id for registration in agent.missing()]

"""A program that uses writer.py and does as it is told, and the agent's end of its socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quiesce import writer as sdk
from quiesce.writer import Writer


class Shop(Writer):
    """Notes what it is called, and does as it is told."""

    name = "shop"
    level = "front-end"
    paths = ("/srv/shop",)

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.does: dict[str, Callable[[], Any]] = {}
        self.inside = 0

    def identify(self) -> Any:
        return self._call("identify")

    def prepare(self, window_ms: int) -> Any:
        return self._call("prepare", window_ms)

    def hold(self, timeout_ms: int) -> Any:
        return self._call("hold", timeout_ms)

    def release(self) -> Any:
        return self._call("release")

    def post_checkpoint(self, kept: bool) -> Any:
        return self._call("post-checkpoint", kept)

    def _call(self, what: str, *arguments: Any) -> Any:
        if self.inside:
            self.calls.append(f"{what} in the middle of something else")
        self.inside += 1
        self.calls.append((what, *arguments) if arguments else what)
        try:
            return self.does.get(what, lambda: None)()
        finally:
            self.inside -= 1

    def called(self, what: str) -> int:
        return sum(call == what or call[0] == what for call in self.calls)


class Agent:
    """The other end, at the socket."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(30)
        self._requests = 0
        self.connection = socket.socket(socket.AF_UNIX)
        self.lines = self.connection.makefile("rb")

    def accept(self) -> dict[str, Any]:
        """Takes the next connection, having hung up the one before. Returns the line it began with."""
        self.hang_up()
        self.connection, _ = self._listener.accept()
        self.connection.settimeout(30)
        self.lines = self.connection.makefile("rb")
        return self.hear()

    def say(self, message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        return json.loads(self.lines.readline())

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What is not None in the answer, without its id."""
        self._requests += 1
        self.say({"id": self._requests, "do": do, **arguments})
        answer = self.hear()
        assert answer.pop("id") == self._requests
        return answer

    def hang_up(self) -> None:
        self.lines.close()
        self.connection.close()

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


@contextlib.contextmanager
def running(writer: Writer, agent: Agent | None = None) -> Iterator[list[BaseException]]:
    """`run` in a thread, until something ends it: at the latest this, which closes the agent. Gives what ended it."""
    ended: list[BaseException] = []
    stop = threading.Event()
    connect = writer.connect

    def connect_unless_stopped() -> socket.socket:
        if stop.is_set():
            raise SystemExit
        return connect()

    def work() -> None:
        try:
            sdk.run(writer)
        except BaseException as error:
            ended.append(error)

    writer.connect = connect_unless_stopped  # type: ignore[method-assign]
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        if agent:
            agent.close()
        thread.join(5)
        assert not thread.is_alive()


@contextlib.contextmanager
def registered(agent: Agent, writer: Writer) -> Iterator[list[BaseException]]:
    with running(writer, agent) as ended:
        agent.accept()
        agent.say({"registered": f"external:{writer.name}"})
        yield ended


def finding_the_agent_in(directory: Path) -> dict[str, str]:
    """The environment of a program that uses `quiesce.writer`."""
    (directory / "sitecustomize.py").write_text(
        f"import quiesce.writer\nquiesce.writer.Writer.socket_path = {str(directory / 'writers.sock')!r}\n"
    )
    return {**os.environ, "PYTHONPATH": f"{directory}:{Path(sdk.__file__).parents[1]}"}

"""For platforms that freeze filesystems themselves, qemu-guest-agent above all: the writers hold before the freeze and are
released after the thaw.

qemu-guest-agent's fsfreeze-hook and VMware's backupScripts.d run `quiesce-agent.pyz --hook freeze` and `--hook thaw`. Each call
asks the service over a socket that only root can use. The service forks a process that holds the writers from the first call
to the second. The dead-man guards it like any attempt: at the deadline it thaws every filesystem, whoever froze it.
"""

from __future__ import annotations

import json
import secrets
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Optional

from quiesce.model.grades import LEVELS, Level
from quiesce.wire.messages import MAX_WINDOW_MS, State

if TYPE_CHECKING:
    from quiesce.agent.writers.base import ApplicationWriter

SOCKET = "/run/quiesce/hook.sock"
DEFAULT_WINDOW_S = 30.0
"""From the first hold to the last release, in seconds. Longer than quiesce's own window: what the platform does is unknown."""
PREPARE_TIMEOUT_S = 120.0
MAX_REQUEST = 4096
MAX_SAYS = 100
"""Most lines of an answer."""
LET_GO_S = 300
"""Longest that all writers may take to let go, in seconds."""
OVERTIME_S = 15
"""How much longer than that the freeze may take, in seconds, before the process is ended that makes it."""
REQUEST_TIMEOUT_S = 1.0
"""Longest wait for the request after a connection, in seconds: other callers wait behind it."""

Discover = Callable[[str], "list[ApplicationWriter]"]
"""Finds the writers, but for the scripts of the named platform."""


# -- the command that the platform runs


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if all writers hold (freeze), or held to the end (thaw). Errors are printed on stderr."""
    import argparse  # not for the idle service

    parser = argparse.ArgumentParser(prog="quiesce-agent --hook")
    parser.add_argument("action", choices=["freeze", "thaw", "freezeFail"])
    parser.add_argument("--without", choices=["vmware"], default="", help="the platform that runs its scripts by itself")
    parser.add_argument("--window", type=float, default=DEFAULT_WINDOW_S, metavar="SECONDS")
    options, _ = parser.parse_known_args(arguments)  # VMware appends an argument of its own
    request = {"do": options.action, "without": options.without, "window_ms": int(options.window * 1000)}
    try:
        answer = _ask(request, PREPARE_TIMEOUT_S + options.window)
    except (OSError, ValueError) as error:
        print(f"quiesce: the agent does not answer: {error}", file=sys.stderr)
        return 1
    for line in answer.get("says", []):
        print(f"quiesce: {line}", file=sys.stderr)
    return 0 if answer.get("ok") else 1


def _ask(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(SOCKET)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answer:
            value = json.loads(answer.readline())
    return value if isinstance(value, dict) else {}


# -- the service's side


def serve_platform(listener: socket.socket, discover: Discover) -> None:
    """Answers one platform from its freeze to its thaw, or until the deadline. Returns when nothing is held any more."""
    held: Optional[_Held] = None
    try:
        while True:
            connection = _accept(listener, held)
            if connection is None:
                return  # the deadline passed; `finally` lets go
            with connection:
                request = _receive(connection, held)
                do = request.get("do")
                if do not in ("freeze", "thaw", "freezeFail"):
                    answer = _answer(False, "the request makes no sense")
                elif do == "freeze" and _gone(connection):
                    answer = _answer(False, "the caller has hung up")
                elif do == "freeze" and held is None:
                    held = _Held(request)
                    answer = held.freeze(discover)
                elif do == "freeze":
                    answer = _answer(False, "another freeze is under way")
                elif held is None:
                    answer = _answer(False, "nothing is held: the deadline passed, or the freeze had failed")
                else:
                    answer = held.thaw() if do == "thaw" else held.give_up()
                if not _send(connection, answer) and do == "freeze" and held:
                    held.give_up()  # the caller is gone: nobody would freeze, or thaw
                if held is None or held.ended:
                    # Printed only now that nothing is frozen: before, the line of log would have waited for the disk.
                    print(f"hook {request.get('do')}:", *answer["says"], sep="\n  ", file=sys.stderr, flush=True)
                    return
    finally:
        if held:
            held.attempt.abort()


class _Held:
    """The attempt between the two calls, with the writers that hold."""

    def __init__(self, request: dict[str, Any]) -> None:
        window = request.get("window_ms")
        self._window_ms = min(max(int(window), 1), MAX_WINDOW_MS) if isinstance(window, int) else int(DEFAULT_WINDOW_S * 1000)
        self._without = str(request.get("without", ""))
        from quiesce.agent.attempt import Attempt  # so that the idle service stays small
        from quiesce.wire.messages import Prepare

        self.attempt = Attempt(secrets.token_hex(16), Prepare(self._window_ms, insist=True))
        self.ended = False

    def freeze(self, discover: Discover) -> dict[str, Any]:
        from quiesce.agent.attempt import AttemptError

        attempt = self.attempt
        # If a step hangs all the same, SIGALRM ends this process, and the dead-man lets everything go.
        signal.alarm(int(PREPARE_TIMEOUT_S + self._window_ms / 1000) + OVERTIME_S)
        try:
            inventory = attempt.prepare(discover(self._without), time.monotonic_ns() + int(PREPARE_TIMEOUT_S * 1e9))
            deadline_ns = time.monotonic_ns() + self._window_ms * 1_000_000
            present = {writer.level for writer in inventory.writers}
            for level in LEVELS:
                if level in present:
                    attempt.hold(level, deadline_ns)
            attempt.guard_foreign_freeze(deadline_ns)
        except AttemptError as error:
            self.ended = True
            return _answer(False, f"refused: {error}")
        except Exception as error:  # noqa: BLE001 - the platform waits for an answer
            self.ended = True
            return _answer(False, f"failed: {type(error).__name__}: {error}")
        signal.alarm(0)
        return _answer(True, *(f"{writer.id} holds" for writer in inventory.writers if writer.grade.vouched))

    def thaw(self) -> dict[str, Any]:
        self.ended = True
        signal.alarm(LET_GO_S)
        says, good = [], True
        for level in reversed(LEVELS):
            if self.attempt.state is State.HELD:
                for writer in self._release(level):
                    says.append(f"{writer.id}: {writer.grade.value}" + (f", {writer.reason}" if writer.reason else ""))
                    good = good and (writer.grade.vouched or not writer.required)
        self.attempt.post_checkpoint(True)
        return _answer(good, *says)

    def _release(self, level: Level) -> tuple[Any, ...]:
        return self.attempt.release(level).writers

    def give_up(self) -> dict[str, Any]:
        self.ended = True
        signal.alarm(LET_GO_S)
        self.attempt.abort()
        return _answer(True, "given up; all is released")

    def left_ms(self) -> Optional[int]:
        return self.attempt.left_ms()


def _accept(listener: socket.socket, held: Optional[_Held]) -> Optional[socket.socket]:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    if not poll.poll(held.left_ms() if held else 0):
        return None
    connection, _ = listener.accept()
    return connection


def _receive(connection: socket.socket, held: Optional[_Held]) -> dict[str, Any]:
    """Empty if no proper request came in time. A caller that sends byte by byte cannot delay the deadline either."""
    left_ms = held.left_ms() if held else None
    give_up = time.monotonic() + (REQUEST_TIMEOUT_S if left_ms is None else min(REQUEST_TIMEOUT_S, left_ms / 1000))
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < MAX_REQUEST:
            left = give_up - time.monotonic()
            if left <= 0:
                return {}
            connection.settimeout(left)
            data = connection.recv(MAX_REQUEST)
            if not data:
                break
            line += data
        value = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _gone(connection: socket.socket) -> bool:
    """Whether the caller has hung up, as a hook does that was killed while it waited for its turn."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _send(connection: socket.socket, answer: dict[str, Any]) -> bool:
    """Returns whether the caller could be answered."""
    connection.settimeout(REQUEST_TIMEOUT_S)
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        return False
    return True


def _answer(good: bool, *says: str) -> dict[str, Any]:
    return {"ok": good, "says": [*says[:MAX_SAYS], *([f"and {len(says) - MAX_SAYS} more"] if says[MAX_SAYS:] else [])]}

"""Makes a program a writer of quiesce: while a checkpoint is taken, its application stands still at a boundary of its own.

One file, Python 3.9, standard library only: copy it, or put /usr/local/lib/quiesce/quiesce-agent.pyz on PYTHONPATH.

    from quiesce.writer import Writer, run

    class Shop(Writer):
        name = "shop"
        paths = ["/srv/shop"]

        def hold(self, timeout_ms):
            shop.stop_accepting_orders()
            return {"position": {"order": shop.last_order}}

        def release(self):
            shop.accept_orders()

    run(Shop())

docs/write-a-writer.md has the rules, and the protocol that this module speaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

SOCKET = "/run/quiesce/writers.sock"
OUTCOMES = ("stable", "retryable", "non-retryable", "timeout", "inconsistent", "out-of-resources")
GRADES = ("clean", "nil-redo", "held", "crash", "refused")
MAX_ANSWER = 4096
"""Longest answer that the agent accepts, in bytes."""
MAX_REASON = 400
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0
"""Waits between attempts to reach the agent, in seconds; each is twice as long as the one before."""

_logger = logging.getLogger("quiesce.writer")


class Failed(Exception):  # noqa: N818 - an outcome of a phase, not a defect
    """To be raised by a writer's methods if a phase fails. `outcome` is one of OUTCOMES, but not "stable"."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = _one_of(OUTCOMES, outcome)
        self.reason = reason


class RegistrationError(Exception):
    """The agent does not accept this writer's registration. The message is the agent's."""


@dataclass
class Report:
    """The result of a phase."""

    outcome: str = "stable"
    grade: str | None = None
    """What the application does when it starts on the checkpoint; if None, the agent takes it for "held"."""
    reason: str | None = None
    position: Mapping[str, object] = field(default_factory=dict)
    """Names the state that is held, in the application's own terms, as {"sequence": 42}."""
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        _one_of(OUTCOMES, self.outcome)
        if self.grade is not None:
            _one_of(GRADES, self.grade)


if TYPE_CHECKING:
    Result = Report | Mapping[str, Any] | None


class Writer:
    """An application. Each method returns None, a `Report` or a dict of a report's fields; or raises `Failed` or another error.

    The methods are called one at a time, in the thread of `run`; only `release` may also be called in another thread.
    """

    name = ""
    """Unique in this machine: 1 to 63 letters, digits, '.', '_', '-'."""
    application = ""
    """What the application is; if empty, `name`."""
    version = "unknown"
    level = "back-end"
    """When it is held: "front-end", then "back-end", then "system"."""
    stateless = False
    """Whether it keeps no data, so that a checkpoint is as good without its hold."""
    paths: Sequence[str] = ()
    """Directories that hold all its files."""
    hold_timeout_ms: int | None = None
    """Longest that `hold` may take."""
    socket_path = SOCKET

    def identify(self) -> Result:
        """Tells what can be expected of a checkpoint. Called at any time; must have no side effects."""

    def prepare(self, window_ms: int) -> Result:
        """Everything slow, while the application runs. `release` is called at most `window_ms` after `hold`, in any case."""

    def hold(self, timeout_ms: int) -> Result:
        """Brings the application to rest at a boundary of its own, with its files complete on disk, within `timeout_ms`. If
        this raises, `release` is called at once, and has to undo what was done."""

    def release(self) -> Result:
        """Lets go. Called once for each hold. Must fail with "inconsistent" if the hold did not last to the end."""

    def post_checkpoint(self, kept: bool) -> Result:
        """Called once for each `prepare`, after the release. `kept`: there is a checkpoint."""

    def post_restore(self) -> Result:
        """For a machine that was restored, before the application is used. Reserved: no agent calls it yet."""

    def verify(self) -> Result:
        """In a copy of a checkpoint that is booted aside: tells how the application started. Must fail if something is wrong
        with it. `position`: what it found at its start; quiesce compares each field with that of the checkpoint. `grade`: what
        that start proves, as "clean" if there was nothing to recover, or "crash". May take minutes."""

    def connect(self) -> socket.socket:
        """Connects to the agent. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.socket_path)
        except OSError:
            connection.close()
            raise
        return connection


def run(writer: Writer) -> NoReturn:
    """Answers the agent until the process ends, or until an exception such as KeyboardInterrupt or SystemExit is raised in it.
    Connects again whenever the connection is lost. The application is let go before this waits, or raises.

    Raises RegistrationError.
    """
    turn = _Turn(writer)
    wait_s = FIRST_WAIT_S
    with _Alarm() as alarm:
        while True:
            session = _Session(writer, turn, alarm)
            try:
                session.serve()
                reason = "the agent hung up"
            except RegistrationError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever ended this connection, the next may work
                reason = str(error)
            except BaseException:
                if session.announced:
                    leave(writer)
                raise
            wait_s = FIRST_WAIT_S if session.registered else min(2 * wait_s, LONGEST_WAIT_S)
            _logger.info("%s: %s; trying again in %.1f s", writer.name, reason, wait_s)
            alarm.wait(wait_s)


def leave(writer: Writer) -> None:
    """Tells the agent that the application was stopped on purpose, so that checkpoints do not miss it. Never raises OSError.

    `run` calls this when an exception such as SystemExit ends it. A program with `run` in a thread has to call this itself.
    """
    with contextlib.suppress(OSError), writer.connect() as connection:
        connection.sendall(_line({"protocol": 1, "leave": writer.name}))


class _Alarm:
    """Waits that any signal ends, even one that came just before the wait. Python runs a signal's handler only between system
    calls: a plain wait that began just after the signal would go on, with the application held, until the agent sends a line.
    """

    def __init__(self) -> None:
        self._signals, self._rung = socket.socketpair()
        self._before: int | None = None

    def __enter__(self) -> _Alarm:
        self._signals.setblocking(False)
        self._rung.setblocking(False)
        with contextlib.suppress(ValueError):  # raised outside the main thread, which alone runs handlers
            self._before = signal.set_wakeup_fd(self._rung.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._signals.close()
        self._rung.close()

    def wait(self, seconds: float | None, connection: socket.socket | None = None) -> None:
        """Waits until `connection` has something to read, but at most `seconds`."""
        ends = time.monotonic() + (seconds or 0)
        waits = select.poll()  # not select: a program may have more than a thousand files open
        for each in (self._signals, connection):
            if each:
                waits.register(each, select.POLLIN)
        while True:
            ready = waits.poll(None if seconds is None else max(0, 1000 * (ends - time.monotonic())))
            if any(descriptor != self._signals.fileno() for descriptor, _ in ready) or not ready:
                return
            with contextlib.suppress(BlockingIOError):
                self._signals.recv(4096)

    def lines(self, connection: socket.socket) -> Iterator[bytes]:
        """The lines received from `connection`, until its end. Raises OSError."""
        rest = b""
        while True:
            self.wait(None, connection)
            said = connection.recv(65536)
            *lines, rest = (rest + said).split(b"\n")
            yield from lines
            if not said:
                return


class _Session:
    """One connection."""

    def __init__(self, writer: Writer, turn: _Turn, alarm: _Alarm) -> None:
        self.announced = False
        """Whether the agent knows of this program, or will when it reads."""
        self.registered = False
        self._writer = writer
        self._turn = turn
        self._alarm = alarm

    def serve(self) -> None:
        """Answers until the agent hangs up. The application is let go when this ends, however it ends. Raises
        RegistrationError, and OSError and others when the connection has become useless."""
        try:
            with self._writer.connect() as connection:
                self.announced = True
                with contextlib.suppress(BrokenPipeError):  # the agent hung up; its reason can still be read
                    connection.sendall(_line(_registration(self._writer)))
                for line in self._alarm.lines(connection):
                    message = json.loads(line)
                    if "do" in message:
                        connection.sendall(self._answer(message))
                    elif "registered" in message:
                        self.registered = True
                        _logger.info("registered as %s", message["registered"])
                    else:
                        raise (ConnectionError if self.registered else RegistrationError)(message["error"])
        finally:
            try:
                self._turn.end(kept=False)
            except Exception:
                _logger.exception("%s: while letting go", self._writer.name)

    def _answer(self, request: Mapping[str, Any]) -> bytes:
        try:
            answer = _fields(self._turn.take(request))
        except Failed as failed:
            answer = {"outcome": failed.outcome, "reason": failed.reason[:MAX_REASON]}
        except Exception as error:  # noqa: BLE001 - the agent waits for an answer
            answer = {"outcome": "retryable", "reason": f"{type(error).__name__}: {error}"[:MAX_REASON]}
        line = _line({"id": request["id"], **answer})
        if len(line) > MAX_ANSWER:
            reason = f"its answer has more than {MAX_ANSWER} bytes"
            line = _line({"id": request["id"], "outcome": "non-retryable", "reason": reason})
        return line


class _Turn:
    """Calls a writer's methods in their order. Hold and release alternate and never run at the same time. A release comes at
    the end of the window at the latest. Each prepare is followed by one post_checkpoint."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._window_s: float | None = None
        """Length of the window; None outside an attempt."""
        self._timer: threading.Timer | None = None
        """Ends the hold with the window; None while nothing is held."""

    def take(self, request: Mapping[str, Any]) -> Result:
        """Calls the requested method. Raises whatever it does."""
        turns: dict[str, Callable[[], Result]] = {
            "identify": self._writer.identify,
            "prepare": lambda: self._prepare(request["window_ms"]),
            "hold": lambda: self._hold(request["timeout_ms"]),
            "release": self._release,
            "abort": lambda: self.end(kept=False),
            "post-checkpoint": lambda: self.end(kept=request["kept"]),
            "post-restore": self._writer.post_restore,
            "verify": self._writer.verify,
        }
        if request["do"] not in turns:
            raise Failed("non-retryable", "this program is too old for that request")
        return turns[request["do"]]()

    def end(self, *, kept: bool) -> Result:
        """Ends the attempt, if there is one. Raises whatever the writer's methods do."""
        if self._window_s is None:
            return None
        self._window_s = None
        try:
            with self._lock:
                if self._timer:
                    kept = False
                    self._let_go()
        finally:
            result = self._writer.post_checkpoint(kept)
        return result

    def _prepare(self, window_ms: int) -> Result:
        self.end(kept=False)
        self._window_s = window_ms / 1000
        return self._writer.prepare(window_ms)

    def _hold(self, timeout_ms: int) -> Result:
        with self._lock:
            if self._window_s is None or self._timer:
                raise Failed("non-retryable", "hold comes after prepare, and once")
            until = time.monotonic() + self._window_s
            timer = threading.Timer(self._window_s, self._expire)
            timer.daemon = True
            timer.start()
            self._timer = timer
            try:
                result = self._writer.hold(timeout_ms)
                if time.monotonic() > until:
                    raise Failed("timeout", "it held only after the window had ended")
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    self._let_go()
                raise
            return result

    def _release(self) -> Result:
        with self._lock:
            if not self._timer:
                raise Failed("inconsistent", "its hold had already ended by itself")
            return self._let_go()

    def _expire(self) -> None:
        """Called by the timer, in its own thread."""
        with self._lock:
            if self._timer is threading.current_thread():
                try:
                    self._let_go()
                except Exception:
                    _logger.exception("%s: while letting go at the end of the window", self._writer.name)

    def _let_go(self) -> Result:
        timer, self._timer = self._timer, None
        if timer:
            timer.cancel()
        return self._writer.release()


def _fields(result: Result) -> dict[str, Any]:
    """The fields of the answer. Raises TypeError and others if a method returned something else."""
    report = result if isinstance(result, Report) else Report(**(result or {}))
    return {
        "outcome": report.outcome,
        "grade": report.grade,
        "reason": report.reason and report.reason[:MAX_REASON],
        "position": {str(name): str(value) for name, value in report.position.items()},
        "warnings": [str(warning)[:MAX_REASON] for warning in report.warnings],
    }


def _registration(writer: Writer) -> dict[str, Any]:
    return {
        "protocol": 1,
        "writer": writer.name,
        "application": writer.application or writer.name,
        "version": writer.version,
        "level": writer.level,
        "stateless": writer.stateless,
        "paths": list(writer.paths),
        "hold_timeout_ms": writer.hold_timeout_ms,
    }


def _line(message: Mapping[str, Any]) -> bytes:
    """One line of JSON, without the fields that are None."""
    return json.dumps({name: value for name, value in message.items() if value is not None}).encode() + b"\n"


def _one_of(known: tuple[str, ...], value: str) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value

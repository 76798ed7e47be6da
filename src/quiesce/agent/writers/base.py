"""What is the same for every application: the phases of an attempt, their outcomes, and what is reported of them."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional, Protocol

from quiesce.agent.deadman import Undo
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport

IDENTIFY_TIMEOUT_S = 10.0
"""Longest that one application is waited for before an attempt, in seconds."""


class WriterError(Exception):
    """A writer could not do its part. The message says what stands in the way."""

    def __init__(self, message: str, outcome: Outcome = Outcome.RETRYABLE, grade: Grade = Grade.REFUSED) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.grade = grade
        """What the application is worth unheld, where that is known before an attempt."""


class CommandObserver(Protocol):
    """Is told the process group of every command that a writer runs: an attempt tells its dead-man, which kills those that
    still run when the agent dies."""

    def command_started(self, group: int) -> None: ...

    def command_ended(self, group: int) -> None: ...


class ApplicationWriter:
    """One application in this machine. VSS's phases are its methods; what each has to do for its own is in `on_…`.

        identify                                  at any time; no side effects
        prepare, hold, release, post_checkpoint   an attempt, in this order
        abort                                     at any time, more than once
        post_restore, verify                      on a machine that was restored

    What a hold leaves in the application must end by itself when this process dies: a session that closes, a lock that dies
    with it. Where it cannot, `undo` says what the dead-man has to do instead. Nothing of it may be written where a restore
    would find it.
    """

    level = Level.BACK_END
    application = ""
    stateless = False
    """It keeps no data: held or not, it never spoils a label."""
    outlives = False
    """Its hold would outlive this process: it is held only if the dead-man can undo that."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.version = "unknown"
        self.grade = Grade.REFUSED
        self.reason: Optional[str] = None
        self.role: Optional[str] = None
        self.position: dict[str, str] = {}
        self.data_directory: Optional[str] = None
        self.warnings: list[str] = []
        self.timings: dict[str, int] = {}
        self.outcome = Outcome.STABLE
        self.error: Optional[str] = None
        """What went wrong, with its phase and outcome; None if nothing did."""
        self.last_error: Optional[str] = None
        self.required = True
        self._paths: list[str] = []
        self.hold_limit_ms: Optional[int] = None
        self.holding = False
        self.forgone = False
        self.let_go = True
        """Nothing of a hold is left in the application."""
        self.window_ends_ns: Optional[int] = None
        """CLOCK_MONOTONIC; set before the hold: what holds by a time of its own is to end with it."""
        self.guarded = False
        """The dead-man has its undo."""
        self.command_observer: Optional[CommandObserver] = None
        """Set by the attempt; to be passed to `commands.run_command`. None outside an attempt, as for `identify`."""

    @property
    def passed_over(self) -> bool:
        """It is not going to be held."""
        return bool(self.error) or self.forgone

    # -- for each application to say

    def on_identify(self, deadline_ns: int) -> None:
        """Finds version, role, position, and the best grade to be expected. Raises WriterError if it cannot be held."""

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Everything slow, while the application runs. `window_ms`: after this long a hold must end by itself, should we
        die. Raises WriterError."""

    def on_hold(self, deadline_ns: int) -> None:
        """Brings the application to rest at a boundary of its own, its files complete. Raises WriterError."""

    def on_release(self) -> None:
        """Looks whether the hold held to the end, and lets go. Raises WriterError if it did not, having let go."""

    def on_abort(self) -> None:
        """Lets go, closes everything. Idempotent."""

    def on_post_checkpoint(self, kept: bool) -> None:
        """After all has been released, outside the window. `kept`: there is a checkpoint."""

    def on_post_restore(self) -> None:
        """On a machine that was restored, before the application is used."""

    def on_verify(self) -> None:
        """On a machine that was restored: raises WriterError if the application is not as it was promised to be."""

    def undo(self) -> Optional[Undo]:
        """What lets the application go should this process die while it holds, if that is not enough by itself. Asked once
        an attempt, before `prepare`."""
        return None

    def paths(self) -> list[str]:
        """Directories that hold all its files; each must lie on a filesystem that freezes."""
        return list(self._paths)

    def remember(self) -> None:
        """Keeps, outside the window, what the next attempt may learn from this one."""

    def say(self, error: Exception) -> str:
        """An error of the application or its library in words for a person."""
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    # -- the same for all

    def keeps(self, paths: Sequence[str]) -> None:
        """Says which directories hold all its files, where the writer itself cannot know."""
        self._paths = list(paths)
        self.data_directory = next(iter(paths), None)

    def identify(self) -> None:
        """Never raises; what went wrong is the grade's reason."""
        with self._phase("identify"):
            self.on_identify(deadline_in_ns(IDENTIFY_TIMEOUT_S))

    def prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Never raises; what went wrong is the grade's reason."""
        with self._phase("prepare"):
            self.on_identify(deadline_ns)
            self.on_prepare(deadline_ns, window_ms)

    def hold(self, deadline_ns: int) -> None:
        """Raises WriterError, having let go; the writer is graded as not held then. One that cannot be held is passed over."""
        if self.passed_over:
            return
        if self.hold_limit_ms is not None:
            deadline_ns = min(deadline_ns, time.monotonic_ns() + self.hold_limit_ms * 1_000_000)
        with self._phase("hold"):
            if self.outlives and not self.guarded:
                raise WriterError("nobody could let it go should the agent die")
            self.holding, self.let_go = True, False
            self.on_hold(deadline_ns)
        if self.error:
            raise WriterError(self.reason or self.error, self.outcome)

    def forgo(self, reason: str) -> None:
        """Goes on without holding this application; it is graded a crash image, or what it is worth by itself."""
        self.abort()
        self.forgone = True
        if not self.error:
            self._downgrade(f"not held: {reason}")

    def pass_over(self, reason: str) -> None:
        """Like `forgo`, while filesystems are frozen: it is let go with all the others."""
        if not self.error:
            self._downgrade(f"not held: {reason}")

    def release(self) -> None:
        """Never raises."""
        if not self.holding:
            return
        with self._phase("release", Outcome.INCONSISTENT):
            self.on_release()
            self.holding, self.let_go = False, True
            self.last_error = None  # it went right again

    def abort(self) -> None:
        """Idempotent; never raises."""
        self.holding = False
        try:
            self.on_abort()
            self.let_go = True
        except Exception as error:  # noqa: BLE001 - what is left is the dead-man's, and the application's own time-out's
            self.warnings.append(f"it could not be let go: {self._words(error)}")

    def post_checkpoint(self, kept: bool) -> None:
        """Never raises."""
        try:
            self.on_post_checkpoint(kept)
        except Exception as error:  # noqa: BLE001 - the checkpoint is there, or not, whatever comes after it
            self.warnings.append(f"post-checkpoint: {self._words(error)}")

    def report(self) -> WriterReport:
        return WriterReport(
            id=self.id,
            application=self.application,
            version=self.version,
            level=self.level,
            grade=self.grade,
            reason=self.reason,
            role=self.role,
            position=dict(self.position),
            data_directory=self.data_directory,
            warnings=tuple(self.warnings),
            timings_us=dict(self.timings),
            required=self.required,
            outcome=self.outcome,
            stateless=self.stateless,
            last_error=self.error or self.last_error,
        )

    def time(self, what: str, started_ns: int) -> None:
        self.timings[what] = (time.monotonic_ns() - started_ns) // 1000

    @contextmanager
    def _phase(self, name: str, otherwise: Outcome = Outcome.RETRYABLE) -> Iterator[None]:
        """What goes wrong in the block is this writer's outcome. A writer that failed has let go."""
        self.outcome, self.error = Outcome.STABLE, None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever an application or its library says is the reason
            self.outcome = _outcome(error, otherwise)
            text = self._words(error)
            self.error = f"{name}: {self.outcome.value}: {text}"
            if name in ("hold", "release"):
                self._downgrade(text if name == "release" else f"not held: {text}")
                self.abort()
            else:
                grade = error.grade if isinstance(error, WriterError) else Grade.REFUSED
                self.grade, self.reason = (Grade.CLEAN if self.stateless else grade), text

    def _words(self, error: Exception) -> str:
        return str(error) if isinstance(error, WriterError) else self.say(error)

    def _downgrade(self, reason: str) -> None:
        if self.stateless:
            self.reason = f"{reason}; it keeps no data"
        else:
            self.grade, self.reason = Grade.CRASH, reason


def _outcome(error: Exception, otherwise: Outcome) -> Outcome:
    if isinstance(error, WriterError):
        return error.outcome if error.outcome is not Outcome.RETRYABLE else otherwise
    if isinstance(error, (TimeoutError, socket.timeout)):  # the same from Python 3.10 on
        return Outcome.TIMEOUT
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF):
        return Outcome.OUT_OF_RESOURCES
    return otherwise


_OUT_OF = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def deadline_in_ns(seconds: float) -> int:
    """CLOCK_MONOTONIC in nanoseconds, so many seconds from now."""
    return time.monotonic_ns() + int(seconds * 1e9)


def left_s(deadline_ns: int) -> float:
    """Seconds to a deadline. Raises WriterError (timeout) if it has passed."""
    left = (deadline_ns - time.monotonic_ns()) / 1e9
    if left <= 0:
        raise WriterError("no time was left", Outcome.TIMEOUT)
    return left

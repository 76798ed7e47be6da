"""What is the same for every application: the phases of an attempt, their outcomes, and what is reported of them."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Optional, Protocol

from quiesce.agent import bounds, identity, limits, looks, processes
from quiesce.agent.undos import Undo
from quiesce.agent.writers.account import Account
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import OpenFiles, Outcome, WriterReport
from quiesce.model.starts import Start

IDENTIFY_TIMEOUT_S = 10.0
"""Longest wait for one application to identify itself, in seconds."""
POST_CHECKPOINT_TIMEOUT_S = 15.0
START_PATIENCE_S, START_POLL_S = 60.0, 1.0
"""How long, and how often, an application is asked in a copy of a checkpoint that does not answer, in seconds."""
LET_GO_TIMEOUT_S = 5.0
"""Longest wait for one application's own answers while it is let go, in seconds."""


class WriterError(Exception):
    """A writer could not do its part. The message tells a person what stands in the way."""

    def __init__(self, message: str, outcome: Outcome = Outcome.RETRYABLE, grade: Grade = Grade.REFUSED) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.grade = grade
        """What a checkpoint has of the application if it is not held, where that is known before an attempt."""


class CommandObserver(Protocol):
    """Is told the process group of every command that a writer runs: an attempt tells its dead-man, which kills those that
    still run when the agent dies."""

    def command_started(self, group: int) -> None: ...

    def command_ended(self, group: int) -> None: ...


class ApplicationWriter:
    """One application in this machine. Its methods are VSS's phases; a subclass does its part of a phase in `on_…`.

        identify                                  at any time; no side effects
        prepare, hold, release, post_checkpoint   an attempt, in this order
        abort                                     at any time, more than once
        post_restore                              on a machine that was restored
        verify                                    in a copy of a checkpoint that was booted aside

    A hold must end by itself when this process dies, as a session's locks do when the session closes. Where it does not, `undo`
    tells the dead-man how to end it. No trace of a hold may be on disk, where a restore would find it.
    """

    level = Level.BACK_END
    application = ""
    stateless = False
    """It keeps no data: held or not, it never lowers a checkpoint's label."""
    outlives = False
    """Its hold does not end with this process, so it is held only if the dead-man has its `undo`."""

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
        self.check: tuple[str, ...] = ()
        """The administrator's command that checks the application in a copy of a checkpoint."""
        self.not_accounted_for: Optional[OpenFiles] = None
        self.nil_redo = False
        """Whether the host, or the guest's configuration, asks that no transaction is in flight and nothing is left to replay.
        A writer that has the choice takes the way that leads there."""
        self.pids: tuple[int, ...] = ()
        """The first processes of the application, as far as they are known."""
        self.filesystems: Optional[tuple[str, ...]] = None
        """Mount points of the filesystems that have its files, where they are known."""
        self._paths: list[str] = []
        self.hold_limit_ms: Optional[int] = None
        self.holding = False
        self.forgone = False
        self.let_go = True
        """No hold is left in the application."""
        self.window_ends_ns: Optional[int] = None
        """CLOCK_MONOTONIC; set before the hold, for holds that end by a time-out of the application's own."""
        self.guarded = False
        """The dead-man has its undo."""
        self._who = ""
        """Process, user and executable, to be named if the application keeps the agent waiting."""
        self.command_observer: Optional[CommandObserver] = None
        """Set by the attempt; to be passed to `commands.run_command`. None outside an attempt, as for `identify`."""

    @property
    def passed_over(self) -> bool:
        """It is not going to be held."""
        return bool(self.error) or self.forgone

    # -- what a subclass does

    def on_identify(self, deadline_ns: int) -> None:
        """Finds version, role, position and the best grade to expect. Raises WriterError if the application cannot be held."""

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Everything slow, while the application runs. `window_ms`: after this long a hold must end by itself if the agent has
        died. Raises WriterError."""

    def on_hold(self, deadline_ns: int) -> None:
        """Brings the application to rest at a boundary of its own, with its files complete. Raises WriterError."""

    def on_release(self) -> None:
        """Checks that the hold lasted to the end, and lets go in any case. Raises WriterError if it did not last."""

    def on_abort(self) -> None:
        """Lets go and closes everything. Idempotent."""

    def on_post_checkpoint(self, kept: bool) -> None:
        """Called after the window, when every application is released. `kept`: there is a checkpoint."""

    def on_post_restore(self) -> None:
        """Called on a machine that was restored, before the application is used."""

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        """Called in a copy of a checkpoint that is booted aside, instead of an attempt. Returns `start` with how the
        application started and what its own checks say. Raises WriterError if something is wrong with it, in the application's
        words."""
        return start

    def undo(self) -> Optional[Undo]:
        """What the dead-man has to do to let the application go if this process dies; None if its death is enough. Asked for
        once in an attempt, before `prepare`."""
        return None

    def paths(self) -> list[str]:
        """Directories that hold all its files. Each must be on a filesystem that can be frozen."""
        return list(self._paths)

    def account(self) -> Account:
        """Whose files are this application's. Asked for before `identify`."""
        return Account(self.pids, paths=tuple(self._paths))

    def remember(self) -> None:
        """Keeps what the next attempt can use of this one. Called outside the window."""

    def say(self, error: Exception) -> str:
        """The words for a person of an error that the application or its library raised."""
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    # -- the same for all

    def keeps(self, paths: Sequence[str]) -> None:
        """Sets the directories that hold all its files, where the writer itself cannot know them."""
        self._paths = list(paths)
        self.data_directory = next(iter(paths), None)

    def identify(self, until_ns: Optional[int] = None, problem: str = "") -> None:
        """Never raises; an error becomes the reason of the grade. `until_ns`: a deadline for all writers. `problem`: why the
        application need not be asked."""
        deadline_ns = deadline_in_ns(IDENTIFY_TIMEOUT_S)
        if until_ns is not None:
            deadline_ns = min(deadline_ns, until_ns)
        self._find_out_who()
        with self._phase("identify", deadline_ns):
            if problem:
                raise WriterError(problem)
            left_s(deadline_ns)
            self.on_identify(deadline_ns)

    def where(self) -> list[str]:
        """As `paths`. Raises nothing but OSError, as NotAnsweringError; also where the application has other files at a path
        than the agent, in mounts of its own."""
        try:
            paths = self.paths()
            self._require_same_mounts(paths)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - what is not known before `identify`
            raise OSError(errno.ENODATA, self._words(error)) from None
        return paths

    def _require_same_mounts(self, paths: Sequence[str]) -> None:
        for pid in self.pids:
            for path in paths:
                if not processes.sees_the_same(pid, path):
                    raise OSError(errno.EXDEV, f"process {pid} has a mount of its own at {path}, which nobody else sees")

    def prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Never raises; an error becomes the reason of the grade."""
        self._find_out_who()
        with self._phase("prepare", deadline_ns):
            identified_ns = min(deadline_ns, deadline_in_ns(IDENTIFY_TIMEOUT_S))
            with limits.until(identified_ns):
                self.on_identify(identified_ns)
            self.on_prepare(deadline_ns, window_ms)

    def _find_out_who(self) -> None:
        """Before the window, in which no file is read."""
        self._who = identity.who_is(self.pids[0]) if self.pids else ""

    def hold(self, deadline_ns: int) -> None:
        """Does nothing if the writer is passed over. If the hold fails, lets go, grades the writer as not held, and raises
        WriterError."""
        if self.passed_over:
            return
        if self.hold_limit_ms is not None:
            deadline_ns = min(deadline_ns, time.monotonic_ns() + self.hold_limit_ms * 1_000_000)
        with self._phase("hold", deadline_ns):
            if self.outlives and not self.guarded:
                raise WriterError("nobody could let it go if the agent died")
            self.holding, self.let_go = True, False
            self.on_hold(deadline_ns)
        if self.error:
            raise WriterError(self.reason or self.error, self.outcome)

    def forgo(self, reason: str) -> None:
        """Lets this application go before the freeze; the attempt goes on without it. Its grade becomes `crash`,
        unless it keeps no data or had failed before."""
        self.abort()
        self.forgone = True
        if not self.error:
            self._downgrade(f"not held: {reason}")

    def pass_over(self, reason: str) -> None:
        """Like `forgo`, but without letting it go: for one whose hold is over, or whose filesystem is frozen."""
        if not self.error:
            self._downgrade(f"not held: {reason}")

    def release(self) -> None:
        """Never raises."""
        if not self.holding:
            return
        with self._phase("release", deadline_in_ns(LET_GO_TIMEOUT_S), Outcome.INCONSISTENT):
            self.on_release()
            self.holding, self.let_go = False, True
            self.last_error = None  # an earlier error is over

    def abort(self) -> None:
        """Idempotent; never raises."""
        self.holding = False
        try:
            with limits.until(deadline_in_ns(LET_GO_TIMEOUT_S)):
                self.on_abort()
            self.let_go = True
        except Exception as error:  # noqa: BLE001 - the dead-man, or the application's own time-out, ends the hold
            self.warnings.append(f"it could not be let go: {self._words(error)}")

    def post_checkpoint(self, kept: bool) -> None:
        """Never raises."""
        try:
            with limits.until(deadline_in_ns(POST_CHECKPOINT_TIMEOUT_S)):
                self.on_post_checkpoint(kept)
        except Exception as error:  # noqa: BLE001 - nothing here can change whether there is a checkpoint
            self.warnings.append(f"post-checkpoint: {self._words(error)}")

    def verify(self, deadline_ns: int) -> Start:
        """How the application started in a copy of a checkpoint. Never raises. The checks may take until the deadline. Tries
        again for START_PATIENCE_S while the application does not answer: it may not be up yet, though its service is."""
        give_up_ns = min(deadline_ns, deadline_in_ns(START_PATIENCE_S))
        while True:
            start = Start(self.id, self.application, self.version, required=self.required, stateless=self.stateless)
            with self._phase("verify", deadline_ns):
                start = self.on_verify(start, deadline_ns)
            final = not self.error or self.outcome in (Outcome.NON_RETRYABLE, Outcome.INCONSISTENT)
            if final or time.monotonic_ns() + START_POLL_S * 1e9 >= give_up_ns:
                break
            self.abort()
            time.sleep(START_POLL_S)
        if self.error:
            start = replace(start, failure=self.reason)
        return replace(start, version=self.version)

    def report(self) -> WriterReport:
        report = WriterReport(
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
            not_accounted_for=self.not_accounted_for,
            filesystems=self.filesystems,
        )
        return bounds.bounded_report(report)

    def time(self, what: str, started_ns: int) -> None:
        self.timings[what] = (time.monotonic_ns() - started_ns) // 1000

    @contextmanager
    def _phase(self, name: str, deadline_ns: int, otherwise: Outcome = Outcome.RETRYABLE) -> Iterator[None]:
        """An error in the block becomes this writer's outcome; if it was holding, it has let go when this returns. All answers
        of the application together may take until the deadline."""
        self.outcome, self.error = Outcome.STABLE, None
        limit: Optional[limits.Limit] = None
        try:
            with limits.until(deadline_ns) as limit:
                yield
        except Exception as error:  # noqa: BLE001 - applications and their libraries raise anything
            if limit and limit.broken and not isinstance(error, WriterError):
                self.outcome, text = limit.outcome, limit.broken
            else:
                self.outcome, text = _outcome(error, otherwise), self._words(error)
            late = not isinstance(error, WriterError) or time.monotonic_ns() >= deadline_ns
            if self._who and self.outcome in (Outcome.TIMEOUT, Outcome.OUT_OF_RESOURCES) and late:
                text = f"{text} ({self._who})"
            self.error = f"{name}: {self.outcome.value}: {text}"
            if name in ("hold", "release"):
                self._downgrade(text if name == "release" else f"not held: {text}")
                self.abort()
            else:
                grade = error.grade if isinstance(error, WriterError) else Grade.REFUSED
                self.grade, self.reason = (Grade.CLEAN if self.stateless else grade), text

    def _words(self, error: Exception) -> str:
        own = isinstance(error, (WriterError, looks.NotAnsweringError)) or (isinstance(error, OSError) and error.errno is None)
        return str(error) if own and str(error) else self.say(error)

    def _downgrade(self, reason: str) -> None:
        if self.stateless:
            self.reason = f"{reason}; it keeps no data"
        else:
            self.grade, self.reason = Grade.CRASH, reason


def _outcome(error: Exception, otherwise: Outcome) -> Outcome:
    if isinstance(error, WriterError):
        return error.outcome if error.outcome is not Outcome.RETRYABLE else otherwise
    if isinstance(error, (TimeoutError, socket.timeout)):  # one class from Python 3.10 on
        return Outcome.TIMEOUT
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF):
        return Outcome.OUT_OF_RESOURCES
    return otherwise


_OUT_OF = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def deadline_in_ns(seconds: float) -> int:
    """The CLOCK_MONOTONIC time, in nanoseconds, that is `seconds` from now."""
    return time.monotonic_ns() + int(seconds * 1e9)


def share_of(deadline_ns: int, waiting: int) -> int:
    """The deadline of the next of so many that wait: half of the time that is left, while others wait. So one that does not
    answer leaves some to the others."""
    now = time.monotonic_ns()
    return deadline_ns if waiting < 2 else now + max(0, deadline_ns - now) // 2


def left_s(deadline_ns: int) -> float:
    """Seconds left to the deadline. Raises WriterError (timeout) if it has passed."""
    left = (deadline_ns - time.monotonic_ns()) / 1e9
    if left <= 0:
        raise WriterError("no time was left", Outcome.TIMEOUT)
    return left

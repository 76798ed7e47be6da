"""One attempt at a checkpoint inside the guest: prepare, hold, freeze, thaw, release, post-checkpoint; abort from anywhere."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Optional

from quiesce.agent import filesystems, leftovers, limits, linux
from quiesce.agent.bounds import bounded_filesystems, bounded_writers, cut
from quiesce.agent.deadman import DeadMan, DeadManError
from quiesce.agent.holds import HoldRecord
from quiesce.agent.undos import UNDO_TIMEOUT_S, Undo
from quiesce.agent.writers import registry
from quiesce.agent.writers.base import IDENTIFY_TIMEOUT_S, ApplicationWriter, WriterError, deadline_in_ns, share_of
from quiesce.model.grades import LEVELS, Level
from quiesce.model.reports import WriterReport
from quiesce.wire.messages import (
    ErrorCode,
    Frozen,
    Held,
    Inventory,
    Prepare,
    Released,
    State,
    Thawed,
)

DEADMAN_GRACE_NS = 250_000_000
"""How long the dead-man waits beyond the deadline for this process to release everything itself, in nanoseconds."""
MOST_EXPLAINED = 8
FOREIGN_THAWS, FOREIGN_THAW_S = 40, 0.05


class AttemptError(Exception):
    """A step that failed or was refused. Unless the code is wrong-token or wrong-state, the attempt is over, and everything is
    released before this reaches the host."""

    def __init__(self, code: ErrorCode, message: str, found: tuple[WriterReport, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.writers = found


class Attempt:
    """Holds, freezes and lets go. The conversation sees to the order of the calls."""

    def __init__(self, token: str, asked: Prepare) -> None:
        self.token = token
        self.state = State.IDLE
        self._window_ns = asked.window_ms * 1_000_000
        self._insist = asked.insist
        self._nil_redo = asked.nil_redo
        self._deadline_ns: Optional[int] = None
        self._started_ns: Optional[int] = None
        self._writers: list[ApplicationWriter] = []
        self._held: list[ApplicationWriter] = []
        self._undos: list[Undo] = []
        self._undo_of: dict[ApplicationWriter, int] = {}
        """Index of each writer's undo in `_undos`."""
        self._freezer: Optional[filesystems.Freezer] = None
        self._deadman: Optional[DeadMan] = None
        self._record: Optional[HoldRecord] = None
        self._lock: Optional[int] = None
        """File lock, held by this process and the dead-man until both have let go of it."""
        self._foreign = False
        """Another program freezes the filesystems, as qemu-guest-agent does."""
        self._freeze_token = ""

    def left_ms(self) -> Optional[int]:
        """Milliseconds to the deadline, at least 0; None before the first hold and after the last release."""
        if self._deadline_ns is None:
            return None
        return max(0, (self._deadline_ns - time.monotonic_ns()) // 1_000_000)

    def prepare(self, found: Sequence[ApplicationWriter], deadline_ns: int) -> Inventory:
        """The slow part, while the applications run: opens sessions, checkpoints databases, flushes dirty pages.

        Raises AttemptError if the guest cannot be quiesced as required; nothing is held then.
        """
        self._lock = _wait_for_earlier(deadline_ns)
        leftovers.take_back_all()
        self._writers = list(found)
        for writer in self._writers:
            writer.command_observer = self
            writer.nil_redo = writer.nil_redo or self._nil_redo
        self._freezer = filesystems.Freezer()
        if self._freezer.stuck:  # before an application is told to write to it, as by CHECKPOINT
            raise AttemptError(ErrorCode.FAILED, "; ".join(self._freezer.stuck))
        self._undos = [self._freezer.rcu] if self._freezer.rcu else []
        for writer in self._writers:
            if undo := _undo_of(writer, deadline_ns):
                self._undo_of[writer] = len(self._undos)
                self._undos.append(undo)
                writer.guarded = True
        # Forked before any session is opened: a copy of a session's socket in the dead-man would keep the session alive.
        try:
            self._record = HoldRecord.begin(self._freezer.recorded, [undo.recorded() for undo in self._undos])
            self._deadman = DeadMan.start(self._freezer.descriptors, self._undos, [self._lock], self._record)
        except OSError as error:
            raise AttemptError(ErrorCode.FAILED, f"what is held cannot be noted in /run: {error.strerror}") from None
        except DeadManError as error:
            raise AttemptError(ErrorCode.FAILED, f"no dead-man: {error}") from None
        for index, writer in enumerate(self._writers):
            waiting = sum(self._waits(each) for each in self._writers[index:])
            writer.prepare(share_of(deadline_ns, waiting), self._window_ns // 1_000_000)
            loose = self._loose(writer)
            if loose:
                writer.forgo(loose)
        refused = [writer for writer in self._writers if writer.required and not writer.grade.vouched]
        if self._insist and refused:
            raise AttemptError(ErrorCode.REFUSED, _explain(refused), self._report())
        self._freezer.flush()
        self.state = State.PREPARED
        return Inventory(self._report(), bounded_filesystems(self._freezer.report()))

    def hold(self, level: Level, deadline_ns: int) -> Held:
        """Brings every writer of this level to rest at a boundary of its own. Raises AttemptError if a required one fails and
        the host insists on all of them."""
        deadline_ns = self._start_window(deadline_ns)
        at_level = self._at(level)
        for writer in at_level:
            waiting = sum(self._waits(each) for each in self._writers)
            self._held.append(writer)
            self._announce(writer)
            writer.window_ends_ns = self._deadline_ns
            try:
                writer.hold(share_of(deadline_ns, waiting))
            except WriterError:
                self._taken_back(writer)
                if self._insist and writer.required and not writer.grade.vouched:
                    raise AttemptError(ErrorCode.REFUSED, _explain([writer]), (writer.report(),)) from None
        self.state = State.HELD
        return Held(bounded_writers([writer.report() for writer in at_level]), time.monotonic_ns())

    def freeze(self, deadline_ns: int) -> Frozen:
        """Freezes every filesystem, `/` last. Raises AttemptError, having thawed those that it froze."""
        deadline_ns = self._start_window(deadline_ns)
        freezer, deadman = self._parts()
        try:
            freezer.freeze(deadline_ns, deadman)
        except filesystems.FreezeError as error:
            raise AttemptError(ErrorCode.FAILED, str(error)) from None
        self._freeze_token = secrets.token_hex(16)
        self.state = State.FROZEN
        return Frozen(self._freeze_token, bounded_filesystems(freezer.report()))

    def thaw(self) -> Thawed:
        freezer, deadman = self._parts()
        unbroken = freezer.thaw(deadman)
        self.state = State.THAWED
        if not self._held:
            self._end_window()
        return Thawed(self._freeze_token, unbroken, bounded_filesystems(freezer.report()), self._window_us())

    def release(self, level: Level) -> Released:
        """Lets the writers of this level go, each after it checked that its hold lasted to the end. Only then looks whether the
        freeze held all their files: that takes as long as the freeze itself."""
        if self._freezer and self._freezer.frozen:
            raise AttemptError(ErrorCode.WRONG_STATE, "release comes after thaw")
        at_level = [writer for writer in self._at(level) if writer in self._held]
        before = time.monotonic_ns()
        for writer in reversed(at_level):
            writer.release()
            self._taken_back(writer)
            self._held.remove(writer)
        window_us = self._window_us()
        if not self._held:
            self._end_window()
        for writer in at_level:
            if loose := self._loose(writer):
                writer.pass_over(loose)
        return Released(bounded_writers([writer.report() for writer in at_level]), before, window_us)

    def post_checkpoint(self, kept: bool) -> None:
        """Tells the writers whether the checkpoint is kept."""
        for writer in self._writers:
            writer.post_checkpoint(kept)

    def guard_foreign_freeze(self, deadline_ns: int) -> None:
        """Called when another program, as qemu-guest-agent, is about to freeze the filesystems. At the deadline, or if this
        process dies, the dead-man thaws them all the same."""
        self._start_window(deadline_ns)
        self.state = State.HELD
        self._foreign = True
        freezer, deadman = self._parts()
        for index in range(len(freezer.descriptors)):
            deadman.freezing(index)

    def abort(self) -> None:
        """Thaws and releases whatever is frozen or held. Idempotent; never raises."""
        late = self._foreign and self.state is not State.RELEASED
        linux.run_among_others()
        if self._freezer and self._deadman:
            self._freezer.thaw(self._deadman)
            if late:
                self._freezer.thaw_anybodys()
        for writer in reversed(self._writers):
            writer.abort()
            self._taken_back(writer)
        self._held.clear()
        if self._deadman:
            self._deadman.disarm()
            self._deadman = None
        if self._freezer:
            for _ in range(FOREIGN_THAWS if late else 0):  # the other program may still be freezing
                self._freezer.thaw_anybodys()
                time.sleep(FOREIGN_THAW_S)
            self._freezer.close()
        if self._record:
            self._record.close()
            self._record = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        registry.remember(self._writers)
        self._writers = []
        self._deadline_ns = None
        self.state = State.IDLE

    def _loose(self, writer: ApplicationWriter) -> str:
        """Why a freeze does not hold all the writer's files, or the empty string."""
        freezer = self._freezer
        assert freezer is not None  # made by prepare
        try:
            paths = writer.where()
            writer.filesystems = freezer.mount_points(paths) or None
            return freezer.why_not_frozen(paths)
        except OSError as error:
            return f"its files cannot be looked at: {error.strerror}"

    def _start_window(self, step_deadline_ns: int) -> int:
        """Arms the dead-man at the window's first step. Returns the time by which this step must be done."""
        now = time.monotonic_ns()
        if self._deadline_ns is None:
            self._started_ns = now
            self._deadline_ns = now + self._window_ns
            self._parts()[1].arm(self._deadline_ns + DEADMAN_GRACE_NS)
            linux.run_first()
        deadline_ns = min(step_deadline_ns, self._deadline_ns)
        if now >= deadline_ns:
            raise AttemptError(ErrorCode.DEADLINE, "the deadline passed before this step")
        return deadline_ns

    def _end_window(self) -> None:
        """Called when nothing is frozen or held any more; only `post_checkpoint` can follow."""
        linux.run_among_others()
        if self._deadman:
            self._deadman.disarm()
            self._deadman = None
        self._deadline_ns = None
        self.state = State.RELEASED

    def _waits(self, writer: ApplicationWriter) -> bool:
        """It is to be held, and is not yet."""
        return writer not in self._held and not writer.passed_over and writer.not_accounted_for is None

    def _announce(self, writer: ApplicationWriter) -> None:
        """Tells the dead-man before the hold, but not for a writer that is passed over: if its application is at rest, somebody
        else holds it, and the dead-man must not end that."""
        if writer in self._undo_of and not writer.passed_over:
            self._parts()[1].doing(self._undo_of[writer])

    def _taken_back(self, writer: ApplicationWriter) -> None:
        """Tells the dead-man that the writer has let go. If it could not, the dead-man does it when it is disarmed."""
        if self._deadman and writer in self._undo_of and writer.let_go:
            try:
                self._deadman.undone(self._undo_of[writer])
            except DeadManError:
                pass

    def command_started(self, group: int) -> None:
        """Never raises: a dead-man that is gone was noticed before the hold, and must not keep a command from letting go."""
        if self._deadman:
            with suppress(DeadManError):
                self._deadman.command_started(group)

    def command_ended(self, group: int) -> None:
        """Never raises."""
        if self._deadman:
            with suppress(DeadManError):
                self._deadman.command_ended(group)

    def _window_us(self) -> int:
        return (time.monotonic_ns() - (self._started_ns or time.monotonic_ns())) // 1000

    def _at(self, level: Level) -> list[ApplicationWriter]:
        return [writer for writer in self._writers if writer.level is level]

    def _report(self) -> tuple[WriterReport, ...]:
        found = [writer.report() for writer in self._writers]
        return bounded_writers(sorted(found, key=lambda writer: LEVELS.index(writer.level)))

    def _parts(self) -> tuple[filesystems.Freezer, DeadMan]:
        assert self._freezer is not None  # made by prepare, which every other step follows
        assert self._deadman is not None
        return self._freezer, self._deadman


def _undo_of(writer: ApplicationWriter, deadline_ns: int) -> Optional[Undo]:
    with limits.until(min(deadline_ns, deadline_in_ns(IDENTIFY_TIMEOUT_S))):
        return writer.undo()


def _explain(refused: list[ApplicationWriter]) -> str:
    named = "; ".join(f"{cut(writer.id)}: {cut(writer.reason or writer.grade.value)}" for writer in refused[:MOST_EXPLAINED])
    return named + (f"; and {len(refused) - MOST_EXPLAINED} more" if len(refused) > MOST_EXPLAINED else "")


def _wait_for_earlier(deadline_ns: int) -> int:
    """Takes the lock that an earlier attempt's dead-man may still hold: nothing may be held anew that it is still releasing.

    Returns the lock's descriptor. Raises AttemptError.
    """
    descriptor = leftovers.open_lock()
    give_up_ns = min(deadline_ns, time.monotonic_ns() + int((UNDO_TIMEOUT_S + 10) * 1e9))
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic_ns() >= give_up_ns:
                os.close(descriptor)
                raise AttemptError(
                    ErrorCode.FAILED, "the dead-man of an earlier attempt is still releasing what that attempt held"
                ) from None
            time.sleep(0.05)
        else:
            return descriptor

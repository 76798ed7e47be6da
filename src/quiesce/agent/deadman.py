"""A process of its own, locked in memory, that thaws when the deadline passes or the conversation dies.

The conversation tells it over a pipe what it is about to do, before it does it. For the thaw the dead-man needs only file
descriptors that it inherited: until every filesystem is thawed it opens nothing, runs nothing, imports nothing. At the deadline
it kills the conversation, which closes the writers' sessions, and each application lets go of what a closed session held. For
applications that do not, the dead-man has the `Undo` that their writers gave it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from typing import Optional

from quiesce.agent import holds, linux
from quiesce.agent.holds import HoldRecord, Outstanding
from quiesce.agent.undos import UNDO_TIMEOUT_S, Undo, kill_group, run_undos

RESCUE_NOTE = "/run/quiesce/last-rescue"
DISARM_TIMEOUT_S = 2.0
RETRY_MS = 20
"""Interval at which filesystems are thawed again whose freeze may complete only now, in milliseconds."""


class DeadManError(Exception):
    """The dead-man could not be set up."""


class DeadMan:
    """The conversation's end of the pipe. A write that fails means that the dead-man is dead; then there must be no window."""

    def __init__(self, pipe: int, pid: int, record: Optional[HoldRecord] = None) -> None:
        self._pipe = pipe
        self._pid = pid
        self._record = record
        self._ended = False
        self._doing: list[int] = []
        """Indices of the undos that are still to be done."""

    @classmethod
    def start(
        cls,
        filesystems: list[int],
        undos: Sequence[Undo] = (),
        keep_open: Sequence[int] = (),
        record: Optional[HoldRecord] = None,
    ) -> DeadMan:
        """Forks the dead-man, which is locked in memory when this returns. Raises DeadManError.

        `filesystems`: descriptors; the other methods name these, and the `undos`, by their positions. `keep_open`: more
        descriptors, which stay open for as long as it lives. `record`: gets a copy of all that the dead-man is told.
        """
        receive, send = os.pipe()
        ready_receive, ready_send = os.pipe()
        conversation = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                written = (undo.descriptor for undo in undos if undo.descriptor is not None)
                recording = [record.descriptor] if record else []
                _keep_only([receive, ready_send, *filesystems, *written, *keep_open, *recording])
                _Watch(receive, filesystems, undos, conversation, record).run(ready_send)
            finally:
                os._exit(0)
        os.close(receive)
        os.close(ready_send)
        answer = os.read(ready_receive, 200)
        os.close(ready_receive)
        if answer != b"ready":
            os.close(send)
            os.waitpid(pid, 0)
            raise DeadManError(answer.decode(errors="replace") or "it died while starting")
        return cls(send, pid, record)

    def arm(self, deadline_ns: int) -> None:
        """Has it thaw at this CLOCK_MONOTONIC time, unless disarmed before. Raises DeadManError if it is gone."""
        self._tell(holds.ARM, deadline_ns)

    def freezing(self, index: int) -> None:
        """To be told before FIFREEZE, so that at no moment a filesystem is frozen that the dead-man does not know of."""
        self._tell(holds.FREEZING, index)

    def not_ours(self, index: int) -> None:
        self._tell(holds.NOT_OURS, index)

    def thawed(self, index: int) -> None:
        self._tell(holds.THAWED, index)

    def doing(self, index: int) -> None:
        """To be told before the hold that the undo of this index ends."""
        self._tell(holds.DOING, index)
        self._doing.append(index)

    def undone(self, index: int) -> None:
        self._tell(holds.UNDONE, index)
        if index in self._doing:
            self._doing.remove(index)

    def command_started(self, group: int) -> None:
        """A command runs in this process group. If the conversation dies, the group is killed before the undos are done."""
        self._tell(holds.RUNNING, group)

    def command_ended(self, group: int) -> None:
        self._tell(holds.ENDED, group)

    def disarm(self) -> None:
        """Ends the dead-man, which first does the undos that it was not told are done. Idempotent; never raises."""
        if self._ended:
            return
        self._ended = True
        try:
            self._tell(holds.DISARM, 0)
        except DeadManError:
            pass
        os.close(self._pipe)
        give_up = time.monotonic() + DISARM_TIMEOUT_S + (UNDO_TIMEOUT_S if self._doing else 0)
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > give_up:  # perhaps it was stopped by a signal; it has nothing left to do
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.002)

    def _tell(self, what: int, value: int) -> None:
        told = holds.message(what, value)
        try:
            if self._record and what in (holds.ARM, holds.FREEZING, holds.DOING, holds.RUNNING):
                self._record.note(told)
        except OSError as error:
            raise DeadManError(f"what is held cannot be noted in /run ({error.strerror})") from None
        try:
            os.write(self._pipe, told)
        except OSError as error:
            raise DeadManError(f"it is gone ({error.strerror})") from None
        finally:
            if self._record and what in (holds.NOT_OURS, holds.THAWED, holds.UNDONE, holds.ENDED):
                with contextlib.suppress(OSError):
                    self._record.note(told)


def last_rescue() -> Optional[str]:
    """What a dead-man did when it last had to act since the guest booted; None if none had to."""
    try:
        with open(RESCUE_NOTE) as file:
            return file.read(500).strip()
    except OSError:
        return None


class _Watch:
    """The dead-man's own side."""

    def __init__(
        self,
        pipe: int,
        filesystems: list[int],
        undos: Sequence[Undo],
        conversation: int,
        record: Optional[HoldRecord],
    ) -> None:
        self._pipe = pipe
        self._filesystems = filesystems
        self._undos = undos
        self._conversation = conversation
        self._record = record
        self._left = Outstanding()
        self._thawed: set[int] = set()
        self._threads: dict[int, threading.Thread] = {}
        self._unwritten: set[int] = set()
        """Undos whose descriptor no longer leads anywhere."""
        self._partial = b""

    def run(self, ready: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        try:
            os.setsid()
            gc.disable()
            threading.stack_size(256 * 1024)  # all of it is locked in memory
            linux.lock_memory()
            _never_kill_for_memory()
        except OSError as error:
            os.write(ready, str(error).encode())
            return
        os.write(ready, b"ready")
        os.close(ready)
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            timeout = None
            if self._left.deadline_ns is not None:
                timeout = max(0, -(-(self._left.deadline_ns - time.monotonic_ns()) // 1_000_000))
            if not poll.poll(timeout):
                self._rescue("the deadline passed", alive=True)
                return
            data = os.read(self._pipe, 4096)
            if not data:
                self._rescue("the agent died", alive=False)
                return
            if self._heed(data):
                return

    def _heed(self, data: bytes) -> bool:
        """Acts on messages. Returns True when the conversation disarmed it."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if line[0] != holds.DISARM:
                self._left.heed(line)
            else:
                self._thaw_all()
                self._write_undos()
                self._join()
                self._run_undos()
                return True
        return False

    def _rescue(self, why: str, *, alive: bool) -> None:
        """Thaws whatever the conversation may have frozen, again and again until it is dead and can freeze nothing more."""
        if alive:
            # It may be stopped, or in a freeze that completes only now. Its death also closes its sessions.
            try:
                os.kill(self._conversation, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._thaw_all()
        if alive:
            self._write_undos()  # these need no disk, so they need not wait for its death
            poll = select.poll()
            poll.register(self._pipe, select.POLLIN)
            while True:
                # What it announced before it died counts. The end of the pipe means that it is dead.
                if poll.poll(RETRY_MS):
                    data = os.read(self._pipe, 4096)
                    if not data:
                        break
                    self._heed(data)
                self._thaw_all()
            self._thaw_all()
        for group in self._left.running:
            kill_group(group)
        failed = self._write_undos()
        self._join()
        failed += self._run_undos()
        undone = f", {len(self._left.doing) - len(failed)} hold(s) taken back" if self._left.doing else ""
        if self._left.deadline_ns is not None:
            leave_note("; ".join([f"{why}; {len(self._thawed)} filesystem(s) thawed{undone}", *failed]))

    def _thaw_all(self) -> None:
        """Uses a thread for each filesystem: FITHAW waits while a freeze is under way, and the others must not wait for it."""
        for index in list(self._left.maybe_frozen):
            thread = self._threads.get(index)
            if thread is None or not thread.is_alive():
                thread = threading.Thread(target=self._thaw, args=(index,))
                try:
                    thread.start()
                except RuntimeError:  # no memory or process number is left for a thread
                    self._thaw(index)
                else:
                    self._threads[index] = thread

    def _join(self) -> None:
        """Returns when no thaw is under way, and nothing is frozen any more that the conversation may have frozen."""
        for thread in self._threads.values():
            thread.join()
        for index in self._left.maybe_frozen:
            self._note(holds.THAWED, index)

    def _thaw(self, index: int) -> None:
        try:
            fcntl.ioctl(self._filesystems[index], linux.FITHAW, 0)
        except OSError:
            return  # not frozen, or no longer, or not yet
        self._thawed.add(index)

    def _note(self, what: int, index: int) -> None:
        if self._record:
            with contextlib.suppress(OSError):
                self._record.note(holds.message(what, index))

    def _write_undos(self) -> list[str]:
        """Writes the bytes of the undos, the latest hold first. Returns what failed."""
        failed = []
        for index in reversed(self._left.doing):
            undo = self._undos[index]
            if undo.descriptor is not None:
                try:
                    os.write(undo.descriptor, undo.data)
                    self._note(holds.UNDONE, index)
                except OSError as error:
                    self._unwritten.add(index)
                    if not undo.call:
                        failed.append(f"{undo.data!r} failed: {error.strerror}")
        return failed

    def _run_undos(self) -> list[str]:
        """Runs the commands and calls of the undos all at once, so that one that hangs delays no other; it is killed after
        UNDO_TIMEOUT_S. Returns what failed."""
        todo = {index: self._undos[index] for index in reversed(self._left.doing)}
        failed, done = run_undos(
            {index: undo for index, undo in todo.items() if undo.descriptor is None or index in self._unwritten}
        )
        for index in done:
            self._note(holds.UNDONE, index)
        return failed


def _keep_only(descriptors: list[int]) -> None:
    keep = sorted({0, 1, 2, *descriptors})
    for low, high in zip(keep, [*keep[1:], os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low + 1, high)


def _never_kill_for_memory() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def leave_note(text: str) -> None:
    """Replaces what `last_rescue` returns. Never raises."""
    try:
        with open(RESCUE_NOTE, "w") as file:
            file.write(text)
    except OSError:
        pass

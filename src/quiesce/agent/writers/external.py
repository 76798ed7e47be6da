"""Writers for programs that registered (agent/programs.py): asked one thing at a time, and taken at their word, within bounds.

    {"id": 3, "do": "hold", "timeout_ms": 3000}      is answered by      {"id": 3, "outcome": "stable", "grade": "clean"}

The requests are the phases of `ApplicationWriter`, in the same order. A program's answer cannot be proved, only noted. If a
program does not answer in time, or its answer makes no sense, the agent closes the connection, which tells it to let go.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass, field, replace
from typing import Optional

from quiesce.agent.programs import Program, Programs, Registration
from quiesce.agent.sockets import peer_of
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns, left_s
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start
from quiesce.wire.framing import ProtocolError, from_line, to_line
from quiesce.wire.schema import from_wire

LET_GO_TIMEOUT_S = 2.0
"""Longest wait for a program to let go, in seconds: other writers wait behind it."""
POST_CHECKPOINT_TIMEOUT_S = 10.0
MAX_ANSWER = 4096
"""Longest answer, in bytes."""
MAX_TEXT = 400
MAX_WARNINGS = 8

_BEST_FIRST = list(Grade)


@dataclass(frozen=True)
class ProgramAnswer:
    id: int
    outcome: Outcome
    grade: Optional[Grade] = None
    reason: Optional[str] = None
    position: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def program_writers(programs: Programs) -> list[ApplicationWriter]:
    """One writer for each program that is connected, and for each that is missed."""
    return [*map(External, programs.connected()), *map(Missing, programs.missing())]


class _Registered(ApplicationWriter):
    def __init__(self, registration: Registration) -> None:
        super().__init__(registration.id)
        self.level = registration.level
        self.application = registration.application
        self.version = registration.version
        self.stateless = registration.stateless
        self.data_directory = next(iter(registration.paths), None)
        self.hold_limit_ms = registration.hold_timeout_ms
        self._paths = list(registration.paths)

    def paths(self) -> list[str]:
        return self._paths


class Missing(_Registered):
    """A program that was connected since the machine started, and is not connected now, without having taken leave."""

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError("its program was connected and went away without taking leave; start it again", grade=Grade.CRASH)


class External(_Registered):
    """A program that is connected."""

    def __init__(self, program: Program) -> None:
        registration = program.registration
        assert registration is not None  # `connected` lists only programs that registered
        super().__init__(registration)
        self._program = program
        self.pids = (peer_of(program.connection)[0],)
        self._attempt = False
        """Whether it was asked to prepare, and not yet told how the attempt ended."""

    def on_identify(self, deadline_ns: int) -> None:
        self._note(self._ask("identify", deadline_ns))

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._attempt = True
        self._note(self._ask("prepare", deadline_ns, window_ms=window_ms))

    def on_hold(self, deadline_ns: int) -> None:
        started = time.monotonic_ns()
        self._note(self._ask("hold", deadline_ns, timeout_ms=int(left_s(deadline_ns) * 1000)))
        self.time("hold", started)

    def on_release(self) -> None:
        answer = self._ask("release", deadline_in_ns(LET_GO_TIMEOUT_S))
        self.grade = max(self.grade, answer.grade or self.grade, key=_BEST_FIRST.index)

    def on_abort(self) -> None:
        attempt, self._attempt = self._attempt, False
        if attempt and self._program.open:
            self._ask("abort", deadline_in_ns(LET_GO_TIMEOUT_S))

    def on_post_checkpoint(self, kept: bool) -> None:
        attempt, self._attempt = self._attempt, False
        if attempt and self._program.open:
            self._ask("post-checkpoint", deadline_in_ns(POST_CHECKPOINT_TIMEOUT_S), kept=kept)

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        """What the program says its application found at its start: the grade that this proves, and the position."""
        answer = self._ask("verify", deadline_ns)
        did = Did.UNKNOWN
        if answer.grade:
            did = Did.NOTHING if answer.grade in (Grade.CLEAN, Grade.NIL_REDO) else Did.REDO
        checks = ("by its program's own account",) if answer.grade or answer.position else ()
        evidence = tuple(filter(None, (_cut(answer.reason),)))
        return replace(start, did=did, position=dict(answer.position), checks=checks, evidence=evidence)

    def _note(self, answer: ProgramAnswer) -> None:
        self.grade, self.reason = Grade.CLEAN if self.stateless else answer.grade or Grade.HELD, _cut(answer.reason)
        self.position = dict(answer.position)  # its position now; if it gives none, an earlier one does not count

    def _ask(self, do: str, deadline_ns: int, **arguments: int) -> ProgramAnswer:
        """Raises WriterError; unless the program itself gave the reason, its connection is closed then."""
        left_s(deadline_ns)
        try:
            answer = _exchange(self._program, {"do": do, **arguments}, deadline_ns)
        except (OSError, ProtocolError) as error:
            self._program.hang_up()
            if isinstance(error, TimeoutError):
                raise WriterError(f"it did not answer {do!r} in time", Outcome.TIMEOUT) from None
            if isinstance(error, OSError):
                raise WriterError(f"its connection ended at {do!r}") from None
            raise WriterError(f"its answer to {do!r} makes no sense: {error}", Outcome.NON_RETRYABLE) from None
        new = [warning for warning in map(_cut, answer.warnings) if warning and warning not in self.warnings]
        self.warnings += new[: max(0, MAX_WARNINGS - len(self.warnings))]
        if answer.outcome is not Outcome.STABLE:
            worth = answer.grade if answer.grade is Grade.CRASH else Grade.REFUSED
            raise WriterError(_cut(answer.reason) or f"it gives no reason why it cannot {do}", answer.outcome, worth)
        if answer.grade and not answer.grade.vouched and do != "verify":  # there, it tells of a recovery
            raise WriterError(
                _cut(answer.reason) or f"the program itself grades it {answer.grade.value}", Outcome.NON_RETRYABLE, answer.grade
            )
        return answer


def _exchange(program: Program, request: dict[str, object], deadline_ns: int) -> ProgramAnswer:
    """Raises TimeoutError, OSError if the connection ended, ProtocolError."""
    program.requests += 1
    program.connection.sendall(to_line({"id": program.requests, **request}))
    answer = from_wire(ProgramAnswer, from_line(_receive_line(program, deadline_ns)))
    if answer.id != program.requests:
        raise ProtocolError("its id is that of another request")
    return answer


def _receive_line(program: Program, deadline_ns: int) -> bytes:
    poll = select.poll()
    poll.register(program.connection, select.POLLIN)
    while True:
        if not poll.poll(max(0, -(-(deadline_ns - time.monotonic_ns()) // 1_000_000))):
            raise TimeoutError
        data = program.connection.recv(65536)
        if not data:
            raise ConnectionResetError
        lines = list(program.lines.feed(data))
        if len(lines) > 1:
            raise ProtocolError("it has more than one line")
        if lines:
            if lines[0] is None or len(lines[0]) > MAX_ANSWER:
                raise ProtocolError(f"it has more than {MAX_ANSWER} bytes")
            return lines[0]


def _cut(text: Optional[str]) -> Optional[str]:
    return text if text is None or len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

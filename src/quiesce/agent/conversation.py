"""One connected host: reads its requests, enforces their order, answers them. Whatever the host sends is checked."""

from __future__ import annotations

import hmac
import os
import platform
import select
import signal
import time
from contextlib import suppress
from typing import Any, Callable, Optional

from quiesce import __version__
from quiesce.agent import bounds, deadman, looks, trial
from quiesce.agent.attempt import Attempt, AttemptError
from quiesce.agent.inventory import FilesystemList
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.model.reports import WriterReport
from quiesce.wire import framing, messages
from quiesce.wire.framing import ProtocolError
from quiesce.wire.messages import ErrorCode, Op, Request, State
from quiesce.wire.schema import to_wire

CAPABILITIES = ("freeze", "dead-man", "post-checkpoint", "verify")
ANSWER_MARGIN_NS = 5_000_000_000
"""How long before its deadline `identify` asks no more applications, in nanoseconds, so that the host gets an answer."""
OVERTIME_S = 15
"""How much longer a step may take than the host waits for it, in seconds."""
LET_GO_S = 300
"""The same of a step that may have to let applications go, each of which has its own time for that."""
WRITE_TIMEOUT_MS = 5000
"""A host that reads nothing for this long, in milliseconds, counts as gone."""

ALLOWED: dict[Op, tuple[State, ...]] = {
    Op.PREPARE: (State.IDLE,),
    Op.HOLD: (State.PREPARED, State.HELD),
    Op.FREEZE: (State.PREPARED, State.HELD),
    Op.THAW: (State.FROZEN,),
    Op.RELEASE: (State.HELD, State.THAWED),
    Op.POST_CHECKPOINT: (State.RELEASED,),
    Op.ABORT: tuple(State),
    Op.HELLO: tuple(State),
    Op.IDENTIFY: (State.IDLE,),
    Op.STATUS: tuple(State),
    Op.VERIFY: (State.IDLE,),
}
"""The states in which each request may come."""
_SLOW = (Op.IDENTIFY, Op.PREPARE, Op.VERIFY)
"""Requests that may take minutes, and hold nothing."""


class _HungUpError(BaseException):
    """Nobody waits for the answer any more. Passes by all that writers and their libraries catch."""


class Conversation:
    """From the host's first byte until it hangs up, which aborts an attempt that is under way."""

    def __init__(self, port: int, discover: Callable[[], list[ApplicationWriter]]) -> None:
        self._port = port
        self._discover = discover
        self._splitter = framing.LineSplitter()
        self._attempt: Optional[Attempt] = None
        self._expired = False
        self._slow = False
        """In a step that may take minutes, and holds nothing."""

    def run(self) -> None:
        try:
            while self._wait():
                try:
                    data = os.read(self._port, 65536)
                except BlockingIOError:
                    continue
                if not data:
                    return
                for line in self._splitter.feed(data):
                    self._write(framing.to_line(self.answer(line)))
        except _HungUpError:
            return
        finally:
            signal.alarm(LET_GO_S)
            self._drop_attempt()
            signal.alarm(0)

    def answer(self, line: Optional[bytes]) -> dict[str, Any]:
        """The reply to one line. Never raises, whatever the line contains."""
        request_id = 0
        try:
            if line is None:
                raise ProtocolError(f"a line of more than {framing.MAX_LINE} bytes")
            message = framing.from_line(line)
            if isinstance(message.get("id"), int):
                request_id = message["id"]
            request = messages.parse_request(message)
            return {"id": request.id, "result": to_wire(self._perform(request))}
        except ProtocolError as error:
            return _error(request_id, ErrorCode.BAD_REQUEST, str(error))
        except AttemptError as error:
            return _error(request_id, error.code, str(error), error.writers)
        except Exception as error:  # noqa: BLE001 - the host waits for an answer, and the guest must leave the window
            self._drop_attempt()
            return _error(request_id, ErrorCode.FAILED, f"{type(error).__name__}: {error}")

    def _perform(self, request: Request) -> Any:
        state = self._attempt.state if self._attempt else State.IDLE
        attempt = self._attempt
        unguarded = request.op in (Op.STATUS, Op.HELLO, Op.IDENTIFY)
        if attempt and not unguarded and not hmac.compare_digest(attempt.token.encode(), request.token.encode()):
            raise AttemptError(ErrorCode.WRONG_TOKEN, "this attempt has another token")
        if state not in ALLOWED[request.op]:
            if self._expired and not attempt:
                raise AttemptError(ErrorCode.DEADLINE, "the deadline passed; the guest has released everything")
            raise AttemptError(ErrorCode.WRONG_STATE, f"{request.op.value} is not possible while {state.value}")
        deadline_ns = time.monotonic_ns() + request.deadline_ms * 1_000_000
        # If the step hangs all the same, SIGALRM ends this process, and the dead-man lets everything go.
        signal.alarm(request.deadline_ms // 1000 + (OVERTIME_S if request.op in _SLOW else LET_GO_S))
        self._slow = request.op in _SLOW
        looks.renew_patience()
        try:
            return self._handlers()[request.op](request, deadline_ns)
        except AttemptError:
            self._slow = False
            self._drop_attempt()
            raise
        finally:
            self._slow = False
            signal.alarm(0)

    def hear_of_hang_up(self, _number: int, _frame: object) -> None:
        """A handler of SIGTERM, by which the service tells that the host has hung up. Only a slow step is interrupted: others
        are short, or let applications go."""
        if self._slow:
            self._slow = False
            raise _HungUpError

    def _handlers(self) -> dict[Op, Callable[[Request, int], Any]]:
        return {
            Op.HELLO: self._hello,
            Op.IDENTIFY: self._identify,
            Op.PREPARE: self._prepare,
            Op.HOLD: lambda request, deadline: self._current.hold(request.args.level, deadline),
            Op.FREEZE: lambda request, deadline: self._current.freeze(deadline),
            Op.THAW: lambda request, deadline: self._current.thaw(),
            Op.RELEASE: lambda request, deadline: self._current.release(request.args.level),
            Op.POST_CHECKPOINT: self._post_checkpoint,
            Op.ABORT: self._abort,
            Op.STATUS: lambda request, deadline: self._status(),
            Op.VERIFY: self._verify,
        }

    @property
    def _current(self) -> Attempt:
        assert self._attempt is not None  # ALLOWED requires a state that only an attempt has
        return self._attempt

    def _hello(self, request: Request, deadline_ns: int) -> messages.HelloReply:
        """A greeting means a new connection: an earlier host hung up, perhaps unseen during a long step."""
        self._drop_attempt()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read().strip()
        return messages.HelloReply(
            request.args.nonce, messages.PROTOCOL, __version__, CAPABILITIES, boot_id, platform.python_version()
        )

    def _identify(self, request: Request, deadline_ns: int) -> messages.Inventory:
        listed = FilesystemList()
        found = self._discover()
        until_ns = deadline_ns - ANSWER_MARGIN_NS
        try:
            for writer in found:
                writer.identify(until_ns, _why_not_to_ask(writer, listed))
                with suppress(OSError):
                    writer.filesystems = listed.mount_points(writer.where()) or None
            reports = bounds.bounded_writers([writer.report() for writer in found])
            return messages.Inventory(reports, bounds.bounded_filesystems(listed.report))
        finally:
            for writer in found:
                writer.abort()

    def _verify(self, request: Request, deadline_ns: int) -> messages.Verified:
        from quiesce.agent import verification  # a checkpoint needs none of it

        if not request.args.trial or request.args.trial != trial.trial_id():
            raise AttemptError(ErrorCode.REFUSED, "this machine is not the copy that is to be verified")
        return verification.ask_all(self._discover, deadline_ns - ANSWER_MARGIN_NS)

    def _prepare(self, request: Request, deadline_ns: int) -> messages.Inventory:
        if not request.token:
            raise AttemptError(ErrorCode.BAD_REQUEST, "an attempt needs a token")
        if not 0 < request.args.window_ms <= messages.MAX_WINDOW_MS:
            raise AttemptError(ErrorCode.BAD_REQUEST, f"window_ms must be from 1 to {messages.MAX_WINDOW_MS}")
        self._expired = False
        asked: messages.Prepare = request.args
        self._attempt = Attempt(request.token, asked)
        return self._attempt.prepare(self._discover(), deadline_ns)

    def _post_checkpoint(self, request: Request, deadline_ns: int) -> messages.Status:
        self._current.post_checkpoint(request.args.kept)
        self._drop_attempt()
        return self._status()

    def _abort(self, request: Request, deadline_ns: int) -> messages.Status:
        self._drop_attempt()
        return self._status()

    def _status(self) -> messages.Status:
        attempt = self._attempt
        return messages.Status(
            attempt.state if attempt else State.IDLE,
            attempt.left_ms() if attempt else None,
            deadman.last_rescue(),
            _resident_kib(os.getppid()),
        )

    def _drop_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt:
            attempt.abort()

    def _wait(self) -> bool:
        """Waits for input or the attempt's deadline, which it enforces. False when the host hung up."""
        poll = select.poll()
        poll.register(self._port, select.POLLIN)
        left = self._attempt.left_ms() if self._attempt else None
        events = poll.poll(left)
        if not events or left == 0:
            self._expired = True
            self._drop_attempt()
            return True
        # A request that the host sent before it hung up is not carried out: nobody waits for the answer.
        return not events[0][1] & select.POLLHUP

    def _write(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self._port, select.POLLOUT)
        while data:
            try:
                data = data[os.write(self._port, data) :]
            except BlockingIOError:
                events = poll.poll(WRITE_TIMEOUT_MS)
                if not events:
                    raise TimeoutError("the host does not read its answer") from None
                if events[0][1] & select.POLLHUP:  # without a host the driver never makes room
                    raise _HungUpError from None


def _why_not_to_ask(writer: ApplicationWriter, listed: FilesystemList) -> str:
    """An application whose filesystem somebody has frozen does not answer either; each would cost its whole time-out."""
    try:
        return listed.why_unwritable(writer.where())
    except OSError:
        return ""


def _error(request_id: int, code: ErrorCode, message: str, found: tuple[WriterReport, ...] = ()) -> dict[str, Any]:
    return {"id": request_id, "error": to_wire(messages.Error(code, message[:1000], found))}


def _resident_kib(pid: int) -> Optional[int]:
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None

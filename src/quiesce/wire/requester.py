"""The host's end of the conversation: sends a request, waits for the reply, and checks everything in it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, Protocol

from quiesce.model.grades import Level
from quiesce.wire import framing, messages
from quiesce.wire.framing import ProtocolError
from quiesce.wire.messages import Op
from quiesce.wire.schema import to_wire


class Transport(Protocol):
    """A two-way byte stream to one guest."""

    def send(self, data: bytes, timeout: float) -> None:
        """Sends all of `data`. Raises TimeoutError after `timeout` seconds, ConnectionError if the stream was closed."""

    def receive(self, timeout: float) -> bytes:
        """The next bytes. Raises TimeoutError after `timeout` seconds, ConnectionError if the stream was closed."""

    def close(self) -> None:
        """Idempotent; never raises."""


class AgentRefusedError(Exception):
    """The agent answered with an error. `error.writers` are the writers that refused, if writers did."""

    def __init__(self, error: messages.Error) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True)
class Greeting:
    """The result of the handshake."""

    software: str
    capabilities: tuple[str, ...]
    boot_id: str


GRACE_S = 1.0
"""How much longer than the agent's own deadline the requester waits for its answer, in seconds."""


class Requester:
    """One conversation. Not thread-safe: one request at a time.

    After any exception except AgentRefusedError the state of the stream is unknown: close it. The guest then releases by
    itself.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._splitter = framing.LineSplitter()
        self._lines: list[bytes | None] = []
        self._next_id = secrets.randbelow(2**31)  # so that no answer of an earlier conversation has this id
        self.token = secrets.token_hex(16)

    def hello(self, software: str, timeout: float) -> Greeting:
        """The handshake. Skips messages that an earlier conversation left in the stream.

        Raises TimeoutError if no agent answers, ProtocolError if the agent's protocol is not ours.
        """
        nonce = secrets.token_hex(16)
        self._transport.send(b"\n", timeout)
        reply = self._call(Op.HELLO, messages.Hello(nonce, messages.PROTOCOL, software), timeout, nonce=nonce)
        if reply.protocol != messages.PROTOCOL:
            raise ProtocolError(f"the agent speaks protocol {reply.protocol}, this host {messages.PROTOCOL}")
        return Greeting(reply.software, reply.capabilities, reply.boot_id)

    def identify(self, timeout: float) -> messages.Inventory:
        return self._call(Op.IDENTIFY, messages.Nothing(), timeout)

    def prepare(self, asked: messages.Prepare, timeout: float) -> messages.Inventory:
        return self._call(Op.PREPARE, asked, timeout)

    def hold(self, level: Level, timeout: float) -> messages.Held:
        return self._call(Op.HOLD, messages.AtLevel(level), timeout)

    def freeze(self, timeout: float) -> messages.Frozen:
        return self._call(Op.FREEZE, messages.Nothing(), timeout)

    def thaw(self, timeout: float) -> messages.Thawed:
        return self._call(Op.THAW, messages.Nothing(), timeout)

    def release(self, level: Level, timeout: float) -> messages.Released:
        return self._call(Op.RELEASE, messages.AtLevel(level), timeout)

    def post_checkpoint(self, kept: bool, timeout: float) -> messages.Status:
        return self._call(Op.POST_CHECKPOINT, messages.PostCheckpoint(kept), timeout)

    def abort(self, timeout: float) -> messages.Status:
        return self._call(Op.ABORT, messages.Nothing(), timeout)

    def status(self, timeout: float) -> messages.Status:
        return self._call(Op.STATUS, messages.Nothing(), timeout)

    def verify(self, trial: str, timeout: float) -> messages.Verified:
        return self._call(Op.VERIFY, messages.Verify(trial), timeout)

    def close(self) -> None:
        self._transport.close()

    def _call(self, op: Op, arguments: Any, timeout: float, nonce: str | None = None) -> Any:
        request_id = self._next_id
        self._next_id += 1
        deadline = time.monotonic() + timeout + (0 if op is Op.HELLO else GRACE_S)
        request = {
            "id": request_id,
            "op": op.value,
            "token": self.token,
            "deadline_ms": int(timeout * 1000),
            "args": to_wire(arguments),
        }
        self._transport.send(framing.to_line(request), timeout)
        misfit: ProtocolError | None = None
        while True:
            try:
                line = self._receive_line(deadline)
            except TimeoutError:
                # Answers came, but none was valid: that error helps the user more than the time-out.
                if misfit:
                    raise misfit from None
                raise
            try:
                message = self._decode(line)
                if message.get("id") != request_id:
                    raise ProtocolError("the reply has the id of another request")
            except ProtocolError:
                if nonce:
                    continue  # left in the stream by an earlier conversation
                raise
            try:
                reply = messages.parse_reply(message, op)
            except ProtocolError as error:
                if not nonce:
                    raise
                misfit = error
                continue
            if reply.error is not None:
                raise AgentRefusedError(reply.error)
            if not nonce or reply.result.nonce == nonce:
                return reply.result

    def _decode(self, line: bytes | None) -> dict[str, Any]:
        if line is None:
            raise ProtocolError(f"a line of more than {framing.MAX_LINE} bytes")
        return framing.from_line(line)

    def _receive_line(self, deadline: float) -> bytes | None:
        while not self._lines:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the guest agent does not answer")
            self._lines.extend(self._splitter.feed(self._transport.receive(left)))
        return self._lines.pop(0)

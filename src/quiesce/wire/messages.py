"""The messages between host and agent.

The host sends one request at a time and waits for its reply:

    {"id": 7, "op": "freeze", "token": "5f0c...", "deadline_ms": 2000, "args": {}}
    {"id": 7, "result": {...}}    or    {"id": 7, "error": {"code": "refused", "message": "..."}}

`token` names the attempt. The host chooses it in `prepare`; the agent refuses every later step with another token, and every
step out of order. `deadline_ms` is how long the host waits; the agent gives the step up by itself when this time has passed. No
request lets the host choose a command to run, or a file to read or write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Optional

from quiesce.model.grades import Level
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.starts import FailedUnit, Start
from quiesce.wire.framing import ProtocolError
from quiesce.wire.schema import from_wire

PROTOCOL = 1
PORT_NAME = "io.quiesce.agent.0"
DEVICE = "/dev/virtio-ports/" + PORT_NAME
QEMU_AGENT_RESTART = "quiesce-restart-qemu-agent"
"""Name of the guest's timer and service that restart qemu-guest-agent after our hook was installed."""
MAX_WINDOW_MS = 60_000
"""Longest window that an agent agrees to: VSS's own limit from freeze to thaw (the default of `dwTimeoutFreeze` of
CVssWriter::Initialize, vswriter.h)."""


class Op(str, Enum):
    HELLO = "hello"
    IDENTIFY = "identify"
    PREPARE = "prepare"
    HOLD = "hold"
    FREEZE = "freeze"
    THAW = "thaw"
    RELEASE = "release"
    POST_CHECKPOINT = "post-checkpoint"
    ABORT = "abort"
    STATUS = "status"
    VERIFY = "verify"


class State(str, Enum):
    """The state of an attempt. States follow in this order; `abort` leads back to idle from every state."""

    IDLE = "idle"
    PREPARED = "prepared"
    HELD = "held"
    FROZEN = "frozen"
    THAWED = "thawed"
    RELEASED = "released"
    """Everything runs. The writers have not been told yet whether the checkpoint was kept."""


class ErrorCode(str, Enum):
    BAD_REQUEST = "bad-request"
    WRONG_TOKEN = "wrong-token"  # noqa: S105
    WRONG_STATE = "wrong-state"
    DEADLINE = "deadline"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Request:
    id: int
    op: Op
    token: str = ""
    deadline_ms: int = 0
    args: Any = None


@dataclass(frozen=True)
class Hello:
    nonce: str
    protocol: int
    software: str


@dataclass(frozen=True)
class HelloReply:
    nonce: str
    protocol: int
    software: str
    capabilities: tuple[str, ...]
    boot_id: str
    python: str


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@dataclass(frozen=True)
class Inventory:
    """Reply to identify and prepare: all applications and filesystems, in the order in which they are held and frozen."""

    writers: tuple[WriterReport, ...]
    filesystems: tuple[Filesystem, ...]


@dataclass(frozen=True)
class Prepare:
    window_ms: int
    """The guest's own deadline, counted from the first hold: whatever happens, everything is released by then."""
    insist: bool
    """Whether a required writer that cannot hold fails the attempt. If not, that writer is released and gets the grade
    *crash*."""
    nil_redo: bool = False
    """Whether a writer that has the choice must get its application to nil redo; otherwise it takes the shorter hold."""


@dataclass(frozen=True)
class AtLevel:
    level: Level


@dataclass(frozen=True)
class Held:
    writers: tuple[WriterReport, ...]
    monotonic_ns: int
    """The guest's CLOCK_MONOTONIC when the last writer of this level held."""


@dataclass(frozen=True)
class Frozen:
    freeze_token: str
    filesystems: tuple[Filesystem, ...]


@dataclass(frozen=True)
class Thawed:
    freeze_token: str
    unbroken: bool
    """Whether this freeze lasted, on every filesystem, until the thaw."""
    filesystems: tuple[Filesystem, ...]
    window_us: int
    """Time from the start of the first hold (or, with nothing to hold, of the freeze) to the end of the thaw, by the guest's
    clock."""


@dataclass(frozen=True)
class Released:
    writers: tuple[WriterReport, ...]
    monotonic_ns: int
    """The guest's CLOCK_MONOTONIC just before the first writer of this level was released."""
    window_us: int
    """Time from the start of the first hold to the end of this release, by the guest's clock."""


@dataclass(frozen=True)
class PostCheckpoint:
    kept: bool
    """Whether the checkpoint was kept."""


@dataclass(frozen=True)
class Verify:
    trial: str
    """The id of the copy, which the host gave it in its SMBIOS data. The agent refuses another, and in any other machine."""


@dataclass(frozen=True)
class Verified:
    """How everything started in a copy of a checkpoint."""

    starts: tuple[Start, ...]
    failed_units: tuple[FailedUnit, ...] = ()
    boot_ms: Optional[int] = None
    """When systemd had started everything, in milliseconds since the kernel started; None: it had not."""


@dataclass(frozen=True)
class Status:
    state: State
    deadline_left_ms: Optional[int] = None
    last_rescue: Optional[str] = None
    """What the dead-man did the last time it had to act since the guest booted; None: it never had to."""
    agent_rss_kib: Optional[int] = None


@dataclass(frozen=True)
class Error:
    code: ErrorCode
    message: str
    writers: tuple[WriterReport, ...] = ()


@dataclass(frozen=True)
class Reply:
    id: int
    result: Any = None
    error: Optional[Error] = None


ARGUMENTS: dict[Op, type[Any]] = {
    Op.HELLO: Hello,
    Op.IDENTIFY: Nothing,
    Op.PREPARE: Prepare,
    Op.HOLD: AtLevel,
    Op.FREEZE: Nothing,
    Op.THAW: Nothing,
    Op.RELEASE: AtLevel,
    Op.POST_CHECKPOINT: PostCheckpoint,
    Op.ABORT: Nothing,
    Op.STATUS: Nothing,
    Op.VERIFY: Verify,
}

RESULTS: dict[Op, type[Any]] = {
    Op.HELLO: HelloReply,
    Op.IDENTIFY: Inventory,
    Op.PREPARE: Inventory,
    Op.HOLD: Held,
    Op.FREEZE: Frozen,
    Op.THAW: Thawed,
    Op.RELEASE: Released,
    Op.POST_CHECKPOINT: Status,
    Op.ABORT: Status,
    Op.STATUS: Status,
    Op.VERIFY: Verified,
}

_ID = "id"


def parse_request(message: dict[str, Any]) -> Request:
    """A request with its arguments as their dataclass. Raises ProtocolError."""
    if message.keys() - {_ID, "op", "token", "deadline_ms", "args"}:
        raise ProtocolError("request: unknown field(s)")
    envelope = from_wire(_Envelope, {key: value for key, value in message.items() if key != "args"})
    if not 0 <= envelope.deadline_ms <= 3_600_000:
        raise ProtocolError("request: deadline_ms out of range")
    arguments = from_wire(ARGUMENTS[envelope.op], message.get("args", {}))
    return Request(envelope.id, envelope.op, envelope.token, envelope.deadline_ms, arguments)


def parse_reply(message: dict[str, Any], op: Op) -> Reply:
    """A reply to `op`. Raises ProtocolError."""
    if message.keys() - {_ID, "result", "error"} or type(message.get(_ID)) is not int:
        raise ProtocolError("reply: not an answer to a request")
    if ("result" in message) == ("error" in message):
        raise ProtocolError("reply: needs a result or an error")
    if "error" in message:
        return Reply(message[_ID], error=from_wire(Error, message["error"]))
    return Reply(message[_ID], result=from_wire(RESULTS[op], message["result"]))


@dataclass(frozen=True)
class _Envelope:
    id: int
    op: Op
    token: str = ""
    deadline_ms: int = 0

"""The interface of a guest: our agent, VSS, or a script in memory answers.

Errors: GuestRefusedError if the guest refuses a step, AgentError for all other failures of a conversation. After an AgentError
that is not a GuestRefusedError the state of the conversation is unknown: close it, and the guest releases by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quiesce.model.errors import AgentError
from quiesce.model.grades import Level
from quiesce.model.reports import WriterReport
from quiesce.wire.messages import Frozen, Held, Inventory, Prepare, Released, Status, Thawed, Verified

PREPARE_TIMEOUT_S = 600.0
"""Longest preparation, in seconds. Applications run meanwhile."""
POST_CHECKPOINT_TIMEOUT_S = 60.0
IDENTIFY_TIMEOUT_S = 60.0


class GuestRefusedError(AgentError):
    """The guest refused a step. `reason`: the guest's message. `writers`: the writers that refused, if writers did."""

    def __init__(self, vm_name: str, reason: str, writers: Sequence[WriterReport] = ()) -> None:
        super().__init__(f"the agent of {vm_name} refused: {reason}")
        self.reason = reason
        self.writers = tuple(writers)

    @property
    def kind(self) -> str:
        return "agent"  # the difference matters to whoever takes a checkpoint, not to users


class Guest(Protocol):
    """One attempt at a time, in this order: prepare, hold level by level, freeze, thaw, release in reverse, post_checkpoint.
    `abort` is allowed at any time.

    Times are in seconds. A step without an answer within `timeout` raises AgentError.
    """

    freezes_first: bool
    """Whether the guest freezes before any member holds. The freeze of such a guest includes its preparation, and the writes of
    other members must not wait for that."""
    extra_window_s: float
    """How much longer than the window freeze and thaw may take, because they include other work."""
    hold_s: float
    """Longest time from the end of the freeze to the end of the switch."""
    has_clock: bool
    """Whether `monotonic_ns` in the answers is from the guest's own clock."""

    def software(self) -> str:
        """Name and version of the software that answers."""

    def identify(self, timeout: float, /) -> Inventory:
        """The guest's writers and filesystems. Changes nothing in the guest."""

    def prepare(self, asked: Prepare, timeout: float, /) -> Inventory:
        """Does the long work before the window."""

    def hold(self, level: Level, timeout: float, /) -> Held: ...

    def freeze(self, timeout: float, /) -> Frozen: ...

    def thaw(self, timeout: float, /) -> Thawed: ...

    def release(self, level: Level, timeout: float, /) -> Released: ...

    def post_checkpoint(self, kept: bool, timeout: float, /) -> Status:
        """Tells the writers whether the checkpoint was kept."""

    def verify(self, trial: str, timeout: float, /) -> Verified:
        """In a copy of a checkpoint that was booted aside, instead of an attempt: how everything started. `trial`: the id that
        the copy has in its SMBIOS data. Raises AgentError if the guest's agent is older than that."""

    def abort(self, timeout: float, /) -> Status:
        """Thaws and releases all that is frozen or held. Can be repeated."""

    def close(self) -> None:
        """Ends the conversation; the guest releases all that is held. Never raises."""

"""A guest as the requester sees it, whoever answers in it: our agent, VSS, or a script in memory.

Errors come translated: GuestRefusedError if the guest says no, AgentError for everything else that goes wrong in a
conversation. After an AgentError that is no refusal the conversation's state is unknown: close it, and the guest releases by
itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quiesce.model.errors import AgentError
from quiesce.model.grades import Level
from quiesce.model.reports import WriterReport
from quiesce.wire.messages import Frozen, Held, Inventory, Released, Status, Thawed

PREPARE_TIMEOUT_S = 600.0
"""Longest preparation, in seconds; applications run meanwhile."""
POST_CHECKPOINT_TIMEOUT_S = 60.0
IDENTIFY_TIMEOUT_S = 60.0


class GuestRefusedError(AgentError):
    """The guest refused a step. `reason`: in its own words; `writers`: those that refused, where it was a writer."""

    def __init__(self, vm_name: str, reason: str, writers: Sequence[WriterReport] = ()) -> None:
        super().__init__(f"the agent of {vm_name} refused: {reason}")
        self.reason = reason
        self.writers = tuple(writers)

    @property
    def kind(self) -> str:
        return "agent"  # the difference matters to whoever takes a checkpoint, not to users


class Guest(Protocol):
    """One attempt at a time: prepare, hold level by level, freeze, thaw, release in reverse, post_checkpoint; abort from
    anywhere.

    Times are in seconds. A step that has no answer within `timeout` raises AgentError.
    """

    freezes_first: bool
    """Its freeze includes its preparation, for which nobody else's writes may wait: it freezes before any member is held."""
    extra_window_s: float
    """How much longer than the window its freeze and its thaw may take, because they do more than to freeze and to thaw."""
    hold_s: float
    """Longest time from the end of its freeze to the end of the switch."""
    has_clock: bool
    """Whether `monotonic_ns` of its answers is the guest's own clock."""

    def software(self) -> str:
        """Name and version of who answers."""

    def identify(self, timeout: float, /) -> Inventory:
        """Its writers and filesystems, touching nothing."""

    def prepare(self, window_ms: int, insist: bool, timeout: float, /) -> Inventory:
        """Does what takes long. `window_ms`: the guest's own deadline for the window. `insist`: a required writer that cannot
        be held is a refusal; otherwise it is graded as what it is then."""

    def hold(self, level: Level, timeout: float, /) -> Held: ...

    def freeze(self, timeout: float, /) -> Frozen: ...

    def thaw(self, timeout: float, /) -> Thawed: ...

    def release(self, level: Level, timeout: float, /) -> Released: ...

    def post_checkpoint(self, kept: bool, timeout: float, /) -> Status:
        """Tells the writers whether there is a checkpoint now."""

    def abort(self, timeout: float, /) -> Status:
        """Thaws and releases whatever is frozen or held. Can be called again."""

    def close(self) -> None:
        """Ends the conversation; the guest releases whatever is held. Never raises."""

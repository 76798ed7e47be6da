"""The proof of a checkpoint: what came of it when a copy was booted aside. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from quiesce.model.grades import Grade


class ProofState(str, Enum):
    PROVEN = "proven"
    """It started as its grade claims."""
    RECOVERED = "recovered"
    """It started, with a recovery that its grade does not claim."""
    FAILED = "failed"
    """It did not start, or something is wrong with it."""
    UNTRIED = "untried"
    """Nothing tells how it started, and it has no check of its own."""


_WORST_FIRST = (ProofState.FAILED, ProofState.RECOVERED, ProofState.UNTRIED, ProofState.PROVEN)


@dataclass(frozen=True)
class WriterProof:
    """What came of one application, of the filesystems, or of an administrator's check."""

    id: str
    state: ProofState
    text: str
    """The end of a sentence that begins with the application's name."""
    claimed: Grade | None = None
    """The grade at the checkpoint; None: the checkpoint does not know it."""
    differs: bool = False
    """Whether the grade claimed more than was found: an error of quiesce, of the writer, or a damage since."""
    required: bool = True
    redo_bytes: int | None = None
    """Bytes of its log that its recovery replayed."""
    answered_ms: int | None = None
    """When its service was up, in milliseconds since the copy's kernel started."""
    checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    """Lines of its log."""


@dataclass(frozen=True)
class Proof:
    """What came of a checkpoint. It is void as soon as an image of the checkpoint changes."""

    state: ProofState
    tried: str
    """UTC, ISO 8601."""
    text: str
    """A sentence about the whole."""
    seconds: int
    """How long it took, in seconds."""
    boot_ms: int | None = None
    """When systemd had started everything, in milliseconds since the copy's kernel started."""
    writers: tuple[WriterProof, ...] = ()
    left_out: tuple[str, ...] = ()
    """What the VM has and the copy had not."""
    evidence: tuple[str, ...] = ()
    """The last lines of the copy's console, if it did not come up."""

    @property
    def differs(self) -> bool:
        """Whether the checkpoint claims more than was found."""
        return any(writer.differs for writer in self.writers)


def worst(proofs: Iterable[WriterProof]) -> ProofState:
    """The state of the whole. What no label depends on cannot lower it, except by a failure."""
    return worst_of(each.state for each in proofs if each.required or each.state is ProofState.FAILED)


def worst_of(states: Iterable[ProofState]) -> ProofState:
    """The worst of these states; PROVEN if there is none."""
    found = set(states)
    return next((state for state in _WORST_FIRST if state in found), ProofState.PROVEN)


def summary(proofs: Iterable[WriterProof]) -> str:
    """A sentence about the whole: what lowers it, each in its own words."""
    found = list(proofs)
    state = worst(found)
    if state is ProofState.PROVEN:
        return "every application started as its grade claims" if found else "it came up; it has no application"
    return "; ".join(f"{each.id} {each.text}" for each in found if each.state is state)

"""Boots a copy of a checkpoint aside, has everything in it tell how it started, and records what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import BootCopy, Prove
from quiesce.codec import encode
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import BusyError, ProofError, UsageError
from quiesce.model.events import Warned
from quiesce.model.names import CheckpointReference
from quiesce.model.proof import Proof, ProofState
from quiesce.model.tree import Checkpoint
from quiesce.operations.copies import DEFAULT_TIMEOUT_S, Share, copied, prove, require_sensible, turn
from quiesce.recovery import journalled, operating
from quiesce.repair.trials import undo_trial

RECORD_PATIENCE_S = 300.0
"""Longest wait for another operation on the VM before the proof is recorded, in seconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class Proven:
    """The checkpoint with its proof."""

    checkpoint: Checkpoint
    proof: Proof
    recorded: bool
    """Not if the checkpoint is gone meanwhile, or if another program changed one of its images."""

    @property
    def as_claimed(self) -> bool:
        """Whether it started, and the checkpoint claims no more than was found."""
        return self.proof.state is not ProofState.FAILED and not self.proof.differs

    @property
    def trouble(self) -> str:
        """What is not as claimed, and what failed."""
        lines = [f"{each.id} {each.text}" for each in self.proof.writers if each.differs or each.state is ProofState.FAILED]
        return "; ".join(lines) or self.proof.text


def verify(
    context: Context,
    reference: CheckpointReference,
    *,
    memory: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    at_once: int = 1,
) -> Proven:
    """Boots a copy of the checkpoint and returns what came of it. `memory`: the most memory of the copy, in bytes. `timeout_s`:
    longest time from its start until all is checked. `at_once`: how many copies may run on this host; further ones wait.

    Nothing of the VM, of the checkpoint or of the network is touched, and nothing is left of the copy. The proof is recorded
    with the checkpoint. Raises ProofError after that if the checkpoint claims more than was found, or does not start. Raises
    NotFoundError, RefusedError, NoSpaceError, BusyError, AgentError if there is nothing to record."""
    require_sensible(timeout_s)
    if at_once < 1:
        raise UsageError("--at-once takes a number from 1 on")
    with (
        turn(context, f"quiesce verify {reference.vm}@{reference.checkpoint}", at_once) as host,
        copied(context, host, reference, Share(memory)) as copy,
        context.phase("boot the copy"),
    ):
        proof = prove(context, copy, time.monotonic() + timeout_s)
    proven = record_proof(context, copy.node, proof)
    if not proven.as_claimed:
        raise _not_as_claimed(proven)
    return proven


def _not_as_claimed(proven: Proven) -> ProofError:
    node, proof = proven.checkpoint, proven.proof
    return ProofError(
        f"checkpoint {node.name!r} of {node.vm_name}, booted aside, is not what it claims to be ({proof.state.value}):"
        f" {proven.trouble}",
        hint="`quiesce show` has the evidence, if it was recorded; an earlier checkpoint may be better",
        details={"checkpoint": node.id, "recorded": proven.recorded, "proof": encode(proof)},
    )


def record_proof(context: Context, node: Checkpoint, proof: Proof) -> Proven:
    """Records the proof with the checkpoint. Warns if the checkpoint is gone, or changed meanwhile."""
    recorded = _record(context, node, proof)
    if recorded is None:
        context.emit(
            Warned(
                f"the proof of {node.vm_name}@{node.name} is not recorded: the checkpoint is gone, or another program changed"
                " an image of it"
            )
        )
    return Proven(recorded or replace(node, proof=proof), proof, recorded is not None)


def _record(context: Context, node: Checkpoint, proof: Proof) -> Checkpoint | None:
    """The checkpoint with its proof; None if it is gone, or changed meanwhile."""

    def put() -> Checkpoint | None:
        with operating(context, node.vm_uuid, "verify") as vm:
            found = survey(context, vm, patient=True)
            now = found.tree.get(node.id)
            if now is None or now.hidden or found.changed_for(disk.path for disk in now.disks):
                return None
            proven = replace(now, proof=proof)
            with journalled(context, vm, "verify") as journal, journal.step(Prove(node.id)):
                context.catalog.checkpoints.update(proven)
                images.write_manifest(context, vm, proven)
            return proven

    with context.phase("record"):
        return _patiently(put)


def _patiently(do: Callable[[], T]) -> T:
    deadline = time.monotonic() + RECORD_PATIENCE_S
    while True:
        try:
            return do()
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Of the copy itself, or of the VM whose checkpoint was to get its proof: recovery.py writes the manifest again."""
    if operation.of(BootCopy):
        return undo_trial(context, vm.host, vm.uuid, operation)
    return "can be called again"

"""Boots copies of all members of a group's checkpoint aside, together, and records what came of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from quiesce.codec import encode
from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.local.hub import Hub
from quiesce.model.errors import CancelledError, ProofError, QuiesceError, RefusedError, UsageError
from quiesce.model.groups import START_ORDER, Tier
from quiesce.model.names import CheckpointReference
from quiesce.model.proof import Proof, ProofState, worst_of
from quiesce.model.tree import Checkpoint, GroupPart
from quiesce.operations.copies import DEFAULT_TIMEOUT_S, Copy, Share, copied, prove, require_sensible, turn
from quiesce.operations.group import all_parts_of, tiers_of
from quiesce.operations.verify import Proven, record_proof


@dataclass(frozen=True)
class GroupProven:
    """A group's checkpoint with the proofs of its parts."""

    part: GroupPart
    members: tuple[Proven, ...]
    """In the group's order."""
    together: bool
    """Whether all copies ran at once, on a network of their own."""

    @property
    def state(self) -> ProofState:
        """That of the worst member."""
        return worst_of(each.proof.state for each in self.members)

    @property
    def differs(self) -> bool:
        return any(each.proof.differs for each in self.members)


def group_verify(
    context: Context,
    reference: str,
    *,
    memory: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    jobs: int | None = None,
) -> GroupProven:
    """Boots a copy of every part of the group's checkpoint `GROUP@CHECKPOINT`, all at once, with the members' network cards on
    a network of their own, and asks them tier by tier, back ends first. With `jobs`, so many at a time, without a network.
    `memory`: the most memory of each copy, in bytes. `timeout_s`: longest time from the start of copies until they are checked.

    Guarantees and errors as `verify`, for each member. If one member cannot be asked, the proofs of the others are recorded
    before its error is raised. Raises RefusedError if a part was deleted, or if the host is a remote one and `jobs` is None:
    the network of the copies is on this machine."""
    require_sensible(timeout_s)
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs takes a number from 1 on")
    part, nodes = all_parts_of(context, reference, "booted", hint="boot the part of one server alone: quiesce verify")
    at_once = jobs or len(nodes)
    found: dict[str, tuple[Checkpoint, Proof] | QuiesceError] = {}
    with turn(context, f"quiesce group verify {reference}") as host:
        _require_here(host, nodes, together=jobs is None)
        for first in range(0, len(nodes), at_once):
            batch = nodes[first : first + at_once]
            found |= _booted(context, host, part, batch, memory, timeout_s, together=jobs is None)
    proven = [record_proof(context, *each) for each in found.values() if not isinstance(each, QuiesceError)]
    for each in found.values():
        if isinstance(each, QuiesceError):
            raise each
    result = GroupProven(part, tuple(proven), jobs is None)
    if not all(each.as_claimed for each in proven):
        raise _not_as_claimed(result)
    return result


def _require_here(host: Host, nodes: Sequence[Checkpoint], *, together: bool) -> None:
    elsewhere = [node.vm_name for node in nodes if node.host != host.id]
    if elsewhere:
        raise RefusedError(
            f"{', '.join(elsewhere)} is not on {host.name}", hint="connect to its host (--connect); copies boot on one host"
        )
    if together and not host.local:
        raise RefusedError(
            f"copies on {host.name} cannot have a network of their own, which this machine would have to carry",
            hint="run the command on that host; or boot them without a network: --jobs N",
        )


def _booted(
    context: Context,
    host: Host,
    part: GroupPart,
    nodes: Sequence[Checkpoint],
    memory: int | None,
    timeout_s: float,
    *,
    together: bool,
) -> dict[str, tuple[Checkpoint, Proof] | QuiesceError]:
    """What came of these members' copies, which run at the same time, by the id of the part."""
    hint = "give them less: --memory MIB; or boot fewer at a time, without a network: --jobs N"
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(nodes)))  # ends last: the copies are gone then, so nobody waits
        share = Share(memory, network=stack.enter_context(Hub()) if together else None, hint=hint)
        copies: list[Copy] = []
        for node in nodes:
            share = replace(share, taken=sum(copy.trial.memory for copy in copies))
            copies.append(stack.enter_context(copied(context, host, CheckpointReference(node.vm_uuid, node.id), share)))
        with context.phase("boot the copies"):
            asked = _ask_all(context, pool, copies, tiers_of(context, part), time.monotonic() + timeout_s)
            return {copy.node.id: _outcome(copy, asked[copy.node.id]) for copy in copies}


def _ask_all(
    context: Context, pool: ThreadPoolExecutor, copies: Sequence[Copy], tiers: Mapping[str, Tier], until: float
) -> dict[str, Future[Proof]]:
    """Starts all copies. A copy is asked when those of the tiers before have answered, as a check of a front end may need
    them."""
    asked: dict[str, Future[Proof]] = {}
    for tier in START_ORDER:
        earlier = partial(wait, list(asked.values()))
        for copy in copies:
            if tiers.get(copy.node.vm_uuid, Tier.MIDDLE) is tier:
                asked[copy.node.id] = pool.submit(prove, context, copy, until, earlier)
    return asked


def _outcome(copy: Copy, asked: Future[Proof]) -> tuple[Checkpoint, Proof] | QuiesceError:
    """Waits for the proof. Raises CancelledError."""
    try:
        return copy.node, asked.result()
    except CancelledError:
        raise
    except QuiesceError as error:
        return error


def _not_as_claimed(result: GroupProven) -> ProofError:
    lines = [f"{each.checkpoint.vm_name}: {each.trouble}" for each in result.members if not each.as_claimed]
    return ProofError(
        f"{result.part.group}@{result.part.name}, booted aside, is not what it claims to be ({result.state.value}):"
        f" {'; '.join(lines)}",
        hint="`quiesce show` has the evidence of each member, if it was recorded; an earlier checkpoint may be better",
        details={
            "group": result.part.group,
            "id": result.part.id,
            "state": result.state.value,
            "members": [
                {
                    "vm": each.checkpoint.vm_name,
                    "checkpoint": each.checkpoint.id,
                    "recorded": each.recorded,
                    "proof": encode(each.proof),
                }
                for each in result.members
            ],
        },
    )

"""Makes backing chains shorter after checkpoints and restores, and before them if there is no room for another overlay."""

from __future__ import annotations

from contextlib import suppress

from quiesce.catalog.journal import Interrupted
from quiesce.context import Context
from quiesce.disks.merges import merge_hidden
from quiesce.disks.neighbours import around
from quiesce.disks.shortening import give_short_copy
from quiesce.disks.shortening_plan import STARTABLE, length, long_heads, reason_to_shorten
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError
from quiesce.model.events import Warned
from quiesce.recovery import journalled
from quiesce.taking import requirements
from quiesce.taking.readable import require_named_chains_agree

ROOM_FOR_OTHERS = 2
"""Overlays of other programs, and safety checkpoints, for which a checkpoint leaves room if it can."""


def keep_short(context: Context, vm: Vm) -> None:
    """Makes the VM's long chains shorter. To be called under the VM's lock, when the verb has done what it was asked for:
    raises nothing that says it had not, also if the user presses Ctrl-C. A warning says how many checkpoints more can follow;
    the next checkpoint, restore or `doctor --repair` tries again."""
    try:
        found = survey(context, vm)
        for target, head in long_heads(found).items():
            if reason_to_shorten(found, target):
                left = STARTABLE - length(found, head)
                _try(context, vm, target, found.chains.below.get(head), f"; {left} checkpoints more can follow")
    except (QuiesceError, KeyboardInterrupt) as error:
        reason = error.message if isinstance(error, QuiesceError) else "interrupted"
        context.emit(Warned(f"long backing chains of {vm.name} were not made shorter: {reason}"))


def make_room(context: Context, vm: Vm) -> None:
    """Before a checkpoint: makes those chains of the VM shorter that have no room for another overlay, or nearly none. If that
    fails, warns; `requirements.require_short_chains` then refuses what cannot be done."""
    with suppress(QuiesceError):  # the plan of the checkpoint says what is wrong
        found = survey(context, vm)
        for target, head in long_heads(found, STARTABLE - ROOM_FOR_OTHERS).items():
            _try(context, vm, target, found.chains.below.get(head), urgent=True)


def make_room_on(context: Context, vm: Vm, checkpoint: str) -> None:
    """Before a restore is planned: as `make_room`, for the chains that overlays of this checkpoint's images would have."""
    with suppress(QuiesceError):  # the plan of the restore says what is wrong
        found = survey(context, vm)
        for disk in found.tree.find(checkpoint).disks:
            if length(found, disk.path) >= STARTABLE:
                _try(context, vm, disk.target, disk.path, urgent=True)


def shorten(context: Context, vm: Vm, target: str, image: str, *, urgent: bool = False) -> None:
    """As disks/shortening.py, with the merges that this makes possible, and if nothing else is done on the VM."""
    facts = vm.facts()
    requirements.require_nothing_in_the_way(facts)
    require_named_chains_agree(context, vm, survey(context, vm), vm.heads())
    if not vm.active() and (warning := requirements.lost_bitmaps(facts, "a change of the backing chain while it is off")):
        context.emit(Warned(warning))
    with context.phase("shorten the backing chain"), journalled(context, vm, "shortening") as journal:
        copied = give_short_copy(context, vm, journal, target, image, urgent=urgent)
        merge_hidden(context, vm, journal)
    found = survey(context, vm)
    if left := set(copied) - found.needed() - found.made:
        left &= context.storage(vm.host).look(left).images.keys() - around(context, vm, ()).named_by_others(left, vm.uuid)
    for path in sorted(left):
        context.emit(Warned(f"{vm.name} does not need {path} any more; quiesce did not make it and does not remove it"))


def _try(context: Context, vm: Vm, target: str, image: str | None, then: str = "", *, urgent: bool = False) -> None:
    try:
        if image:
            shorten(context, vm, target, image, urgent=urgent)
    except QuiesceError as error:
        text = f"the backing chain of disk {target} of {vm.name} could not be made shorter: {error.message}{then}"
        context.emit(Warned(text))


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: recovery.py has brought an interrupted copy to a known end."""
    return "is done anew after the next checkpoint, or by `quiesce doctor --repair`"

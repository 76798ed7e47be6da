"""Makes a backing chain shorter without losing a checkpoint. What is copied is decided in shortening_plan.py.

    before    a (A) <- b (B) <- c (C) <- d (D) <- n         the VM writes n
    after     a (A) <- b (B) <- c (C)
                    <- d2 (D) <- n2                         d2 has what b, c and d have

1. The copy d2 begins as an empty overlay of d. A helper domain pulls into it what d, c and b have. Nobody else has d2 open, and
   d does not change, so the VM may run.
2. The VM gets the overlay n2 of d2 instead of n, with what it has written since: while it runs, by a block copy of n alone;
   if it is off, by a copy in the helper domain and a new definition.
3. In one transaction, checkpoint D gets d2, and d becomes the image of a *hidden* checkpoint, as if a checkpoint like D had
   been deleted. So merges.py removes d, or merges it, or keeps it while other images need it.

Killed before the VM has n2, the VM writes n as before, and d2 and n2 are removed. Killed afterwards, step 3 is done by the
recovery. The VM's own image is never the one that is pulled into: see hypervisor/merge.py, `pull`."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from quiesce.catalog.checkpoints import New
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import Shorten
from quiesce.context import Context
from quiesce.disks import fingerprints, images, merges
from quiesce.disks.shortening_plan import Shortening, shortenings
from quiesce.disks.survey import COPY, Survey, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError
from quiesce.storage.port import MIN_FREE, Merger, ReportProgress, Storage, minding_room, no_space, require_room

WHAT = "a copy that makes the backing chain shorter"
LOOK_S = 1.0
"""How often the free space is looked at meanwhile, in seconds. A guest whose image cannot grow is paused by QEMU."""


def give_short_copy(
    context: Context, vm: Vm, journal: Journal, target: str, image: str, *, urgent: bool = False
) -> tuple[str, ...]:
    """Gives the checkpoint that owns `image` a copy of it with fewer backing files, and the VM, if it writes an overlay of
    `image`, an overlay of the copy. `urgent`: also if only a few images fewer are possible. To be called under the VM's lock,
    when nothing is interrupted; then call merges.merge_hidden, which removes what is not needed any more. Returns the images
    whose data the copy has.

    Raises NoSpaceError if there is no room for the copy, before anything is changed or when somebody else takes the room;
    RefusedError if the chain cannot be made shorter. After an error, everything is as it was."""
    found = survey(context, vm)
    found.require_complete_chains()
    storage, possible = context.storage(vm.host), shortenings(found, target, image, urgent=urgent)
    if not possible:
        raise RefusedError(
            f"the backing chain of disk {target} cannot be made shorter: its newest images are not quiesce's own",
            hint="merge the overlays that other programs made (virsh blockcommit), or give the VM a disk of one image",
        )
    chosen = _fitting(storage, found, possible)
    if chosen.head and (saved := images.saved_memory(vm)):
        raise saved
    merges.lower_changed(context, vm, journal, found, set(chosen.copied), set())  # in the copy, that could not be told any more
    with merges.keeping_untouched(context, vm):
        _Copy(context, vm, journal, found, chosen).make()
    return chosen.copied


def _fitting(storage: Storage, found: Survey, possible: list[Shortening]) -> Shortening:
    """The best one for which there is room. Raises NoSpaceError with what the smallest needs."""
    place, head = storage.place(possible[0].image), possible[0].head
    if head and storage.place(head) != place:
        require_room(storage, storage.place(head), found.images[head].allocation + MIN_FREE, WHAT)
    free = storage.room(place).free
    for one in possible:
        if one.bytes + MIN_FREE <= free:
            return one
    raise no_space(place, free, min(one.bytes for one in possible) + MIN_FREE, WHAT)


class _Copy:
    def __init__(self, context: Context, vm: Vm, journal: Journal, found: Survey, chosen: Shortening) -> None:
        self._context = context
        self._vm = vm
        self._journal = journal
        self._images = found.images
        self._chosen = chosen
        self._storage = context.storage(vm.host)
        self._place = self._storage.place(chosen.image)

    def make(self) -> None:
        chosen, vm = self._chosen, self._vm
        copy = images.new_path(self._storage, vm.name, self._place, chosen.target + COPY, "qcow2")
        above = self._storage.place(chosen.head) if chosen.head else self._place
        overlay = images.new_path(self._storage, vm.name, above, chosen.target, "qcow2")
        moved = (chosen.head, overlay) if chosen.head else (None, None)
        step = Shorten(chosen.target, chosen.image, copy, chosen.owner.id, uuid.uuid4().hex, *moved)
        with (
            self._journal.step(step),
            minding_room(self._storage, self._place, chosen.bytes + MIN_FREE, WHAT),
            self._storage.merger() as merger,
        ):
            self._make_overlay(copy, chosen.image, self._images[chosen.image].format, chosen.image)
            merger.pull(copy, chosen.base, self._progress("shorten the backing chain"))
            if chosen.head:
                self._make_overlay(overlay, copy, "qcow2", chosen.head)
                self._replace_head(merger, chosen.head, overlay)
            _record(self._context, vm, step)

    def _make_overlay(self, path: str, backing: str, format: str, like: str) -> None:
        """With the virtual size of the image `like`."""
        capacity = self._images[like].capacity
        images.make_overlay(self._context, self._vm, self._journal, self._chosen.target, capacity, backing, format, path)

    def _replace_head(self, merger: Merger, head: str, overlay: str) -> None:
        vm, target, progress = self._vm, self._chosen.target, self._progress("move the VM to the shorter chain")
        if vm.active():
            vm.replace_head(target, overlay, progress)
            return

        def define() -> None:
            vm.redefine(domain_xml.with_sources(vm.definition(), {target: overlay}))

        merger.copy_top(head, overlay, progress, define)

    def _progress(self, phase: str) -> ReportProgress:
        """Also raises NoSpaceError when the storage gets full: the guest needs what is left."""
        report, looked = self._context.progress(phase), time.monotonic()

        def watch(done: int, total: int) -> None:
            nonlocal looked
            report(done, total)
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                require_room(self._storage, self._place, MIN_FREE, WHAT)

        return watch


def conclude_copies(context: Context, vm: Vm, operation: Interrupted) -> None:
    """Records the interrupted shortenings after which the VM writes the overlay of the copy. Of others nothing is needed. To be
    called after `Vm.cancel_merges`."""
    for step in operation.unfinished(Shorten):
        found = survey(context, vm, patient=True)
        if step.overlay and found.head.get(step.target) == step.overlay and found.owners().get(step.copy) is None:
            _record(context, vm, step)


def _record(context: Context, vm: Vm, step: Shorten) -> None:
    checkpoints, storage = context.catalog.checkpoints, context.storage(vm.host)
    tree = checkpoints.tree(vm.key)
    owner = tree.get(step.owner)
    assert owner is not None
    earlier = replace(
        owner,
        id=step.hidden,
        name=f"{owner.name} (earlier image)",
        hidden=True,
        disks=tuple(disk for disk in owner.disks if disk.path == step.image),
        files=(),
        group=None,
    )
    new = New(
        earlier,
        checkpoints.domain_xml(owner.id),
        tree.head_parent,
        checkpoints.untouched(vm.key),
        (step.overlay,) if step.overlay else (),
        {step.copy: fingerprints.taken(storage, storage.image(step.copy))},
    )
    moved = checkpoints.copied(step.image, step.copy, new, [step.head] if step.head else [])
    for node in (earlier, *moved):
        images.write_manifest(context, vm, node)

"""What a restore will do: everything that can be refused is, before anything is touched."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from quiesce.context import Context
from quiesce.disks import fingerprints, places
from quiesce.disks.needs import require_needs
from quiesce.disks.neighbours import around
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import lowered
from quiesce.model.grades import Consistency
from quiesce.model.tree import Checkpoint, DiskImage, Kind, Role, Tree
from quiesce.taking import requirements
from quiesce.taking.readable import require_named_chains_agree, require_readable_chains


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do, before anything is touched."""

    facts: Facts
    found: Survey
    node: Checkpoint
    kept: tuple[str, ...]
    safety: Checkpoint | None
    changed: Mapping[str, str]
    """As `Survey.changed_for` of the checkpoint's images."""
    places: Mapping[str, str]
    """The directory for the overlay of each disk, by target."""
    empty: frozenset[str]
    """Targets of drives whose media are gone."""


def plan_restore(
    context: Context, vm: Vm, checkpoint: str, *, start: bool, discard_current: bool, accept_changed: bool
) -> RestorePlan:
    """For the checkpoint of this name or id. To be called under the VM's lock, when nothing is interrupted. Raises QuiesceError
    for whatever cannot work; changes nothing."""
    facts = vm.facts()
    found = survey(context, vm)
    node = found.tree.find(checkpoint)
    requirements.require_persistent(facts)
    requirements.require_no_saved_memory(facts)
    requirements.require_nothing_in_the_way(facts)
    _require_files(found, node)
    overlaid = {disk.target: disk.path for disk in node.disks}
    requirements.require_short_chains(overlaid, found)
    requirements.require_short_paths(overlaid)
    require_readable_chains(context, vm, found, overlaid)
    changed = found.changed_for(disk.path for disk in node.disks)
    if not accept_changed:
        fingerprints.require_content(node, changed, "restored")
    kept = _kept(context, vm, found, facts, node)
    _require_memory_fits(vm, node)
    empty = require_needs(
        context,
        vm,
        node.name,
        domain_xml.with_disks_of(context.catalog.checkpoints.domain_xml(node.id), vm.definition(), kept),
        {target: found.chains.chain(path) for target, path in overlaid.items()},
        own=facts.own,
        starts=start or node.file(Role.MEMORY) is not None,
    )
    if warning := requirements.lost_bitmaps(facts, "the restore"):
        context.emit(Warned(warning))
    safety = None if discard_current else _safety(vm, facts, found.tree, kept)
    if safety:
        heads = {disk.target: disk.path for disk in safety.disks}
        found.require_known_chain(heads)
        require_named_chains_agree(context, vm, found, heads)
        safety = lowered(safety, found.changed_for(disk.path for disk in safety.disks))
    overlays = places.for_overlays(context.storage(vm.host), node, context.catalog.settings.get(vm.key).overlays)
    return RestorePlan(facts, found, lowered(node, changed), kept, safety, changed, overlays, empty)


def _require_files(found: Survey, node: Checkpoint) -> None:
    """Raises NotFoundError if a file of the checkpoint, or a backing file, is gone."""
    missing = found.missing(node)
    if missing:
        raise NotFoundError(
            f"checkpoint {node.name!r} cannot be restored: {', '.join(missing)} is gone",
            hint=f"bring the file back from a backup; `quiesce doctor {node.vm_name}` shows what is known of it",
        )


def _kept(context: Context, vm: Vm, found: Survey, facts: Facts, node: Checkpoint) -> tuple[str, ...]:
    """Targets of the disks that the checkpoint leaves out and the VM has; they stay as they are. Raises RefusedError if the VM
    no longer has a disk that the checkpoint leaves out, and the disk's image of that time cannot be used."""
    present = {disk.target for disk in facts.disks}
    recorded = {disk.target: disk.path for disk in vm.host.disks(context.catalog.checkpoints.domain_xml(node.id))}
    for target in node.excluded:
        if target in present:
            context.emit(Warned(f"disk {target} is not part of {node.name!r}; it stays as it is now"))
        elif (path := recorded.get(target)) and not _is_free(context, vm, found, path):
            raise RefusedError(
                f"{node.name!r} leaves out disk {target}, which the VM no longer has; the disk's image at that time, {path}, is"
                " gone, or belongs to a checkpoint or another VM now",
                hint=f"attach a disk named {target} first: virsh attach-disk --config",
            )
    return tuple(target for target in node.excluded if target in present)


def _is_free(context: Context, vm: Vm, found: Survey, path: str) -> bool:
    """Whether the VM can have this image as its disk: the image exists, and nobody else reads or writes it."""
    storage = context.storage(vm.host)
    places = {storage.place(path)} if storage.knows(path) else set()
    near = around(context, vm, places)
    taken = path in found.owners() or path in found.merged or near.named_by_others([path], vm.uuid)
    return not (taken or near.readers.of([path])) and (not places or storage.has(path))


def _require_memory_fits(vm: Vm, node: Checkpoint) -> None:
    """Raises RefusedError if the checkpoint's memory was saved under another name of the VM: libvirt would refuse to resume it,
    when the VM is stopped already."""
    memory, identity = node.file(Role.MEMORY), domain_xml.Identity(vm.name, vm.uuid)
    saved = vm.saved_identity(memory.path) if memory else identity
    if saved != identity:
        raise RefusedError(
            f"the memory of {node.name!r} was saved when the VM was named {saved.name} ({saved.uuid}); libvirt does not resume"
            f" it as {vm.name} ({vm.uuid})",
            hint=f"rename the VM first: virsh domrename {vm.name} {saved.name}",
        )


def _safety(vm: Vm, facts: Facts, tree: Tree, excluded: tuple[str, ...]) -> Checkpoint:
    """The VM's present images as a safety checkpoint. It is crash-consistent: no writer holds when the VM is powered off."""
    now = datetime.now(UTC)
    return Checkpoint(
        id=uuid.uuid4().hex,
        host=vm.key.host,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        name=f"before restore {now:%Y-%m-%dT%H.%M.%S.%f}Z",
        created=now.isoformat(timespec="milliseconds"),
        kind=Kind.SAFETY,
        consistency=Consistency.CRASH,
        required=Consistency.CRASH,
        disks=tuple(
            DiskImage(disk.target, str(disk.path), disk.format, vm.capacity(disk.target))
            for disk in requirements.disks_to_switch(facts, excluded)
        ),
        parent=tree.head_parent,
        excluded=excluded,
    )

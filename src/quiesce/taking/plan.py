"""The plan of one VM's checkpoint. Making it reads and may refuse; it changes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.disks import places
from quiesce.disks.head import standing_of
from quiesce.disks.survey import survey
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import ConsistencyError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.model.standing import Standing
from quiesce.taking import requirements
from quiesce.taking.readable import require_named_chains_agree, require_readable_chains


@dataclass(frozen=True)
class Plan:
    """What one VM's part of a checkpoint will be."""

    name: str
    settings: Settings
    facts: Facts
    disks: tuple[Disk, ...]
    """The disks that the checkpoint will consist of."""
    excluded: tuple[str, ...]
    """Targets of the disks that it leaves out."""
    parent: str | None
    """The checkpoint that the VM is based on."""
    places: Mapping[str, str]
    """The directory for the overlay of each disk, by target."""
    changed: Mapping[str, str]
    """Images below, which earlier checkpoints read and another program changed: a sentence for each path. The checkpoint is
    crash-consistent at best."""

    @property
    def off(self) -> bool:
        return self.facts.power is PowerState.OFF

    @property
    def in_window(self) -> bool:
        """Whether the VM is switched in a freeze window: it runs, and the type is production."""
        return self.settings.type is Type.PRODUCTION and not self.off

    @property
    def images(self) -> frozenset[str]:
        """Paths of the images that the checkpoint will consist of."""
        return frozenset(str(disk.path) for disk in self.disks)


def plan(context: Context, vm: Vm, name: str, settings: Settings, exclude: tuple[str, ...] = ()) -> Plan:
    """Plans a checkpoint. To be called under the VM's lock, when no operation on the VM is unfinished. Raises QuiesceError for
    everything that is known not to work."""
    facts = vm.facts()
    present = {disk.target for disk in facts.disks}
    excluded = (*(target for target in settings.exclude if target in present), *exclude)
    disks = requirements.disks_to_switch(facts, excluded)
    _require_power(facts, settings)
    requirements.require_nothing_in_the_way(facts)
    require_own_images(context, vm, disks)
    found = survey(context, vm)
    found.tree.require_free_name(name, vm.name, hint="choose another --name")
    overlaid = {disk.target: str(disk.path) for disk in disks}
    requirements.require_short_paths(overlaid)
    found.require_known_chain(overlaid)
    require_named_chains_agree(context, vm, found, overlaid)
    require_readable_chains(context, vm, found, overlaid)
    requirements.require_short_chains(overlaid, found)
    if warning := requirements.changing_names(disks):
        context.emit(Warned(warning))
    changed = found.changed_for(str(disk.path) for disk in disks)
    _require_unchanged(vm, changed, settings.require)
    left_out = tuple(dict.fromkeys(excluded))
    directories = overlay_places(context, vm, overlaid, settings)
    planned = Plan(name, settings, facts, disks, left_out, found.tree.head_parent, directories, changed)
    if planned.off:
        require_worth(vm, standing_of(context, vm, planned.images), settings.require)
        if warning := requirements.lost_bitmaps(facts, "a checkpoint of the VM while it is off"):
            context.emit(Warned(warning))
    if settings.type is Type.STANDARD and excluded:
        raise RefusedError(
            f"a standard checkpoint cannot leave out disk {', '.join(excluded)}: a restore resumes the guest with its old"
            " memory, and the guest would damage a disk that is newer than its memory",
            hint="do not exclude it (see `quiesce settings`), or use --type production",
        )
    return planned


def overlay_places(context: Context, vm: Vm, overlaid: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The directory for the overlay of each of these images, by target: the one that is set; or that of the image; for a block
    device, that of another disk of the VM. Raises RefusedError if there is none, or if it cannot be used."""
    storage = context.storage(vm.host)
    otherwise = places.first(storage, vm.heads().values())
    found = {target: places.for_overlay(storage, path, settings.overlays, otherwise) for target, path in overlaid.items()}
    if homeless := [target for target, place in found.items() if place is None]:
        raise RefusedError(
            f"disk {', '.join(homeless)} of {vm.name} is a block device, and nothing says in which directory the overlays go,"
            " the files that take what is written after the checkpoint",
            hint=f"choose one with enough space: quiesce settings {shlex.quote(vm.name)} --overlays DIRECTORY; or give"
            " --overlays with this checkpoint",
            details={"disks": homeless},
        )
    chosen = {target: place for target, place in found.items() if place is not None}
    for place in sorted(set(chosen.values())):
        places.require_place(storage, place)
    return chosen


def require_own_images(context: Context, vm: Vm, disks: tuple[Disk, ...]) -> None:
    """Raises RefusedError if the VM writes images of another VM that has checkpoints: somebody defined that VM anew, with
    another UUID, or gave its disk to this one. A checkpoint of this VM would change the chains of those checkpoints."""
    theirs = context.catalog.checkpoints.of_others(vm.key, [str(disk.path) for disk in disks])
    if not theirs:
        return
    names, other = ", ".join(f"{node.vm_name}@{node.name}" for node in theirs), theirs[0]
    frozen = {path for node in theirs for path in node.paths()}
    if vm.host.has(other.vm_uuid):
        hint = f"give {vm.name} a disk of its own: qemu-img convert; or undefine {other.vm_name}, if it is the same VM"
    elif frozen & {disk.path for disk in disks}:
        hint = (
            f"do not start {vm.name}: it would overwrite checkpoints. If it is the same VM, defined anew, `quiesce doctor"
            f" {vm.name}` says how it gets its checkpoints and its last disks back"
        )
    else:
        hint = f"if it is the same VM, defined anew: `quiesce doctor {vm.name} --repair` gives the checkpoints to it"
    raise RefusedError(
        f"the disks of {vm.name} ({vm.uuid}) are images of the VM {other.vm_name} ({other.vm_uuid}), which has the checkpoints"
        f" {names}",
        hint=hint,
        details={"vm": other.vm_uuid, "checkpoints": [node.id for node in theirs]},
    )


def _require_power(facts: Facts, settings: Settings) -> None:
    if facts.power is PowerState.OFF:
        if settings.type is Type.STANDARD:
            raise RefusedError(
                f"{facts.name} is off, so it has no memory for a standard checkpoint", hint="use --type production"
            )
        requirements.require_no_saved_memory(facts)
        requirements.require_persistent(facts)
    elif settings.type is Type.STANDARD:
        requirements.require_running(facts)  # after saving the memory of a paused VM, QEMU cannot merge until the VM resumes
    else:
        requirements.require_answering(facts, settings.require)


def _require_unchanged(vm: Vm, changed: Mapping[str, str], required: Consistency) -> None:
    """A guest that runs on a changed image may have read it before and after: nothing tells what its disks are worth."""
    if changed and required is not Consistency.CRASH:
        raise ConsistencyError(
            f"a checkpoint of {vm.name} would only be crash-consistent, {required.value} is required:"
            f" {'; '.join(changed.values())}",
            hint=f"`quiesce doctor {vm.name} --repair` lowers the labels of the checkpoints that read the image; later ones"
            " can then get any label",
            details={"changed": sorted(changed)},
        )


def require_worth(vm: Vm, found: Standing, required: Consistency) -> None:
    """Raises ConsistencyError if the disks of a VM that is off are worth less than required."""
    if not found.consistency.satisfies(required):
        raise ConsistencyError(
            f"{vm.name} is off, but its guest is not known to have shut itself down; a checkpoint would only be"
            f" {found.consistency.value}-consistent, {required.value} is required{f': {found.note}' if found.note else ''}",
            hint="start it and shut it down (virsh shutdown), or accept a lower label with --require crash",
        )

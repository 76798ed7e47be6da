"""The plan of one VM's checkpoint. Making it reads and may refuse; it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.disks.head import standing_of
from quiesce.disks.survey import survey
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import ConsistencyError, NameTakenError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.model.standing import Standing
from quiesce.taking import requirements


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
    found = survey(context, vm)
    if found.tree.has_name(name):
        raise NameTakenError(f"{vm.name} has a checkpoint named {name!r} already", hint="choose another --name")
    found.require_known_chain({disk.target: str(disk.path) for disk in disks})
    requirements.require_short_chains(disks, found.chains, context.emit)
    changed = found.changed_for(str(disk.path) for disk in disks)
    _require_unchanged(vm, changed, settings.require)
    planned = Plan(name, settings, facts, disks, tuple(dict.fromkeys(excluded)), found.tree.head_parent, changed)
    if planned.off:
        require_worth(vm, standing_of(context, vm, planned.images), settings.require)
    if settings.type is Type.STANDARD and excluded:
        raise RefusedError(
            f"a standard checkpoint cannot leave out disk {', '.join(excluded)}: a restore resumes the guest with its old"
            " memory, and the guest would damage a disk that is newer than its memory",
            hint="do not exclude it (see `quiesce settings`), or use --type production",
        )
    return planned


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

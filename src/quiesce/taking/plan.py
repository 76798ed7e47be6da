"""What a checkpoint of one VM will be. Reads, refuses, and changes nothing."""

from __future__ import annotations

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
    """One VM's part of a checkpoint, before anything is touched."""

    name: str
    settings: Settings
    facts: Facts
    disks: tuple[Disk, ...]
    """The disks it will consist of."""
    excluded: tuple[str, ...]
    parent: str | None
    """The checkpoint that the VM is based on."""

    @property
    def off(self) -> bool:
        return self.facts.power is PowerState.OFF

    @property
    def in_window(self) -> bool:
        """The VM runs, and is switched in a freeze window."""
        return self.settings.type is Type.PRODUCTION and not self.off

    @property
    def images(self) -> frozenset[str]:
        """The images the checkpoint will consist of."""
        return frozenset(str(disk.path) for disk in self.disks)


def plan(context: Context, vm: Vm, name: str, settings: Settings, exclude: tuple[str, ...] = ()) -> Plan:
    """To be called under the VM's lock, when nothing is interrupted. Raises QuiesceError for whatever cannot work."""
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
    planned = Plan(name, settings, facts, disks, tuple(dict.fromkeys(excluded)), found.tree.head_parent)
    if planned.off:
        _require_worth(vm, standing_of(context, vm, planned.images), settings.require)
    if settings.type is Type.STANDARD and excluded:
        raise RefusedError(
            f"disk {', '.join(excluded)} would not go back with the memory; the guest's memory would ruin it",
            hint="a standard checkpoint must have all disks",
        )
    return planned


def _require_power(facts: Facts, settings: Settings) -> None:
    if facts.power is PowerState.OFF:
        if settings.type is Type.STANDARD:
            raise RefusedError(f"{facts.name} is off: it has no memory to save", hint="use --type production")
        requirements.require_no_saved_memory(facts)
        requirements.require_persistent(facts)
    elif settings.type is Type.STANDARD:
        requirements.require_running(facts)  # saving the memory of a paused VM leaves QEMU unable to merge until it is resumed
    else:
        requirements.require_answering(facts, settings.require)


def _require_worth(vm: Vm, found: Standing, required: Consistency) -> None:
    if not found.consistency.satisfies(required):
        raise ConsistencyError(
            f"{vm.name} is off, but its guest is not known to have shut itself down; a checkpoint would only be"
            f" {found.consistency.value}-consistent, {required.value} is required",
            hint="start it and shut it down (virsh shutdown), or accept less with --require crash",
        )

"""A checkpoint of a VM that is off: the disks as the guest left them."""

from __future__ import annotations

from quiesce.catalog.steps import Switch
from quiesce.context import Context
from quiesce.disks import fingerprints, images
from quiesce.disks.head import standing_of
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError
from quiesce.taking.evidence import Evidence
from quiesce.taking.part import Part
from quiesce.taking.plan import require_worth


def take_offline(context: Context, vm: Vm, part: Part) -> Evidence:
    """Changes the VM's definition, so that the VM writes the part's overlays when it starts next. Raises RefusedError if
    somebody starts the VM meanwhile."""
    recorded = fingerprints.of_new_checkpoint(context, vm, part.plan.images)
    found = standing_of(context, vm, part.plan.images)
    require_worth(vm, found, part.plan.settings.require)
    with part.machine_state():
        before = vm.definition()
        with part.journal.step(Switch(part.overlays)):
            vm.redefine(domain_xml.with_sources(before, part.overlays))
            if vm.active() and not part.overlays.items() <= vm.sources().items():
                vm.redefine(before)
                raise RefusedError(f"somebody started {vm.name} while its checkpoint was taken", hint="try again")
    return Evidence(
        found.consistency,
        off=True,
        writers=found.source.writers if found.source else (),
        warnings=(found.note,) if found.note and not part.plan.changed else (),  # the plan's are added by the part
        untouched=images.untouched(context, vm, part.overlays.values()),
        fingerprints=recorded,
    )

"""A checkpoint of a VM that is off: its disks as its guest left them."""

from __future__ import annotations

from quiesce.catalog.store import WORTH
from quiesce.context import Context
from quiesce.disks.survey import survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import ConsistencyError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.taking.part import Evidence, Part


def take(context: Context, vm: Vm, attempt: Part) -> Evidence:
    """Has the VM start on the attempt's overlays the next time. Raises RefusedError if somebody starts it meanwhile."""
    verdict = judge(context, vm, attempt.paths)
    with attempt.machine_state():
        before = vm.definition()
        with attempt.journal.step("switch", overlays=attempt.overlays):
            vm.redefine(domain_xml.with_sources(before, attempt.overlays))
            if vm.active() and not attempt.overlays.items() <= vm.sources().items():
                vm.redefine(before)
                raise RefusedError(f"{vm.name} was started by somebody else meanwhile", hint="try again")
    return verdict


def judge(context: Context, vm: Vm, paths: set[str]) -> Evidence:
    """What these disks of the VM, which is off, are worth.

    Not started since a restore: what the restored checkpoint is worth, if they are all of it. Else application-consistent if
    the guest shut itself down, by libvirt's account: its applications had ended then. Crash-consistent if it was powered
    off, crashed, or nobody knows.
    """
    catalog, host = context.catalog, vm.host.name
    untouched = catalog.untouched(host, vm.uuid)
    if untouched:
        tree, now = catalog.tree(host, vm.uuid), survey(context, vm).volumes
        parent, known = tree.get(tree.head_parent), untouched.keys() - {WORTH}
        if not known <= now.keys():
            return Evidence(Consistency.CRASH, off=True)  # whatever became of what was restored
        if all(now[path].written == untouched[path] for path in known):
            worth = untouched.get(WORTH) or (parent.consistency.value if parent else None)
            if worth is None or not paths <= known:
                return Evidence(Consistency.CRASH, off=True)  # nobody vouches for it, or not for all of it
            same = parent if WORTH not in untouched else None
            note = f"nothing was written since {repr(same.name) if same else 'a restore'}"
            return Evidence(Consistency(worth), off=True, writers=same.writers if same else (), warnings=[note])
    clean = vm.shut_itself_down()
    return Evidence(Consistency.APPLICATION if clean else Consistency.CRASH, off=True)


def require(vm: Vm, verdict: Evidence, required: Consistency) -> None:
    """Raises ConsistencyError if the disks are worth less than is required."""
    if not verdict.consistency.satisfies(required):
        raise ConsistencyError(
            f"{vm.name} is off, but its guest is not known to have shut itself down; a checkpoint would only be"
            f" {verdict.consistency.value}-consistent, {required.value} is required",
            hint="start it and shut it down (virsh shutdown), or accept less with --require crash",
        )

"""Asks the guest which applications it has and how they could be held. Changes nothing in the guest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quiesce.context import Context
from quiesce.guests.port import IDENTIFY_TIMEOUT_S
from quiesce.model import coverage
from quiesce.model.grades import Consistency, judge
from quiesce.model.reports import Filesystem, FreezeState, WriterReport, required_grades
from quiesce.taking.production import host_disks
from quiesce.taking.requirements import require_running


@dataclass(frozen=True)
class GuestReport:
    agent_version: str
    writers: tuple[WriterReport, ...]
    filesystems: tuple[Filesystem, ...]
    expected: Consistency
    """The label that a checkpoint could get now."""


def writers(context: Context, vm_name: str) -> GuestReport:
    """What the guest reports of itself. Raises AgentError, RefusedError if the VM does not run, NotFoundError."""
    with context.vm(vm_name) as vm:
        facts = vm.facts()
        require_running(facts)
        with context.phase("identify"), context.guest(vm, facts) as guest:
            software, inventory = guest.software(), guest.identify(IDENTIFY_TIMEOUT_S)
        if any(filesystem.disks for filesystem in inventory.filesystems):
            listed = host_disks(vm, facts, context.catalog.settings.get(vm.key).exclude)
            absent = coverage.not_whole(inventory.filesystems, listed)
            inventory = replace(inventory, writers=coverage.covered(inventory.writers, absent))
    freezable = not any(item.state is FreezeState.FREEZABLE and item.reason for item in inventory.filesystems)
    expected = judge(frozen_unbroken=freezable, writer_grades=required_grades(inventory.writers))
    return GuestReport(software, inventory.writers, inventory.filesystems, expected)

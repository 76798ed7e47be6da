"""Asks the guest which applications it has and how they could be held, touching nothing."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.model.grades import Consistency, judge
from quiesce.model.reports import Filesystem, Writer, required_grades
from quiesce.operations import guest, plan, windows
from quiesce.operations.context import Context


@dataclass(frozen=True)
class GuestReport:
    agent_version: str
    writers: tuple[Writer, ...]
    filesystems: tuple[Filesystem, ...]
    expected: Consistency
    """The label a checkpoint could have now."""


def writers(context: Context, vm_name: str) -> GuestReport:
    """Raises AgentError, RefusedError, NotFoundError."""
    with context.vm(vm_name) as vm:
        facts = vm.facts()
        plan.require_running(facts)
        if windows.is_windows(vm, facts):
            with context.phase("identify"), windows.vss(vm) as vss:
                software, inventory = vss.software(), vss.identify(guest.IDENTIFY_TIMEOUT_S)
        else:
            guest.require_agent_port(facts)
            with context.phase("identify"), guest.agent(vm) as (requester, greeting), guest.translated(vm.name):
                software, inventory = greeting.software, requester.identify(guest.IDENTIFY_TIMEOUT_S)
    expected = judge(frozen_unbroken=True, writer_grades=required_grades(inventory.writers))
    return GuestReport(software, inventory.writers, inventory.filesystems, expected)

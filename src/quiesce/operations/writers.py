"""Asks the guest which applications it has and how they could be held, touching nothing."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.context import Context
from quiesce.guests import linux, vss
from quiesce.model.grades import Consistency, judge
from quiesce.model.reports import Filesystem, WriterReport, required_grades
from quiesce.taking import plan


@dataclass(frozen=True)
class GuestReport:
    agent_version: str
    writers: tuple[WriterReport, ...]
    filesystems: tuple[Filesystem, ...]
    expected: Consistency
    """The label a checkpoint could have now."""


def writers(context: Context, vm_name: str) -> GuestReport:
    """Raises AgentError, RefusedError, NotFoundError."""
    with context.vm(vm_name) as vm:
        facts = vm.facts()
        plan.require_running(facts)
        if vss.is_windows(vm, facts):
            with context.phase("identify"), vss.vss(vm) as own:
                software, inventory = own.software(), own.identify(linux.IDENTIFY_TIMEOUT_S)
        else:
            linux.require_agent_port(facts)
            with context.phase("identify"), linux.agent(vm) as (requester, greeting), linux.translated(vm.name):
                software, inventory = greeting.software, requester.identify(linux.IDENTIFY_TIMEOUT_S)
    expected = judge(frozen_unbroken=True, writer_grades=required_grades(inventory.writers))
    return GuestReport(software, inventory.writers, inventory.filesystems, expected)

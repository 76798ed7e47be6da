"""Installs the agent into a running guest: no network, no SSH, no reboot."""

from __future__ import annotations

import time
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.guests import archive, linux, vss
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.qemu_agent import QemuAgent
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError, HypervisorError
from quiesce.taking.requirements import require_running
from quiesce.wire.messages import PORT_NAME, QEMU_AGENT_RESTART

MIN_PYTHON = (3, 9)
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 180.0
"""Compiling the agent takes long in a guest without KVM on a busy host."""
COPY = "/run/quiesce-agent.pyz"
"""Where the file is put in the guest, to install itself from."""


@dataclass(frozen=True)
class Installed:
    version: str
    agent_bytes: int
    notes: str
    """What the installation in the guest said."""


def guest_install(context: Context, vm_name: str) -> Installed:
    """Puts the agent of this quiesce into the guest and starts it; also brings an older one up to date. If qemu-guest-agent has
    to be restarted to know our hook, this returns when it has been: what was run through it before then, it ends.

    Raises AgentError if qemu-guest-agent does not answer, forbids it, or the guest lacks Python 3.9 or systemd.
    """
    with context.vm(vm_name) as vm:
        with context.phase("plan"):
            facts = vm.facts()
            require_running(facts)
            port = facts.channels.get(domain_xml.QEMU_AGENT_PORT)
            if port is None:
                raise AgentError(
                    f"{vm.name} has no qemu-guest-agent, which the installation goes through",
                    hint="add its channel (virsh attach-device) and install the package qemu-guest-agent in the guest",
                )
            if vss.is_windows(vm, facts):
                raise AgentError(
                    f"{vm.name} runs Windows, which needs no agent of quiesce's: its checkpoints go through its own VSS",
                    hint=f"quiesce checkpoint {vm.name}",
                )
            qemu_agent = QemuAgent(vm)
            _require_python_and_systemd(vm, qemu_agent)
        content = archive.build()
        with context.phase("copy"):
            qemu_agent.write_file(COPY, content)
        with context.phase("install"):
            notes = _run(vm, qemu_agent, "/usr/bin/python3", "-I", "-S", COPY, "--install")
            _run(vm, qemu_agent, "/bin/rm", COPY)
        with context.phase("start"):
            if PORT_NAME not in facts.channels:
                vm.attach(domain_xml.channel(PORT_NAME))
            version = _wait_for_agent(vm)
        with context.phase("restart"):
            _wait_for_qemu_agent(vm, qemu_agent)
        return Installed(version, len(content), notes.strip())


def _require_python_and_systemd(vm: Vm, qemu_agent: QemuAgent) -> None:
    status, output = qemu_agent.run(
        "/bin/sh", "-c", "test -d /run/systemd/system && /usr/bin/python3 -c 'import sys; print(*sys.version_info[:2])'"
    )
    try:
        version = tuple(int(part) for part in output.split())
    except ValueError:
        version = ()
    if status or len(version) != 2 or version < MIN_PYTHON:
        raise AgentError(
            f"the guest {vm.name} needs systemd and Python 3.9 or later: {output[:200] or 'not found'}",
            hint="install the package python3 in the guest",
        )


def _run(vm: Vm, qemu_agent: QemuAgent, *command: str) -> str:
    status, output = qemu_agent.run(*command, timeout=COMMAND_TIMEOUT_S)
    if status:
        raise AgentError(f"{' '.join(command)} in {vm.name} failed: {output[-500:]}")
    return output


def _wait_for_agent(vm: Vm) -> str:
    """Until the agent shakes hands; returns its version."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            linux.require_agent_port(vm.facts())
            with linux.linux_guest(vm) as guest:
                return guest.software()
        except AgentError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_for_qemu_agent(vm: Vm, qemu_agent: QemuAgent) -> None:
    """Until it has been restarted, if it is to be."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            units = (f"{QEMU_AGENT_RESTART}.timer", f"{QEMU_AGENT_RESTART}.service")
            idle, _ = qemu_agent.run("/bin/systemctl", "--quiet", "is-active", *units)
        except (AgentError, HypervisorError):  # it is being restarted
            if time.monotonic() > deadline:
                raise
        else:
            if idle:
                return
            if time.monotonic() > deadline:
                raise AgentError(f"qemu-guest-agent of {vm.name} was not restarted in {START_TIMEOUT_S:g} s")
        time.sleep(0.2)

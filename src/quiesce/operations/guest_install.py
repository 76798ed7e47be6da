"""Installs the agent into a running guest, without network, SSH or a reboot."""

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
"""Longest run of a command in the guest, in seconds. Compiling the agent takes long in a guest without KVM on a busy host."""
COPY = "/run/quiesce-agent.pyz"
"""Path of the agent's file in the guest. The file installs itself from there."""


@dataclass(frozen=True)
class Installed:
    version: str
    agent_bytes: int
    notes: str
    """The output of the installation in the guest."""


def guest_install(context: Context, vm_name: str) -> Installed:
    """Puts the agent of this quiesce into the guest and starts it. Replaces an older agent. If qemu-guest-agent has to be
    restarted to load our hook, returns after that restart, because the restart ends commands that run through qemu-guest-agent.

    Raises AgentError if qemu-guest-agent does not answer or forbids the installation, or if the guest lacks Python 3.9 or
    systemd.
    """
    with context.vm(vm_name) as vm:
        with context.phase("plan"):
            facts = vm.facts()
            require_running(facts)
            port = facts.channels.get(domain_xml.QEMU_AGENT_PORT)
            if port is None:
                raise AgentError(
                    f"{vm.name} has no channel {domain_xml.QEMU_AGENT_PORT}; the installation needs qemu-guest-agent",
                    hint="add the channel (virsh attach-device) and install the package qemu-guest-agent in the guest",
                )
            if vss.is_windows(vm, facts):
                raise AgentError(
                    f"{vm.name} runs Windows, where quiesce needs no agent of its own: it uses VSS",
                    hint=f"take a checkpoint: quiesce checkpoint {vm.name}",
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
            f"the guest {vm.name} needs systemd and Python 3.9 or later (/usr/bin/python3): {output[:200] or 'not found'}",
            hint="install the package python3 in the guest",
        )


def _run(vm: Vm, qemu_agent: QemuAgent, *command: str) -> str:
    status, output = qemu_agent.run(*command, timeout=COMMAND_TIMEOUT_S)
    if status:
        raise AgentError(
            f"{' '.join(command)} failed in {vm.name} with exit status {status}: {output[-500:]}",
            hint=f"when that is corrected: quiesce guest install {vm.name}",
        )
    return output


def _wait_for_agent(vm: Vm) -> str:
    """Waits until the agent answers. Returns its version. Raises AgentError after START_TIMEOUT_S."""
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
    """Waits until qemu-guest-agent was restarted, if a restart is scheduled. Raises AgentError after START_TIMEOUT_S."""
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
                raise AgentError(
                    f"qemu-guest-agent of {vm.name} was not restarted within {START_TIMEOUT_S:g} s",
                    hint=f"in the guest: systemctl status {QEMU_AGENT_RESTART}.timer {QEMU_AGENT_RESTART}.service",
                )
        time.sleep(0.2)

"""Installs the file that it is run from: `python3 quiesce-agent.pyz --install`, as root.

It installs the service and the hooks through which other platforms' snapshots reach it: qemu-guest-agent's fsfreeze-hook
(libvirt's --quiesce, Proxmox, oVirt, KubeVirt, OpenStack) and VMware's backupScripts.d. Run again, it updates an older agent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from quiesce.agent import trial
from quiesce.agent.precompile import precompile
from quiesce.wire.messages import DEVICE, PORT_NAME, QEMU_AGENT_RESTART

DIRECTORY = "/usr/local/lib/quiesce"
AGENT = f"{DIRECTORY}/quiesce-agent.pyz"
UNIT = "/etc/systemd/system/quiesce-agent.service"
RULE = "/etc/udev/rules.d/90-quiesce-agent.rules"
WRITERS = "/etc/quiesce/writers.d"
HOOK = f"{DIRECTORY}/fsfreeze-hook"
QEMU_CONFIGURATION = "/etc/qemu/qemu-ga.conf"
QEMU_UNIT = "qemu-guest-agent.service"
VMWARE_SCRIPTS = "/etc/vmware-tools/backupScripts.d"
RESTART_S = 5
"""Delay of qemu-guest-agent's restart, in seconds: an installation through it must be able to report its result before."""
STOCK_HOOKS = ("/etc/qemu/fsfreeze-hook", "/etc/qemu-ga/fsfreeze-hook")
"""Hooks that run the scripts of fsfreeze-hook.d. The agent's hook replaces them, and the agent runs these scripts itself."""

UNIT_TEXT = f"""\
[Unit]
Description=quiesce guest agent (application-aware checkpoints)
IgnoreOnIsolate=yes
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/python3 -I -S {AGENT} {DEVICE}
Restart=always
RestartSec=1
# The dead-man must outlive the agent.
KillMode=process
OOMScoreAdjust=-900
ManagedOOMPreference=omit
Nice=-10

[Install]
WantedBy=multi-user.target
"""
# No ProtectSystem=, PrivateTmp=, ...: with a mount namespace of its own the service would not see the machine's filesystems.

_RESTART = "/bin/systemctl --no-block restart quiesce-agent.service"
RULE_TEXT = f"""\
ACTION=="add", SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{PORT_NAME}", RUN+="{_RESTART}"
"""
HOOK_TEXT = f"""\
#!/bin/sh
# quiesce: makes the applications hold before the filesystems are frozen. Fails if a required one does not.
exec /usr/bin/python3 -I -S {AGENT} --hook "$1"{{more}}
"""


def install() -> list[str]:
    """Returns notes for the administrator. Raises OSError, subprocess.CalledProcessError."""
    for directory in (DIRECTORY, WRITERS, trial.CHECKS, os.path.dirname(RULE), os.path.dirname(trial.GENERATOR)):
        os.makedirs(directory, mode=0o755, exist_ok=True)
    source = os.path.abspath(sys.argv[0])
    if source != AGENT:
        shutil.copyfile(source, f"{AGENT}.new")
        precompile(f"{AGENT}.new")
        os.replace(f"{AGENT}.new", AGENT)
    else:
        precompile(AGENT)
    _write(UNIT, UNIT_TEXT)
    _write(RULE, RULE_TEXT)
    _write(HOOK, HOOK_TEXT.format(more=""), 0o755)
    _write(trial.GENERATOR, trial.GENERATOR_TEXT, 0o755)
    if os.path.isdir(os.path.dirname(VMWARE_SCRIPTS)):
        os.makedirs(VMWARE_SCRIPTS, mode=0o755, exist_ok=True)
        _write(f"{VMWARE_SCRIPTS}/50-quiesce", HOOK_TEXT.format(more=" --without vmware"), 0o755)
    for command in (
        ("systemctl", "daemon-reload"),
        ("udevadm", "control", "--reload"),
        ("systemctl", "enable", "--quiet", "quiesce-agent.service"),
        ("systemctl", "restart", "quiesce-agent.service"),
    ):
        subprocess.run(command, check=True)
    return _hook_into_qemu_agent()  # last: it restarts qemu-guest-agent, which may be running this


def _hook_into_qemu_agent() -> list[str]:
    """Names the hook in the file that qemu-guest-agent reads at its start; its command line would override the file."""
    if not os.path.isdir(os.path.dirname(QEMU_CONFIGURATION)):
        return []
    lines = _read(QEMU_CONFIGURATION).splitlines()
    present = [line.partition("=")[2].strip() for line in lines if line.replace(" ", "").startswith("fsfreeze-hook=")]
    if HOOK in present:
        return []
    if present and present[0] not in STOCK_HOOKS:
        return [f"qemu-guest-agent runs {present[0]}; to hold the applications, have it run {HOOK} freeze|thaw"]
    kept = [line for line in lines if not line.replace(" ", "").startswith("fsfreeze-hook=")]
    at = next((number for number, line in enumerate(kept) if line.strip() == "[general]"), None)
    if at is None:
        kept.append("[general]")
        at = len(kept) - 1
    kept.insert(at + 1, f"fsfreeze-hook={HOOK}")
    _write(QEMU_CONFIGURATION, "\n".join(kept) + "\n")
    subprocess.run(["systemctl", "stop", f"{QEMU_AGENT_RESTART}.timer"], stderr=subprocess.DEVNULL, check=False)
    when = [
        "--quiet",
        "--collect",
        f"--unit={QEMU_AGENT_RESTART}",
        f"--on-active={RESTART_S}",
        "--timer-property=AccuracySec=100ms",
    ]
    subprocess.run(["systemd-run", *when, "systemctl", "try-restart", QEMU_UNIT], check=True)
    return [f"{QEMU_UNIT} restarts in {RESTART_S} s, so that snapshots taken through it hold the applications"]


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str, mode: int = 0o644) -> None:
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.chmod(f"{path}.new", mode)
    os.replace(f"{path}.new", path)

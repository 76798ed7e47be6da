"""Puts this very file into the machine it runs in: `python3 quiesce-agent.pyz --install`, as root.

The service, and the hooks by which other platforms' snapshots ask it: qemu-guest-agent's fsfreeze-hook (libvirt's --quiesce,
Proxmox, oVirt, KubeVirt, OpenStack) and VMware's backupScripts.d. Can be run again; brings an older one up to date.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

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
"""Until qemu-guest-agent is restarted, in seconds: whoever installs through it is to hear how it went."""
STOCK_HOOKS = ("/etc/qemu/fsfreeze-hook", "/etc/qemu-ga/fsfreeze-hook")
"""What runs the scripts of fsfreeze-hook.d, which ours does in its place, and heeds."""

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
# A unit of its own mount namespace (ProtectSystem=, PrivateTmp=, ...) would not see the machine's filesystems.

_RESTART = "/bin/systemctl --no-block restart quiesce-agent.service"
RULE_TEXT = f"""\
ACTION=="add", SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{PORT_NAME}", RUN+="{_RESTART}"
"""
HOOK_TEXT = f"""\
#!/bin/sh
# quiesce: has the applications hold before the filesystems are frozen. Fails if one that is required does not.
exec /usr/bin/python3 -I -S {AGENT} --hook "$1"{{more}}
"""


def install() -> list[str]:
    """Returns what an administrator should know. Raises OSError, subprocess.CalledProcessError."""
    for directory in (DIRECTORY, WRITERS, os.path.dirname(RULE)):
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
    return _hook_into_qemu_agent()  # last, for it restarts what this may be a child of


def _hook_into_qemu_agent() -> list[str]:
    """qemu-guest-agent reads this file when it starts; what its command line says would count more."""
    if not os.path.isdir(os.path.dirname(QEMU_CONFIGURATION)):
        return []
    lines = _read(QEMU_CONFIGURATION).splitlines()
    present = [line.partition("=")[2].strip() for line in lines if line.replace(" ", "").startswith("fsfreeze-hook=")]
    if HOOK in present:
        return []
    if present and present[0] not in STOCK_HOOKS:
        return [f"qemu-guest-agent runs {present[0]}; to have the applications hold, let it run {HOOK} freeze|thaw"]
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
    return [f"{QEMU_UNIT} restarts in {RESTART_S} s, so that snapshots taken through it have the applications hold"]


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

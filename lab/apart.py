"""Runs a command with a libvirt of its own, which ends with it: `python -m lab.apart COMMAND...`.

Killing that libvirtd, or looking at all its VMs, disturbs nobody else on this host. The command, libvirtd and the VMs share a
mount namespace, in which all that libvirt keeps on a host is empty, and a process namespace: when the command ends, however it
ends, the kernel ends all others. The network and all other files are this host's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "--inside"
EMPTY = ("/run", "/var/lib/libvirt", "/etc/libvirt/qemu", "/etc/libvirt/storage")
"""Sockets, locks and process numbers; state of VMs and TPMs; definitions of VMs, networks and pools."""
ROOT = Path(__file__).parents[1]


def main() -> None:
    if sys.argv[1] != INSIDE:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", [*namespaces, sys.executable, __file__, INSIDE, *sys.argv[1:]])  # noqa: S606
    for path in map(Path, EMPTY):
        if path.is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", path], check=True)
    Path("/run/lock").mkdir(mode=0o1777)
    _give_vms_their_share()
    os.setsid()  # the kernel's scheduler gives each session the same share, too (sched(7), autogroup)
    # Standard output belongs to the command: pytest-xdist talks through it.
    subprocess.run([ROOT / "script/bootstrap"], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    command = subprocess.Popen(sys.argv[2:])
    while True:  # this is the namespace's first process, which reaps whatever others leave behind
        ended, status = os.wait()
        if ended == command.pid:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _give_vms_their_share() -> None:
    """Each VM gets as much of the processors as any other program of this host. libvirt puts all VMs into one control group
    of the kernel's scheduler, which has one share together: a busy program beside them would get half of the host."""
    original, own = Path("/etc/libvirt/qemu.conf"), Path("/run/qemu.conf")
    shutil.copy(original, own)  # with its mode: there may be passwords in it
    with own.open("a") as file:
        file.write('\ncgroup_controllers = [ "devices", "memory", "blkio", "cpuset", "cpuacct" ]\n')
    subprocess.run(["mount", "--bind", own, original], check=True)


if __name__ == "__main__":
    main()

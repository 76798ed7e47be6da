"""quiesce guest install"""

from __future__ import annotations

from quiesce.cli import terminal
from quiesce.cli.options import Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.guest_install import Installed, guest_install


def _show(installed: Installed, vm: str) -> None:
    terminal.out.print(f"agent {terminal.text(installed.version)} is ready in {terminal.text(vm)}")
    if installed.notes:
        terminal.out.print(terminal.text(installed.notes))


@verb(_show)
def command(context: Context, vm: Vm) -> Installed:
    """Install the quiesce agent in a running Linux guest, or update it.

    The installation goes through qemu-guest-agent and adds a virtio-serial port to the VM. It needs no network, no SSH and no
    reboot. The guest must have systemd and Python 3.9 or later. A Windows guest needs no agent: its own VSS is used.
    """
    return guest_install(context, vm)

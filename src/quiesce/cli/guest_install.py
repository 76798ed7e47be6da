"""quiesce guest install"""

from __future__ import annotations

from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.operations.guest_install import Installed, guest_install


def command(vm: Vm, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Install the quiesce agent in a running guest, or bring it up to date.

    Goes through qemu-guest-agent and adds a virtio-serial port to the VM: no network, no SSH, no reboot.
    """

    def show(installed: Installed) -> None:
        session.out.print(f"agent {escape(installed.version)} is ready in {escape(vm)}")
        if installed.notes:
            session.out.print(escape(installed.notes))

    session.run(
        lambda context: guest_install(context, vm),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda installed: {
            "version": installed.version,
            "agent_bytes": installed.agent_bytes,
            "notes": installed.notes,
        },
        show=show,
    )

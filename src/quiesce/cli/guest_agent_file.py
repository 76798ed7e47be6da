"""quiesce guest agent-file"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json
from quiesce.guests.archive import write


def command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write, as quiesce-agent.pyz.", dir_okay=False)],
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Write the guest agent to a file, to install it by other means: in the guest, python3 quiesce-agent.pyz --install.

    For guests that are not reached through this host's libvirt, as under Proxmox or oVirt: their snapshots through
    qemu-guest-agent then have the applications hold, too.
    """

    def show(size: int) -> None:
        session.out.print(f"wrote {escape(str(path))}, {size} bytes; in the guest: python3 {escape(path.name)} --install")

    session.run(
        lambda _: write(path),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda size: {"path": str(path), "bytes": size},
        show=show,
    )

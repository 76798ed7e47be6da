"""quiesce catalog rebuild"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.rebuild import Rebuilt, rebuild


def _show(result: Rebuilt) -> None:
    for node in result.checkpoints:
        deleted = " (deleted)" if node.hidden else ""
        terminal.out.print(f"recorded [bold]{terminal.text(node.vm_name)}@{terminal.text(node.name)}[/]{deleted}")
    terminal.out.print(f"{result.manifests} manifests read, {len(result.checkpoints)} checkpoints recorded")


@verb(_show, renews=True)
def command(
    context: Context,
    directory: Annotated[
        list[str] | None,
        typer.Option(metavar="DIRECTORY", help="Also read the manifests in this directory. Can be given several times."),
    ] = None,
    accept_unsigned: Annotated[
        bool,
        typer.Option(
            "--accept-unsigned",
            help="Also read manifests without the seal of this catalog, of VMs that libvirt has. Use it only if you trust all"
            " who can write beside the images.",
        ),
    ] = False,
) -> Rebuilt:
    """Rebuild a lost catalog from the manifests that are stored beside the images.

    A damaged catalog is moved away first; nothing of it is removed. The command reads the manifests in every storage pool and
    in every directory that has a disk of a VM. Checkpoints that the catalog has already stay as they are. It defines no VM and
    removes nothing.

    A manifest counts only if it has the seal of this catalog, which is made with the key beside it (seal.key). If the key is
    lost, too, see --accept-unsigned.
    """
    return rebuild(context, directory or (), accept_unsigned=accept_unsigned)

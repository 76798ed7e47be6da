"""quiesce catalog rebuild"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.rebuild import Rebuilt, rebuild


def _show(result: Rebuilt) -> None:
    for node in result.checkpoints:
        deleted = " (deleted)" if node.hidden else ""
        terminal.out.print(f"recorded [bold]{escape(node.vm_name)}@{escape(node.name)}[/]{deleted}")
    terminal.out.print(f"{result.manifests} manifests read, {len(result.checkpoints)} checkpoints recorded")


@verb(_show)
def command(
    context: Context,
    directory: Annotated[
        list[str] | None,
        typer.Option(metavar="DIRECTORY", help="Also read the manifests in this directory. Can be given several times."),
    ] = None,
) -> Rebuilt:
    """Rebuild a lost catalog from the manifests that are stored beside the images.

    The command reads the manifests in every storage pool and in every directory that has a disk of a VM. Checkpoints that the
    catalog has already stay as they are.
    """
    return rebuild(context, directory or ())

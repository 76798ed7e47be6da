"""quiesce rename"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.tree import Checkpoint
from quiesce.operations.rename import rename


def _show(node: Checkpoint) -> None:
    terminal.out.print(f"checkpoint [bold]{terminal.text(node.vm_name)}@{terminal.text(node.name)}[/]")


@verb(_show)
def command(
    context: Context,
    checkpoint: Reference,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name, at most 100 characters.")],
) -> Checkpoint:
    """Give a checkpoint another name.

    Example: quiesce rename db1@2026-11-28T10.56.00Z before-upgrade
    """
    return rename(context, context.reference(checkpoint), name)

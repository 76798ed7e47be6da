"""quiesce rename"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.model.names import parse_reference
from quiesce.model.tree import Checkpoint
from quiesce.operations.rename import rename


def command(
    checkpoint: Reference,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name, at most 100 characters.")],
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Give a checkpoint another name."""
    session.run(
        lambda context: rename(context, parse_reference(checkpoint), name),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=render.checkpoint_json,
        show=_show,
    )


def _show(node: Checkpoint) -> None:
    session.out.print(f"checkpoint [bold]{escape(node.vm_name)}@{escape(node.name)}[/]")

"""quiesce catalog"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json
from quiesce.operations.rebuild import Rebuilt, rebuild

app = typer.Typer(name="catalog", help="The record of all checkpoints.", no_args_is_help=True)


@app.command("rebuild")
def rebuild_command(
    directory: Annotated[
        list[str] | None, typer.Option(metavar="DIRECTORY", help="Look here, too. Can be given several times.")
    ] = None,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Make a lost catalog again from the manifests beside the images.

    Looks in every directory that is a storage pool or has a disk of a VM in it. What the catalog has already stays as it is.
    """
    session.run(
        lambda context: rebuild(context, directory or ()),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda result: {
            "manifests": result.manifests,
            "recorded": [render.checkpoint_json(node) for node in result.checkpoints],
        },
        show=_show,
    )


def _show(result: Rebuilt) -> None:
    for node in result.checkpoints:
        session.out.print(f"recorded [bold]{escape(node.vm_name)}@{escape(node.name)}[/]{' (deleted)' if node.hidden else ''}")
    session.out.print(f"{result.manifests} manifests read, {len(result.checkpoints)} checkpoints recorded")

"""quiesce delete"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, References
from quiesce.model.names import parse_reference
from quiesce.operations.delete import Deleted, delete


def command(
    checkpoints: References,
    subtree: Annotated[bool, typer.Option("--subtree", help="Delete all checkpoints based on it, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be deleted.")] = False,
    break_group: Annotated[
        bool, typer.Option("--break-group", help="Also where it is one server's part of a group's checkpoint, and others stay.")
    ] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Delete checkpoints. All others, and what the VM is doing now, keep their content.

    VM@CHECKPOINT may be a shell pattern: 'web1@2026-*'. What others still need of a deleted checkpoint is merged, while the VM
    runs or off; with two or more based on it, when one of them is left. A merge can be interrupted: the next deletion, or
    `quiesce doctor VM --repair`, goes on with it.
    """

    def show(result: Deleted) -> None:
        show_deleted(result, dry_run=dry_run)

    session.run(
        lambda context: delete(
            context,
            [parse_reference(text) for text in checkpoints],
            subtree=subtree,
            dry_run=dry_run,
            break_group=break_group,
        ),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=to_json,
        show=show,
    )


def show_deleted(result: Deleted, *, dry_run: bool) -> None:
    for node in result.checkpoints:
        said = "would delete" if dry_run else "deleted"
        session.out.print(f"{said} [bold]{escape(node.vm_name)}@{escape(node.name)}[/]")
    for item in result.waiting:
        session.out.print(f"[dim]not merged yet: {escape(item.name)}: {escape(item.reason)}[/]")


def to_json(result: Deleted) -> dict[str, Any]:
    return {
        "deleted": [render.checkpoint_json(node) for node in result.checkpoints],
        "waiting": [{"name": item.name, "reason": item.reason} for item in result.waiting],
    }

"""quiesce delete"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import DryRun, References
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.delete import Deleted, delete


def show_deleted(result: Deleted, dry_run: bool) -> None:
    done = "would delete" if dry_run else "deleted"
    for node in result.checkpoints:
        terminal.out.print(f"{done} [bold]{terminal.text(node.vm_name)}@{terminal.text(node.name)}[/]")
    for item in result.waiting:
        terminal.out.print(f"[dim]not merged yet: {terminal.text(item.name)}: {terminal.text(item.reason)}[/]")


@verb(show_deleted)
def command(
    context: Context,
    checkpoints: References,
    subtree: Annotated[bool, typer.Option("--subtree", help="Also delete all checkpoints that are based on these.")] = False,
    dry_run: DryRun = False,
    break_group: Annotated[
        bool,
        typer.Option(
            "--break-group",
            help="Also delete one VM's part of a group's checkpoint while other parts stay. The group's checkpoint cannot be"
            " restored any more.",
        ),
    ] = False,
) -> Deleted:
    """Delete checkpoints. All other checkpoints keep their content, and so does the VM.

    The VM may be running or off. Data of a deleted checkpoint that another checkpoint still needs are kept, and the images of
    both are merged. If two or more checkpoints are based on the deleted one, the merge waits until only one of them is left. An
    interrupted merge is continued by the next `quiesce delete`, or by `quiesce doctor VM --repair`.

    Example: quiesce delete 'web1@2026-*' --dry-run
    """
    return delete(
        context,
        [context.reference(text) for text in checkpoints],
        subtree=subtree,
        dry_run=dry_run,
        break_group=break_group,
    )

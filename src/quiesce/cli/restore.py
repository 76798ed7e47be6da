"""quiesce restore"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import AcceptChanged, AcceptDivergence, Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.restore import Restored, restore


def show_restored(result: Restored) -> None:
    name, node, safety = terminal.text(result.checkpoint.vm_name), result.checkpoint, result.safety
    state = "running" if result.started else "off"
    terminal.out.print(
        f"{name} is restored to [bold]{terminal.text(node.name)}[/] ({render.label(node.consistency)}) and is {state}"
    )
    if safety:
        label = render.label(safety.consistency)
        terminal.out.print(f"the state before the restore is kept: [bold]{name}@{terminal.text(safety.name)}[/] ({label})")


@verb(show_restored)
def command(
    context: Context,
    checkpoint: Reference,
    start: Annotated[bool, typer.Option("--start", help="Start the VM afterwards. Without this option it stays off.")] = False,
    discard_current: Annotated[
        bool, typer.Option("--discard-current", help="Do not keep the present state. Then the restore cannot be undone.")
    ] = False,
    accept_divergence: AcceptDivergence = False,
    accept_changed_images: AcceptChanged = False,
) -> Restored:
    """Restore a VM to a checkpoint: its disks, its definition, its UEFI variables and its TPM state.

    A running VM is powered off at once. The state before the restore is kept as a safety checkpoint: another restore can undo
    this one. The VM gets a new generation ID, which tells the guest that it went back in time. A standard checkpoint is resumed
    with its memory, with or without --start.

    The command refuses the restore if other servers of a group would disagree with the VM (`quiesce divergence` shows which),
    or if another program changed an image of the checkpoint.

    Example: quiesce restore db1@before-upgrade --start
    """
    return restore(
        context,
        context.reference(checkpoint),
        start=start,
        discard_current=discard_current,
        accept_divergence=accept_divergence,
        accept_changed=accept_changed_images,
    )

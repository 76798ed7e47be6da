"""quiesce settle"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import CopyMemory, CopyTimeout, Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.tree import Checkpoint
from quiesce.operations.copies import DEFAULT_TIMEOUT_S
from quiesce.operations.settle import settle


def _show(node: Checkpoint) -> None:
    terminal.out.print(render.node_line(node))
    if node.writers:
        terminal.out.print(render.writers_table(node.writers))


@verb(_show)
def command(
    context: Context,
    checkpoint: Reference,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", metavar="NAME", help="Name of the new checkpoint. Default: that of the old one, and settled."
        ),
    ] = None,
    memory: CopyMemory = None,
    timeout: CopyTimeout = DEFAULT_TIMEOUT_S,
) -> Checkpoint:
    """Make a checkpoint in which nothing is left to recover, out of another one.

    A copy of the checkpoint is booted aside as by `quiesce verify`. When all its applications have started, and recovered what
    there was to recover, its guest is told to power itself off. What the copy wrote is kept as a new checkpoint, a child of the
    old one, in which every application that started is graded clean. It can be restored, exported and verified like any other.

    The VM runs meanwhile, on what it is based on. Other commands cannot change it, or its checkpoints, until this one has
    ended. If an application does not start, or the guest does not power itself off, nothing is kept.

    Example: quiesce settle db1@before-upgrade
    """
    return settle(
        context,
        context.reference(checkpoint),
        name=name,
        memory=memory << 20 if memory is not None else None,
        timeout_s=timeout,
    )

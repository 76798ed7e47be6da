"""quiesce group verify"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import CopyMemory, CopyTimeout, PartReference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.copies import DEFAULT_TIMEOUT_S
from quiesce.operations.group_verify import GroupProven, group_verify


def _show(result: GroupProven) -> None:
    out = terminal.out
    for each in result.members:
        out.print(terminal.text(each.checkpoint.vm_name), end="  ")
        out.print(render.node_line(each.checkpoint))
        render.show_proof(each.proof)
    how = "all members ran together, on a network of their own" if result.together else "the members ran without a network"
    name = f"{terminal.text(result.part.group)}@{terminal.text(result.part.name)}"
    out.print(f"[bold]{name}[/]  {render.proof_state(result.state)}: {how}")


@verb(_show)
def command(
    context: Context,
    reference: PartReference,
    memory: CopyMemory = None,
    timeout: CopyTimeout = DEFAULT_TIMEOUT_S,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            help="Boot so many members at a time, without a network: for a host that has no memory for all of them.",
        ),
    ] = None,
) -> GroupProven:
    """Boot copies of all members of a group's checkpoint aside, together, and show that their applications start as the
    checkpoint claims.

    The copies are those of `quiesce verify`, and see each other: they have the members' network cards, with the same addresses,
    on a network that this command carries. Nobody else is on it. The applications and checks of back ends are asked first.

    What came of each member is recorded with its checkpoint. The group's result is that of the worst member. The command ends
    with 12 if the checkpoint of a member claims more than was found, or does not start.

    Example: quiesce group verify shop@before-upgrade
    """
    return group_verify(
        context,
        reference,
        memory=memory << 20 if memory is not None else None,
        timeout_s=timeout,
        jobs=jobs,
    )

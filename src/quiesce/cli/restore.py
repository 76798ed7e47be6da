"""quiesce restore"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import AcceptDivergence, CatalogUrl, Connect, Json, Reference
from quiesce.model.names import parse_reference
from quiesce.operations.restore import Restored, restore


def command(
    checkpoint: Reference,
    start: Annotated[bool, typer.Option("--start", help="Start the VM afterwards; otherwise it is left off.")] = False,
    discard_current: Annotated[
        bool, typer.Option("--discard-current", help="Do not keep the present state; this cannot be undone.")
    ] = False,
    accept_divergence: AcceptDivergence = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Put a VM back to a checkpoint: its disks and its definition.

    A running VM is stopped at once. Its present state is kept as a safety checkpoint, as consistent as its guest allows, so a
    restore can be undone by another one. The VM gets a new generation ID, which tells its guest that it went back in time.

    If other servers of a group would disagree with it, it is refused; `quiesce divergence` says how.
    """
    session.run(
        lambda context: restore(
            context,
            parse_reference(checkpoint),
            start=start,
            discard_current=discard_current,
            accept_divergence=accept_divergence,
        ),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=to_json,
        show=show,
    )


def to_json(result: Restored) -> dict[str, Any]:
    return {
        "restored": render.checkpoint_json(result.checkpoint),
        "safety": render.checkpoint_json(result.safety) if result.safety else None,
        "generation": result.generation,
        "started": result.started,
    }


def show(result: Restored) -> None:
    name = escape(result.checkpoint.vm_name)
    session.out.print(
        f"{name} stands at [bold]{escape(result.checkpoint.name)}[/]"
        f" ({render.label(result.checkpoint.consistency)}) and is {'running' if result.started else 'off'}"
    )
    if result.safety:
        session.out.print(
            f"the state it left: [bold]{name}@{escape(result.safety.name)}[/] ({render.label(result.safety.consistency)})"
        )

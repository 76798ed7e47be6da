"""quiesce group"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from quiesce.cli import delete as deletion
from quiesce.cli import divergence as disagreement
from quiesce.cli import render, session
from quiesce.cli import restore as one
from quiesce.cli.options import AcceptDivergence, CatalogUrl, Connect, GroupName, Json, PartReference
from quiesce.model.grades import Consistency
from quiesce.model.groups import Group
from quiesce.operations import group as groups
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S
from quiesce.operations.divergence import group_divergence
from quiesce.operations.group import Shown
from quiesce.operations.group_checkpoint import Taken, group_checkpoint
from quiesce.operations.group_restore import GroupRestored, group_restore
from quiesce.wire.schema import to_wire

app = typer.Typer(name="group", help="Several VMs that are one application.", no_args_is_help=True)

Members = Annotated[
    list[str],
    typer.Argument(
        metavar="MEMBER...", help="VM, VM:TIER (front, middle, back or external), or @GROUP for another group in it."
    ),
]


@app.command("create")
def create(
    name: GroupName, members: Members, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None
) -> None:
    """Make a group of VMs.

    The tier says in which order they are started: back ends first. In which order applications are held, they say themselves.
    An external one is neither taken nor restored with the others, but asked whether it would disagree with them.
    """
    _run(lambda context: groups.create(context, name, members), "created", as_json, connect, catalog)


@app.command("add")
def add(name: GroupName, members: Members, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Add VMs, or groups, to a group."""
    _run(lambda context: groups.add(context, name, members), "changed", as_json, connect, catalog)


@app.command("remove")
def remove(
    name: GroupName, members: Members, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None
) -> None:
    """Take VMs, or groups, out of a group. Checkpoints that were taken stay as they are."""
    _run(lambda context: groups.remove(context, name, members), "changed", as_json, connect, catalog)


@app.command("forget")
def forget(name: GroupName, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Forget a group. Its VMs and their checkpoints stay as they are."""
    _run(lambda context: groups.forget(context, name), "forgotten", as_json, connect, catalog)


def _run(work: Any, said: str, as_json: bool, connect: str | None, catalog: str | None) -> None:
    def show(group: Group) -> None:
        session.out.print(f"{said} group [bold]{escape(group.name)}[/]")

    session.run(work, connect=connect, catalog=catalog, as_json=as_json, to_json=to_wire, show=show)


@app.command("list")
def list_(as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """List the groups."""
    session.run(
        groups.show_all,
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda found: [to_wire(item) for item in found],
        show=_show_all,
    )


def _show_all(found: list[Shown]) -> None:
    table = Table("group", "members", "checkpoints", box=None, pad_edge=False, header_style="bold")
    for item in found:
        names = ", ".join(f"{member.vm_name}:{member.tier.value}" for member in item.members)
        table.add_row(escape(item.group.name), escape(names), str(len(item.checkpoints)))
    session.out.print(table)


@app.command("show")
def show(name: GroupName, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Show the members of a group, those of the groups in it too, and its checkpoints."""
    session.run(
        lambda context: groups.show(context, name),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=to_wire,
        show=_show_one,
    )


def _show_one(item: Shown) -> None:
    table = Table("member", "tier", "uuid", box=None, pad_edge=False, header_style="bold")
    for member in item.members:
        table.add_row(escape(member.vm_name), member.tier.value, member.vm_uuid)
    session.out.print(table)
    for part in item.checkpoints:
        session.out.print(f"checkpoint [bold]{escape(part.group)}@{escape(part.name)}[/]")


@app.command("checkpoint")
def checkpoint(
    name: GroupName,
    checkpoint_name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="At most 100 characters. \\[default: the time, UTC]"),
    ] = None,
    require: Annotated[
        Consistency | None,
        typer.Option(
            help="The least consistency to accept of each member, else nothing is kept. \\[default: as set for each VM, or"
            " application]"
        ),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.5, max=60, help="Longest time writes may be held; each guest itself enforces it."
        ),
    ] = DEFAULT_WINDOW_S,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Take a checkpoint of all members at one instant, or of none.

    Front ends are held first, on all members, then what lies behind them; when all are frozen, all switch at once. So what one
    server had told another before, both know; and nothing of after is in any of them.
    """
    session.run(
        lambda context: group_checkpoint(context, name, name=checkpoint_name, required=require, window_s=window),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_taken_json,
        show=_show_taken,
    )


def _taken_json(taken: Taken) -> dict[str, Any]:
    return {**to_wire(taken.part), "checkpoints": [render.checkpoint_json(node) for node in taken.checkpoints]}


def _show_taken(taken: Taken) -> None:
    out = session.out
    out.print(f"checkpoint [bold]{escape(taken.part.group)}@{escape(taken.part.name)}[/]")
    table = Table("member", "consistency", "writes held", "writers", box=None, pad_edge=False, header_style="bold")
    for node in taken.checkpoints:
        held = f"{node.stall_us / 1000:.0f} ms" if node.stall_us else "-"
        table.add_row(escape(node.vm_name), render.label(node.consistency), held, str(len(node.writers)))
    out.print(table)
    out.print(f"first to last switch {taken.part.skew_us / 1000:.0f} ms")


@app.command("restore")
def restore(
    reference: PartReference,
    start: Annotated[
        bool, typer.Option("--start", help="Start the members afterwards, back ends first; otherwise they are left off.")
    ] = False,
    discard_current: Annotated[
        bool, typer.Option("--discard-current", help="Do not keep the present states; this cannot be undone.")
    ] = False,
    accept_divergence: AcceptDivergence = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Put all members back to a group's checkpoint.

    What would be refused of one is refused before any is touched. With --start, each tier is started when the applications of
    the one behind it answer. Interrupted, the same command goes on.
    """
    session.run(
        lambda context: group_restore(
            context, reference, start=start, discard_current=discard_current, accept_divergence=accept_divergence
        ),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_restored_json,
        show=_show_restored,
    )


def _restored_json(result: GroupRestored) -> dict[str, Any]:
    return {
        **to_wire(result.part),
        "restored": [one.to_json(item) for item in result.restored],
        "started": result.started,
    }


def _show_restored(result: GroupRestored) -> None:
    for item in result.restored:
        one.show(item)
    state = "running" if result.started else "off"
    session.out.print(
        f"all members of {escape(result.part.group)} stand at [bold]{escape(result.part.name)}[/] and are {state}"
    )


@app.command("divergence")
def divergence(reference: PartReference, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Say which servers beside a group's checkpoint would disagree with it, if it were restored."""
    session.run(
        lambda context: group_divergence(context, reference),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=disagreement.to_json,
        show=disagreement.show,
    )


@app.command("delete")
def delete(
    reference: PartReference,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Delete a group's checkpoint: every member's part of it."""
    session.run(
        lambda context: groups.delete_checkpoint(context, reference, dry_run=dry_run),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=deletion.to_json,
        show=lambda result: deletion.show_deleted(result, dry_run=dry_run),
    )

"""quiesce diff"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from quiesce.applications.changes import ChangeKind, WriterChange
from quiesce.cli import render, terminal
from quiesce.cli.options import Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.errors import UsageError
from quiesce.model.names import CheckpointReference
from quiesce.operations.diff import Difference, DiskDifference, DiskSide, diff


def _show(found: Difference) -> None:
    out = terminal.out
    first, second = terminal.text(found.first.name), terminal.text(found.second.name) if found.second else "now"
    ancestor = found.common_ancestor if not found.one_line else None
    based = f", both based on [bold]{terminal.text(ancestor.name)}[/]" if ancestor else ""
    out.print(f"{terminal.text(found.vm)}: [bold]{first}[/] and [bold]{second}[/]{based}")
    table = Table(
        "disk", f"written until {first}", f"written until {second}", "", box=None, pad_edge=False, header_style="bold"
    )
    for disk in found.disks:
        table.add_row(terminal.text(disk.disk), _written(disk, disk.first), _written(disk, disk.second), _note(disk))
    out.print(table)
    out.print(
        "[dim]counted since both had the same content; rounded up, with the images' own tables, without discarded data[/]"
    )
    out.print("configuration: " + ("" if found.configuration else "the same"))
    for line in found.configuration:
        out.print(f"  [{_colour(line)}]{terminal.text(line)}[/]")
    if found.writers is None:
        out.print("applications: not known at both; a guest is asked only while a checkpoint is taken")
    elif found.writers:
        out.print(_writers_table(found.writers, first, second))


def _written(disk: DiskDifference, side: DiskSide | None) -> str:
    if side is None:
        return "-"
    if side.written is None:
        return "not known"
    return decimal(side.written) if disk.first and disk.second else "present"


def _note(disk: DiskDifference) -> str:
    if disk.left_out:
        return "left out of a checkpoint"
    if not (disk.first and disk.second):
        return ""
    if disk.common_image is None:
        return "no image in common: another disk, or a copy that made the chain shorter"
    if disk.first.size != disk.second.size and disk.first.size and disk.second.size:
        return f"size {decimal(disk.first.size)}, then {decimal(disk.second.size)}"
    return ""


def _colour(line: str) -> str:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "default")


def _writers_table(writers: tuple[WriterChange, ...], first: str, second: str) -> Table:
    table = Table("writer", "", f"at {first}", f"at {second}", box=None, pad_edge=False, header_style="bold")
    for change in writers:
        log = ", ".join(f"{key.removesuffix('_lsn')} {value:+,} bytes" for key, value in change.log_bytes.items())
        cells = [f"{writer.version} {render.position(writer)}" if writer else "-" for writer in (change.before, change.after)]
        kind = change.kind.value if change.kind is not ChangeKind.SAME else "[dim]same[/]"
        table.add_row(terminal.text(change.id), kind, terminal.text(cells[0]), terminal.text(cells[1]))
        if any(change.log_bytes.values()):
            table.add_row("", "", "", f"[dim]{terminal.text(log)}[/]")
    return table


@verb(_show, only_reads=True)
def command(
    context: Context,
    checkpoint: Reference,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="VM@CHECKPOINT|VM",
            help="The checkpoint to compare it with. Left out, or if only VM is given: the VM as it is now.",
        ),
    ] = None,
) -> Difference:
    """Show what differs between two checkpoints of a VM, or between a checkpoint and the VM as it is now.

    Disks: how many bytes were written on each side since both had the same content. No more than that can differ, but for data
    that the guest discarded. The numbers are rounded up to the images' clusters and include the images' own tables.

    Configuration: a unified diff of the domain XML. Applications: their versions and positions at both checkpoints.

    Example: quiesce diff db1@monday db1@tuesday
    """
    reference = context.reference(checkpoint)
    return diff(context, reference, _second(context, reference, other))


def _second(context: Context, first: CheckpointReference, other: str | None) -> str | None:
    """The name of the second checkpoint; None for the VM as it is now. Raises UsageError."""
    if other is None or other == first.vm:
        return None
    second = context.reference(other)
    if second.vm != first.vm:
        raise UsageError(f"{first.vm} and {second.vm} are two VMs; only checkpoints of one VM can be compared")
    return second.checkpoint

"""quiesce diff"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from quiesce.applications.changes import ChangeKind, WriterChange
from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.context import Context
from quiesce.model.errors import UsageError
from quiesce.model.names import CheckpointReference, parse_reference
from quiesce.model.tree import Checkpoint
from quiesce.operations.diff import Difference, DiskDifference, DiskSide, diff
from quiesce.wire.schema import to_wire


def command(
    checkpoint: Reference,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="VM@CHECKPOINT|VM", help="What to compare it with. If left out, or VM only: the VM as it is now."
        ),
    ] = None,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Show what differs between two checkpoints of a VM, or between a checkpoint and the VM as it is now.

    For each disk: how much was written on either side since both had the same content. At most as much differs, besides what
    the guest discarded. It is rounded up to the images' clusters, and includes the images' own tables.

    For the configuration: a unified diff. For the applications: their positions.
    """

    def work(context: Context) -> Difference:
        reference = parse_reference(checkpoint)
        return diff(context, reference, _second(reference, other))

    session.run(work, connect=connect, catalog=catalog, as_json=as_json, to_json=_json, show=_show)


def _second(first: CheckpointReference, other: str | None) -> str | None:
    """The name of the second checkpoint; None for the VM as it is now."""
    if other is None or other == first.vm:
        return None
    second = parse_reference(other)
    if second.vm != first.vm:
        raise UsageError(f"{first.vm} and {second.vm} are two VMs; only points of one can be compared")
    return second.checkpoint


def _json(found: Difference) -> dict[str, Any]:
    return {
        "vm": found.vm,
        "first": _point(found.first),
        "second": _point(found.second),
        "common_ancestor": _point(found.common_ancestor),
        "one_line": found.one_line,
        "disks": [_disk_json(disk) for disk in found.disks],
        "configuration": list(found.configuration),
        "writers": None if found.writers is None else [_writer_json(change) for change in found.writers],
    }


def _point(node: Checkpoint | None) -> dict[str, str] | None:
    return {"id": node.id, "name": node.name, "created": node.created} if node else None


def _disk_json(disk: DiskDifference) -> dict[str, Any]:
    return {
        "disk": disk.disk,
        "first": _side_json(disk.first),
        "second": _side_json(disk.second),
        "left_out": list(disk.left_out),
        "common_image": disk.common_image,
    }


def _side_json(side: DiskSide | None) -> dict[str, Any] | None:
    return {"image": side.image, "size_bytes": side.size, "written_bytes": side.written} if side else None


def _writer_json(change: WriterChange) -> dict[str, Any]:
    return {
        "id": change.id,
        "change": change.kind.value,
        "first": to_wire(change.before) if change.before else None,
        "second": to_wire(change.after) if change.after else None,
        "log_bytes": change.log_bytes,
    }


def _show(found: Difference) -> None:
    out = session.out
    first, second = escape(found.first.name), escape(found.second.name) if found.second else "now"
    parted = f", which parted at [bold]{escape(found.common_ancestor.name)}[/]" if found.common_ancestor else ""
    out.print(f"{escape(found.vm)}: [bold]{first}[/] and [bold]{second}[/]{'' if found.one_line else parted}")
    table = Table(
        "disk", f"written until {first}", f"written until {second}", "", box=None, pad_edge=False, header_style="bold"
    )
    for disk in found.disks:
        table.add_row(escape(disk.disk), _written(disk, disk.first), _written(disk, disk.second), _note(disk))
    out.print(table)
    out.print("[dim]since both had the same content; rounded up, with the images' own tables; discards are not counted[/]")
    out.print("configuration: " + ("" if found.configuration else "the same"))
    for line in found.configuration:
        out.print(f"  [{_colour(line)}]{escape(line)}[/]")
    if found.writers is None:
        out.print("applications: not known of both, because a guest is only asked while a checkpoint is taken")
    elif found.writers:
        out.print(_writers_table(found.writers, first, second))


def _written(disk: DiskDifference, side: DiskSide | None) -> str:
    if side is None:
        return "-"
    if side.written is None:
        return "not known"
    return decimal(side.written) if disk.first and disk.second else "there"


def _note(disk: DiskDifference) -> str:
    if disk.left_out:
        return "left out of a checkpoint"
    if not (disk.first and disk.second):
        return ""
    if disk.common_image is None:
        return "another disk: nothing in common"
    if disk.first.size != disk.second.size and disk.first.size and disk.second.size:
        return f"size {decimal(disk.first.size)}, then {decimal(disk.second.size)}"
    return ""


def _colour(line: str) -> str:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[0], "default")


def _writers_table(writers: tuple[WriterChange, ...], first: str, second: str) -> Table:
    table = Table("writer", "", f"at {first}", f"at {second}", box=None, pad_edge=False, header_style="bold")
    for change in writers:
        log = ", ".join(f"{key.removesuffix('_lsn')} {value:+,} bytes" for key, value in change.log_bytes.items())
        cells = [f"{writer.version} {render.position(writer)}" if writer else "-" for writer in (change.before, change.after)]
        said = change.kind.value if change.kind is not ChangeKind.SAME else "[dim]same[/]"
        table.add_row(escape(change.id), said, escape(cells[0]), escape(cells[1]))
        if any(change.log_bytes.values()):
            table.add_row("", "", "", f"[dim]{escape(log)}[/]")
    return table

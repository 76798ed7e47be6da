"""quiesce export"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.model.names import parse_reference
from quiesce.operations.export import Exported, export
from quiesce.wire.schema import to_wire


def command(
    checkpoint: Reference,
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="An absolute path on the VM's host; made, or must be empty.")
    ],
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Write a checkpoint into a directory from which any libvirt host can start it.

    Its disks with nothing below them, its definition, UEFI variables and TPM state, and a manifest with checksums. The VM
    runs on. `quiesce import` makes a VM of it; so does `virsh define DIRECTORY/domain.xml`, on that very directory.
    """
    session.run(
        lambda context: export(context, parse_reference(checkpoint), directory),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_json,
        show=_show,
    )


def _json(result: Exported) -> dict[str, Any]:
    return {"directory": result.directory, "export": to_wire(result.export)}


def _show(result: Exported) -> None:
    size = sum(file.bytes for file in result.export.files)
    session.out.print(f"exported to [bold]{escape(result.directory)}[/]: {len(result.export.files)} files, {size} bytes")

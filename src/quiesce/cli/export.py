"""quiesce export"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import AcceptChanged, Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.export import Exported, export


def _show(result: Exported) -> None:
    size = sum(file.bytes for file in result.export.files)
    terminal.out.print(
        f"exported to [bold]{terminal.text(result.directory)}[/]: {len(result.export.files)} files, {size} bytes"
    )


@verb(_show)
def command(
    context: Context,
    checkpoint: Reference,
    directory: Annotated[
        str,
        typer.Argument(metavar="DIRECTORY", help="An absolute path on the VM's host. The directory is made, or must be empty."),
    ],
    accept_changed_images: AcceptChanged = False,
) -> Exported:
    """Export a checkpoint into a directory from which any libvirt host can start it. The VM may run meanwhile.

    The directory gets the disks as images without a backing file, the domain XML, the UEFI variables, the TPM state, and a
    manifest with checksums. The memory of a standard checkpoint is left out.

    `quiesce import` makes a VM of the export. Without quiesce, run `virsh define DIRECTORY/domain.xml`; the VM then uses the
    disks in that directory.

    Example: quiesce export db1@before-upgrade /exports/db1
    """
    return export(context, context.reference(checkpoint), directory, accept_changed=accept_changed_images)

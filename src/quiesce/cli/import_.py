"""quiesce import"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.import_ import Imported, import_vm


def _show(result: Imported) -> None:
    state = "is running" if result.started else "is off"
    name, uuid, directory = map(terminal.text, (result.vm, result.uuid, result.directory))
    terminal.out.print(f"[bold]{name}[/] ({uuid}) {state}; its images are in {directory}")
    if result.proof:
        terminal.out.print(f"the export says that its checkpoint was booted aside: {render.proof(result.proof)}")


@verb(_show)
def command(
    context: Context,
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="The directory of the export: an absolute path on the host.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="DIRECTORY", help="The directory for the VM's images. It is made if it does not exist."),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Make a new VM of this name, with a new UUID and new MAC addresses."),
    ] = None,
    same: Annotated[
        bool, typer.Option("--same", help="Make the exported VM again, with its own name, UUID and MAC addresses.")
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="ELEMENT",
            help="Take this element of the definition as it is, although the import would refuse it; repeatable.",
        ),
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start the VM afterwards.")] = False,
) -> Imported:
    """Make a VM from an export: a new VM (--name), or the exported VM again (--same).

    The export may be a stranger's. First the command checks all of it, and compares it with its checksums and with what the
    host can run. It refuses, by name, what a definition could use against the host: host devices, sockets, programs, files of
    the host. --accept takes such an element, for example hostdev. The disks are copied; the export stays as it is.

    Example: quiesce import /exports/db1 --to /var/lib/libvirt/images --name db1-test
    """
    return import_vm(context, directory, to=to, name=name, same=same, start=start, accept=accept or ())

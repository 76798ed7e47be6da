"""quiesce import"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json
from quiesce.operations.import_ import Imported, import_vm


def command(
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="Of the export, on the host.")],
    to: Annotated[str, typer.Option("--to", metavar="DIRECTORY", help="Where the VM's images are to be; made if need be.")],
    name: Annotated[str | None, typer.Option("--name", "-n", metavar="NAME", help="Of a new VM.")] = None,
    same: Annotated[bool, typer.Option("--same", help="The exported VM again: its own name, UUID and addresses.")] = False,
    start: Annotated[bool, typer.Option("--start", help="Start it afterwards.")] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Make a VM from an export: a new one (--name), or the same again (--same).

    The export is checked against its checksums and against what the host can run, and stays as it is.
    """
    session.run(
        lambda context: import_vm(context, directory, to=to, name=name, same=same, start=start),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=asdict,
        show=_show,
    )


def _show(result: Imported) -> None:
    state = "is running" if result.started else "is off"
    session.out.print(f"[bold]{escape(result.vm)}[/] ({result.uuid}) {state}; its images are in {escape(result.directory)}")

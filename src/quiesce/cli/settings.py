"""quiesce settings"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.context import Context
from quiesce.model.errors import UsageError
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.operations.settings import settings
from quiesce.wire.schema import to_wire


def command(
    vm: Vm,
    type: Annotated[
        Type | None,
        typer.Option(help="production asks the guest's applications; standard saves memory instead; disabled takes none."),
    ] = None,
    require: Annotated[Consistency | None, typer.Option(help="The least consistency to accept, else nothing is kept.")] = None,
    automatic: Annotated[
        bool | None,
        typer.Option(
            "--automatic/--no-automatic",
            help="Take one when the VM starts with none, remove it after a clean shutdown. Needs `quiesce watch`.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="DISK", help="Leave a disk out, as vdb; replaces those set before. Can be given several times."),
    ] = None,
    no_exclude: Annotated[bool, typer.Option("--no-exclude", help="Leave no disk out any more.")] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Show how a VM's checkpoints are taken where a call does not say otherwise, and change it."""

    def work(context: Context) -> Settings:
        if exclude and no_exclude:
            raise UsageError("--exclude and --no-exclude contradict each other")
        chosen = () if no_exclude else tuple(exclude) if exclude else None
        return settings(context, vm, type=type, require=require, automatic=automatic, exclude=chosen)

    session.run(work, connect=connect, catalog=catalog, as_json=as_json, to_json=to_wire, show=_show)


def _show(found: Settings) -> None:
    out = session.out
    out.print(f"type       {found.type.value}")
    out.print(f"require    {render.label(found.require)}")
    out.print(f"automatic  {'yes' if found.automatic else 'no'}")
    out.print(f"exclude    {escape(' '.join(found.exclude)) or '-'}")

"""quiesce doctor"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json, OptionalVm
from quiesce.operations.doctor import Diagnosis, doctor


def command(
    vm: OptionalVm = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what was found.")] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Look for what is wrong with the checkpoints of a VM, or of all, and mend it.

    Found are: operations that were interrupted, files that nothing needs, files that are gone, chains that somebody changed
    with virsh, deleted checkpoints that can be merged now, manifests that are out of date, VMs that were renamed, undefined
    or defined anew. Repairing gives up only what can no longer be restored.
    """
    session.run(
        lambda context: doctor(context, vm, repair=repair),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda found: [_json(item) for item in found],
        show=_show,
    )


def _json(found: Diagnosis) -> dict[str, Any]:
    return {"vm": found.vm, "found": list(found.found), "mended": list(found.mended)}


def _show(found: list[Diagnosis]) -> None:
    for item in found:
        lines = [*item.found, *item.mended]
        if not lines:
            session.out.print(f"{escape(item.vm)}: nothing is wrong")
        for line in item.found:
            session.out.print(f"{escape(item.vm)}: [yellow]{escape(line)}[/]")
        for line in item.mended:
            session.out.print(f"{escape(item.vm)}: [green]{escape(line)}[/]")

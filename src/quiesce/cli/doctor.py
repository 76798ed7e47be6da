"""quiesce doctor"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.operations.doctor import Diagnosis, doctor


def command(
    vm: Vm,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found.")] = False,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Look for what interrupted operations left behind, and mend it with --repair.

    Every operation that changes disks does the same before it begins.
    """
    session.run(
        lambda context: doctor(context, vm, repair=repair),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_json,
        show=_show,
    )


def _json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {"found": list(diagnosis.found), "mended": list(diagnosis.mended)}


def _show(diagnosis: Diagnosis) -> None:
    for line in diagnosis.found:
        session.out.print(f"found: {escape(line)}")
    if not diagnosis.found:
        session.out.print("nothing to mend")

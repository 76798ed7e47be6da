"""quiesce writers"""

from __future__ import annotations

from typing import Any

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.operations.writers import GuestReport, writers
from quiesce.wire.schema import to_wire


def command(vm: Vm, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Show the applications and filesystems of a guest, and what a checkpoint would be worth now."""
    session.run(
        lambda context: writers(context, vm),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_json,
        show=_show,
    )


def _json(report: GuestReport) -> dict[str, Any]:
    return {
        "agent_version": report.agent_version,
        "expected_consistency": report.expected.value,
        "writers": [to_wire(writer) for writer in report.writers],
        "filesystems": [to_wire(item) for item in report.filesystems],
    }


def _show(report: GuestReport) -> None:
    session.out.print(f"a checkpoint now would be {render.label(report.expected)}-consistent")
    if report.writers:
        session.out.print(render.writers_table(report.writers))
    session.out.print(render.filesystems_table(report.filesystems))

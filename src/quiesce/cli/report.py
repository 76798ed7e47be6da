"""quiesce report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import Reference
from quiesce.cli.page import page
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.errors import QuiesceError
from quiesce.operations.report import CheckpointReport, report

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write one self-contained page to this file: it can be printed, and sent on."),
]


def show_report(result: CheckpointReport, html: Path | None) -> None:
    out = terminal.out
    out.print(f"[bold]{terminal.text(result.title)}[/], report of {terminal.text(result.made)}")
    for node in result.checkpoints:
        out.print(f"{terminal.text(node.vm_name)}: ", render.node_line(node))
        if node.writers:
            out.print(render.writers_table(node.writers))
        if node.proof:
            render.show_proof(node.proof)
    for bar in result.timeline:
        times = f"{bar.begin_us / 1000:8.1f} to {bar.end_us / 1000:8.1f} ms"
        out.print(f"{times}  {terminal.text(bar.lane)}  {terminal.text(bar.what)}")
    if html:
        out.print(f"the page is in {terminal.text(str(html))}")


def write_page(result: CheckpointReport, html: Path | None) -> CheckpointReport:
    """Returns the report. Raises QuiesceError if the page cannot be written."""
    if html is not None:
        try:
            html.write_text(page(result), encoding="utf-8")
        except OSError as error:
            raise QuiesceError(
                f"the page cannot be written to {html}: {error.strerror}", hint="name a file in a directory that you may write"
            ) from error
    return result


@verb(show_report)
def command(context: Context, checkpoint: Reference, html: Html = None) -> CheckpointReport:
    """Show all that is known of a checkpoint, for a person who was not there: what was asked, the label, the window as a
    picture, positions, the proof.

    Example: quiesce report db1@before-upgrade --html before-upgrade.html
    """
    return write_page(report(context, context.reference(checkpoint)), html)

"""quiesce group report"""

from __future__ import annotations

from quiesce.cli.options import PartReference
from quiesce.cli.report import Html, show_report, write_page
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.report import CheckpointReport, group_report


@verb(show_report)
def command(context: Context, reference: PartReference, html: Html = None) -> CheckpointReport:
    """Show all that is known of a group's checkpoint: its members on one time axis, and the servers that had no part.

    Example: quiesce group report shop@before-upgrade --html before-upgrade.html
    """
    return write_page(group_report(context, reference), html)

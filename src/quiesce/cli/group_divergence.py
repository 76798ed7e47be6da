"""quiesce group divergence"""

from __future__ import annotations

from quiesce.cli.divergence import show_divergence
from quiesce.cli.options import PartReference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.divergence import Divergence, group_divergence


@verb(show_divergence, only_reads=True)
def command(context: Context, reference: PartReference) -> Divergence:
    """Show which servers outside a group's checkpoint would disagree with it if it were restored. Changes nothing."""
    return group_divergence(context, reference)

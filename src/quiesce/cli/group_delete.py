"""quiesce group delete"""

from __future__ import annotations

from quiesce.cli.delete import show_deleted
from quiesce.cli.options import DryRun, PartReference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.delete import Deleted
from quiesce.operations.group import delete_checkpoint


@verb(show_deleted)
def command(context: Context, reference: PartReference, dry_run: DryRun = False) -> Deleted:
    """Delete a group's checkpoint: the part of every member."""
    return delete_checkpoint(context, reference, dry_run=dry_run)

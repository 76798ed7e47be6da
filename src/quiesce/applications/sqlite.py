"""SQLite files of a service.

A position has `files`, their number; of files that were held, also the change counter and the pages, by path.
"""

from __future__ import annotations

from quiesce.applications.application import Application, Comparison, not_comparable
from quiesce.model.reports import WriterReport


class SqliteApplication(Application):
    def compare(self, before: WriterReport, now: WriterReport) -> Comparison:
        """Unknown if the files were not held at the checkpoint: their number says nothing of what is in them."""
        return not_comparable(before, now) if before.position.keys() == {"files"} else super().compare(before, now)


APPLICATIONS = {"sqlite": SqliteApplication()}

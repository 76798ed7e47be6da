"""SQLite files of a service.

A position has `files`, their number; of files that were held, also the change counter and the pages, by path.
"""

from __future__ import annotations

import re

from quiesce.applications.application import Application, Comparison, StartVerdict, not_comparable, went_back
from quiesce.model.proof import ProofState
from quiesce.model.reports import WriterReport
from quiesce.model.starts import Start

_CHANGE = re.compile(r"change (\d+)")


class SqliteApplication(Application):
    def compare(self, before: WriterReport, now: WriterReport) -> Comparison:
        """Unknown if the files were not held at the checkpoint: their number says nothing of what is in them."""
        return not_comparable(before, now) if before.position.keys() == {"files"} else super().compare(before, now)

    def judge_start(self, claimed: WriterReport, start: Start, *, held: bool) -> StartVerdict:
        """The service may have written since it started: the files are at the checkpoint's commit or a later one."""
        if held and (text := went_back(claimed, start, _CHANGE)):
            return StartVerdict(ProofState.FAILED, text, differs=claimed.grade.vouched)
        return super().judge_start(claimed, start, held=False)


APPLICATIONS = {"sqlite": SqliteApplication()}

"""OpenLDAP with LMDB: the number of each database's last commit tells where it is.

A position has `last_txn_id`, or `last_txn_id DIRECTORY` for each of several databases.
"""

from __future__ import annotations

import re

from quiesce.applications.application import Application, StartVerdict, went_back
from quiesce.model.proof import ProofState
from quiesce.model.reports import WriterReport
from quiesce.model.starts import Start

_NUMBER = re.compile(r"(\d+)")


class OpenldapApplication(Application):
    def judge_start(self, claimed: WriterReport, start: Start, *, held: bool) -> StartVerdict:
        """The server may have written since it started: its databases are at the checkpoint's commit or a later one."""
        if held and (text := went_back(claimed, start, _NUMBER)):
            return StartVerdict(ProofState.FAILED, text, differs=claimed.grade.vouched)
        return super().judge_start(claimed, start, held=False)


APPLICATIONS = {"openldap": OpenldapApplication()}

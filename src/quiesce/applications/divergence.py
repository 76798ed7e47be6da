"""Judges a server that stays as it is, by its applications, while others go back to a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from quiesce.applications.application import counted
from quiesce.applications.registry import application_of
from quiesce.model.divergence import Agreement, Finding, ServerFindings
from quiesce.model.reports import WriterReport


def judge_server(
    vm_name: str, then: Sequence[WriterReport] | None, now: Sequence[WriterReport], going: Sequence[WriterReport]
) -> ServerFindings:
    """Compares a server's applications now with those at the checkpoint's instant.

    `then`: the applications at that instant; None if the guest was not asked. `going`: the applications of all servers that go
    back, as they were at that instant. A replica of one of these is judged by whether it could still follow: a standby may have
    moved since the checkpoint if it is not ahead of its primary's position at the checkpoint.
    """
    findings: list[Finding] = []
    before = {writer.id: writer for writer in then or ()}
    for writer in now:
        following = next(filter(None, (_following(writer, primary) for primary in going)), None)
        if following:
            findings.append(following)
        elif not writer.matters_to_others:
            continue
        elif writer.id in before:
            findings.append(_compare(before[writer.id], writer))
        elif then is None or writer.role == "down":  # a stopped service's id is not the id that it has while it runs
            text = f"the position of {_name(writer)} at the checkpoint is not known"
            findings.append(Finding(writer.id, Agreement.UNKNOWN, text))
        else:
            findings.append(Finding(writer.id, Agreement.MOVED, f"{_name(writer)} was not there at the checkpoint"))
    gone = before.keys() - {writer.id for writer in now}
    findings += [
        Finding(id, Agreement.UNKNOWN, f"{_name(before[id])} is not there now, or is not running")
        for id in sorted(gone)
        if before[id].matters_to_others
    ]
    return ServerFindings(vm_name, tuple(findings))


def _compare(before: WriterReport, now: WriterReport) -> Finding:
    verdict, text = application_of(now).compare(before, now)
    return Finding(now.id, verdict, f"{_name(now)} {text}")


def _following(replica: WriterReport, primary: WriterReport) -> Finding | None:
    """Whether the one could go on to follow the other from the checkpoint; None if it does not follow it."""
    if replica.role not in ("standby", "replica") or replica.application != primary.application:
        return None
    ahead = application_of(replica).replica_ahead(replica, primary)
    if ahead is None:
        return None
    name = f"{_name(replica)}, which replicates a server that goes back,"
    if ahead.by <= 0:
        return Finding(replica.id, Agreement.AGREES, f"{name} is not ahead of the checkpoint and can follow from there")
    text = f"{name} is {counted(ahead.by, ahead.unit)} ahead of the checkpoint ({ahead.where})"
    return Finding(replica.id, Agreement.MOVED, f"{text}; it could not follow, and would have to be set up anew")


def _name(writer: WriterReport) -> str:
    return application_of(writer).name(writer)

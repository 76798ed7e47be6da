"""How the applications of one guest stood at two checkpoints. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from quiesce.model.reports import WriterReport

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Change(str, Enum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    """Another version or position."""
    SAME = "same"


@dataclass(frozen=True)
class WriterChange:
    id: str
    change: Change
    before: WriterReport | None
    after: WriterReport | None
    log_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of PostgreSQL's log from one to the other, by position; less than 0 if it is further at the first."""


def compare(before: Iterable[WriterReport], after: Iterable[WriterReport], *, one_line: bool) -> tuple[WriterChange, ...]:
    """One entry for each writer of either, by id. `one_line`: one of the two is based on the other. Where both only have an
    ancestor in common, each went on from there on its own: equal log positions then name different content, and no distance
    between them means anything."""
    first, second = ({writer.id: writer for writer in writers} for writers in (before, after))
    return tuple(_compare(id, first.get(id), second.get(id), one_line) for id in sorted(first.keys() | second.keys()))


def _compare(id: str, before: WriterReport | None, after: WriterReport | None, one_line: bool) -> WriterChange:
    if before is None or after is None:
        return WriterChange(id, Change.ADDED if before is None else Change.REMOVED, before, after)
    same = (before.version, before.position) == (after.version, after.position)
    distances = _distances(before.position, after.position) if one_line else {}
    return WriterChange(id, Change.SAME if same else Change.CHANGED, before, after, distances)


def _distances(before: dict[str, str], after: dict[str, str]) -> dict[str, int]:
    """Only of one cluster on one timeline are two LSNs points of the same log."""
    if any(before.get(key) is None or before.get(key) != after.get(key) for key in ("system_identifier", "timeline")):
        return {}
    found = {}
    for key in before.keys() & after.keys():
        first, second = lsn(before[key]), lsn(after[key])
        if key.endswith("_lsn") and first is not None and second is not None:
            found[key] = second - first
    return dict(sorted(found.items()))


def lsn(text: str) -> int | None:
    """`16/B374D848` as a number."""
    match = _LSN.fullmatch(text)
    return (int(match[1], 16) << 32) + int(match[2], 16) if match else None

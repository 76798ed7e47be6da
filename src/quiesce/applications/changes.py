"""What changed in the applications of one guest between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from quiesce.applications.registry import application_of
from quiesce.model.reports import WriterReport


class ChangeKind(str, Enum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    """Another version or position."""
    SAME = "same"


@dataclass(frozen=True)
class WriterChange:
    id: str
    kind: ChangeKind
    before: WriterReport | None
    after: WriterReport | None
    log_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of the application's log from the first checkpoint to the second, by key; see Application.log_bytes."""


def compare_writers(
    before: Iterable[WriterReport], after: Iterable[WriterReport], *, one_line: bool
) -> tuple[WriterChange, ...]:
    """One entry for each writer that is in one of the two or in both, sorted by id.

    `one_line`: one of the two checkpoints is based on the other. If not, both only have a common ancestor, and each went on
    from there on its own: equal log positions then name different content, and a distance between them means nothing.
    """
    first, second = ({writer.id: writer for writer in writers} for writers in (before, after))
    return tuple(_compare(id, first.get(id), second.get(id), one_line) for id in sorted(first.keys() | second.keys()))


def _compare(id: str, before: WriterReport | None, after: WriterReport | None, one_line: bool) -> WriterChange:
    if before is None or after is None:
        return WriterChange(id, ChangeKind.ADDED if before is None else ChangeKind.REMOVED, before, after)
    same = (before.version, before.position) == (after.version, after.position)
    log_bytes = application_of(after).log_bytes(before.position, after.position) if one_line else {}
    return WriterChange(id, ChangeKind.SAME if same else ChangeKind.CHANGED, before, after, log_bytes)

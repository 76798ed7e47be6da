"""Cuts what an application says of itself, so that a reply with all writers and filesystems fits into a line of the wire.

What is cut ends in an ellipsis. What is left out of a list is told as a number. Nothing that lowers a label is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Callable, Optional, TypeVar

from quiesce.model.grades import Grade
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.wire.framing import MAX_LINE
from quiesce.wire.schema import to_wire

T = TypeVar("T")

NAME, TEXT = 200, 1000
"""Longest name, and longest sentence, in bytes of JSON."""
MAX_POSITIONS, MAX_WARNINGS, MAX_MOUNT_POINTS = 32, 8, 16
MAX_WRITERS, MAX_FILESYSTEMS = 400, 400
WRITERS_SIZE, FILESYSTEMS_SIZE = MAX_LINE // 2, MAX_LINE // 4
"""Most that both lists may take in a reply, in bytes."""
OTHERS = "unaccounted:more-writers"
_WORST_FIRST = (Grade.REFUSED, *reversed([grade for grade in Grade if grade is not Grade.REFUSED]))


def cut(text: str, size: int = TEXT) -> str:
    """The beginning of the text that takes at most `size` bytes of JSON."""
    if len(text) <= size // 12 or len(json.dumps(text)) <= size + 2:
        return text
    low, high = 0, min(len(text), size)
    while low < high:  # how many characters fit, beside the ellipsis
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(json.dumps(text[:middle])) + 4 <= size else (low, middle - 1)
    return text[:low] + "…"


def _cut(text: Optional[str], size: int = TEXT) -> Optional[str]:
    return None if text is None else cut(text, size)


def _some(items: Iterable[str], most: int, size: int = TEXT) -> tuple[str, ...]:
    found = tuple(items)
    if len(found) <= most:
        return tuple(cut(each, size) for each in found)
    return (*(cut(each, size) for each in found[: most - 1]), f"… and {len(found) - most + 1} more")


def bounded_report(report: WriterReport) -> WriterReport:
    position = {cut(name, NAME): cut(value, NAME) for name, value in list(report.position.items())[:MAX_POSITIONS]}
    if len(report.position) > MAX_POSITIONS:
        position["…"] = f"and {len(report.position) - MAX_POSITIONS} more"
    return replace(
        report,
        id=cut(report.id, TEXT),
        application=cut(report.application, NAME),
        version=cut(report.version, NAME),
        reason=_cut(report.reason),
        role=_cut(report.role, NAME),
        position=position,
        data_directory=_cut(report.data_directory),
        warnings=_some(report.warnings, MAX_WARNINGS, TEXT // 2),
        last_error=_cut(report.last_error),
        filesystems=None if report.filesystems is None else _some(report.filesystems, MAX_MOUNT_POINTS, NAME),
    )


def bounded_writers(reports: Sequence[WriterReport]) -> tuple[WriterReport, ...]:
    """As many as fit, in their order, those on which the label depends before others; and one report for all that do not fit,
    which is worth no more than the worst of them."""
    kept = _fitting(reports, lambda report: report.required, WRITERS_SIZE, MAX_WRITERS)
    rest = [report for index, report in enumerate(reports) if index not in kept]
    found = tuple(report for index, report in enumerate(reports) if index in kept)
    return (*found, _others(rest)) if rest else found


def _fitting(items: Sequence[T], matters: Callable[[T], bool], size: int, most: int, *, always: bool = False) -> set[int]:
    """Indexes of the items that fit into so many bytes, at most so many of them; those that matter before others. `always`:
    all that matter are among them, whether they fit or not."""
    kept: set[int] = set()
    for index in sorted(range(len(items)), key=lambda index: (not matters(items[index]), index)):
        size -= len(json.dumps(to_wire(items[index])))
        if (size < 0 or len(kept) >= most) and not (always and matters(items[index])):
            break
        kept.add(index)
    return kept


def _others(rest: Sequence[WriterReport]) -> WriterReport:
    counted = [report for report in rest if report.required] or rest
    worst = min(counted, key=lambda report: _WORST_FIRST.index(report.grade))
    return WriterReport(
        OTHERS,
        f"{len(rest)} more writers",
        "unknown",
        worst.level,
        worst.grade,
        cut(f"{len(rest)} more writers do not fit into a reply; the worst is {worst.id}: {worst.reason or worst.grade.value}"),
        required=any(report.required for report in rest),
        outcome=worst.outcome,
    )


def _to_be_frozen(filesystem: Filesystem) -> bool:
    return filesystem.state is not FreezeState.SKIPPED


def bounded_filesystems(filesystems: Sequence[Filesystem]) -> tuple[Filesystem, ...]:
    """All that a freeze has to do with, and as many of the skipped ones as fit; the others as one that is skipped, too."""
    cut_down = [
        replace(
            each,
            mountpoint=cut(each.mountpoint, TEXT),
            fstype=cut(each.fstype, NAME),
            source=cut(each.source, NAME),
            reason=_cut(each.reason),
        )
        for each in filesystems
    ]
    kept = _fitting(
        cut_down, lambda each: each.state is not FreezeState.SKIPPED, FILESYSTEMS_SIZE, MAX_FILESYSTEMS, always=True
    )
    found = tuple(each for index, each in enumerate(cut_down) if index in kept)
    left = len(cut_down) - len(found)
    if not left:
        return found
    return (*found, Filesystem(f"… {left} more", "various", "various", FreezeState.SKIPPED, "skipped as well, and not listed"))

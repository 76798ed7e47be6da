"""The window of a checkpoint as bars on one time axis: what was held, frozen and switched from when to when. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quiesce.model.grades import LEVELS, Level
from quiesce.model.reports import FreezeState
from quiesce.model.tree import Checkpoint

HOLDS = tuple(f"hold {level.value}" for level in LEVELS)
RELEASES = tuple(f"release {level.value}" for level in reversed(LEVELS))
ORDER = (*HOLDS, "freeze", "switch", "thaw", *RELEASES)
"""The phases of a window in their order (window/machine.py), by the names that a checkpoint records."""


@dataclass(frozen=True)
class Bar:
    """Times are in microseconds from the begin of the window, on the host's clock."""

    lane: str
    """The member, or the member and what in it: `db1 postgresql:17/main`."""
    what: str
    begin_us: int
    end_us: int


def bars(nodes: Sequence[Checkpoint]) -> tuple[Bar, ...]:
    """Of the parts of one window. A writer is held from the begin of its level's hold to the end of its level's release, at
    most: the host knows the phases, and not when in a phase each writer answered. Empty if there was no window."""
    found: list[Bar] = []
    for node in nodes:
        phases = _phases(node)
        found += [Bar(node.vm_name, name, *phases[name]) for name in ORDER if name in phases]
        for writer in node.writers:
            if span := _held(phases, writer.level):
                found.append(Bar(f"{node.vm_name} {writer.id}", f"held ({writer.grade.value})", *span))
        frozen = [each for each in node.filesystems if each.state in (FreezeState.FROZEN, FreezeState.THAWED)]
        if frozen and "freeze" in phases and "thaw" in phases:
            span = phases["freeze"][0], phases["thaw"][1]
            found += [Bar(f"{node.vm_name} {each.mountpoint}", "frozen", *span) for each in frozen]
    return tuple(found)


def _phases(node: Checkpoint) -> dict[str, tuple[int, int]]:
    """Begin and end of each phase. Phases follow each other without a pause."""
    found, now = {}, 0
    for name in ORDER:
        if name in node.phases_us:
            found[name] = now, now + node.phases_us[name]
            now = found[name][1]
    return found


def _held(phases: dict[str, tuple[int, int]], level: Level) -> tuple[int, int] | None:
    begin, end = phases.get(f"hold {level.value}"), phases.get(f"release {level.value}")
    return (begin[0], end[1]) if begin and end else None

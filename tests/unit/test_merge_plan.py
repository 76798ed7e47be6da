"""disks/merge_plan.py: what a deletion would need. What is merged in which order: test_merges.py."""

from __future__ import annotations

import pytest

from quiesce.disks.merge_plan import require_possible
from quiesce.model.errors import NoSpaceError
from quiesce.storage.memory import MemoryStorage
from tests.unit.test_survey import at, surveyed


def test_what_a_deletion_frees_counts_as_room_for_its_merges():
    """Broken: on a full filesystem nothing could be deleted, although that is how it gets room."""
    a, b, leaf = at("a", "/i/a"), at("b", "/i/b", "a"), at("leaf", "/i/leaf", "a")
    below = {"/i/a": None, "/i/b": "/i/a", "/i/leaf": "/i/a", "/i/now": "/i/b"}
    found = surveyed(below, [a, b, leaf], {"vda": "/i/now"}, sizes={"/i/b": 200, "/i/leaf": 150, "/i/now": 10})
    storage = MemoryStorage()
    storage.free = 100
    require_possible(storage, found, [leaf], None)
    require_possible(storage, found, [a, leaf], None)
    require_possible(storage, found, [a], None)  # has two overlays, so nothing is merged yet
    storage.free = 49
    with pytest.raises(NoSpaceError, match="199 bytes free, 1 less than the 200"):
        require_possible(storage, found, [a, leaf], None)

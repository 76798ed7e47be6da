"""model/fingerprints.py: what tells that an image was written, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.model.chains import Image
from quiesce.model.fingerprints import Fingerprint, lowered
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import WriterReport
from tests.samples import node

IMAGE = Image("/i/a.qcow2", "qcow2", "/i/base.qcow2", 1 << 20, 200704, "1767225600.123456789", 393216)
RECORDED = Fingerprint.of(IMAGE)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (replace(IMAGE, path="/elsewhere/b.qcow2", allocation=1), None),
        (replace(IMAGE, backing="/moved/base.qcow2"), None),
        (replace(IMAGE, written="1767225600"), None),
        (replace(IMAGE, written="1767225601"), "last written"),
        (replace(IMAGE, written="1767225600.123456790"), "last written at 2026-01-01T00:00:00.123456789Z"),
        (replace(IMAGE, written=""), "an unknown time"),
        (replace(IMAGE, size=393217), "it had 393216 bytes and has 393217"),
        (replace(IMAGE, capacity=1 << 21), "its header was"),
        (replace(IMAGE, backing="/i/other.qcow2"), "'qcow2 1048576 other.qcow2'"),
        (replace(IMAGE, backing=None), "'qcow2 1048576'"),
        (replace(IMAGE, format="raw"), "'raw 1048576 base.qcow2'"),
    ],
)
def test_what_tells_that_an_image_was_written(now, expected):
    """Broken: a change would not be seen, or a copy that keeps the time, as by tar in whole seconds, be taken for one."""
    found = RECORDED.difference(Fingerprint.of(now))
    assert found is None if expected is None else expected in str(found)


def test_a_time_in_whole_seconds_is_not_taken_for_any_time_in_that_second():
    """Broken: on a filesystem that keeps whole seconds, a write in the next one would not be seen."""
    whole = replace(RECORDED, written="1767225600")
    assert whole.difference(replace(RECORDED, written="1767225600.5")) is not None
    assert whole.difference(whole) is None


def test_a_lowered_checkpoint_says_why_once():
    """Broken: a label would be lowered without a reason, or each look add one more."""
    reports = [
        WriterReport(id, "postgresql", "17", Level.BACK_END, grade)
        for id, grade in (("a", Grade.NIL_REDO), ("b", Grade.REFUSED))
    ]
    whole = node("a", writers=tuple(reports), warnings=("be careful",))
    assert lowered(whole, {}) is whole
    once = lowered(whole, {"/i/x": "x was changed"})
    assert (once.consistency, once.changed, once.warnings) == (Consistency.CRASH, ("/i/x",), ("be careful", "x was changed"))
    assert [writer.grade for writer in once.writers] == [Grade.CRASH, Grade.REFUSED]
    assert "/i/x" in str(once.writers[0].reason)
    assert lowered(once, {"/i/x": "x was changed again"}) == once
    assert lowered(once, {"/i/y": "y was changed"}).changed == ("/i/x", "/i/y")

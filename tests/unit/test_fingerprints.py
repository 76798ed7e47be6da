"""model/fingerprints.py: what tells that an image was written, what leaves it unknown, and what does neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.model.chains import Image
from quiesce.model.fingerprints import Fingerprint, lowered, lowered_for_good
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import WriterReport
from tests.samples import node

IMAGE = Image(
    "/i/a.qcow2",
    "qcow2",
    "/i/base.qcow2",
    1 << 20,
    200704,
    "1767225600.123456789",
    393216,
    changed="1767225601.5",
    access="0 0 0600",
    tables="t1",
)
RECORDED = Fingerprint.of(IMAGE)
LATER = replace(IMAGE, changed="1767225700.0")
TOUCHED = replace(LATER, written="1767225700.0")

SAME = {
    "nothing happened": IMAGE,
    "other name, other allocation": replace(IMAGE, path="/elsewhere/b.qcow2", allocation=1),
    "the chain was moved to another directory": replace(IMAGE, backing="/moved/base.qcow2"),
    "libvirt gave it to QEMU": replace(LATER, access="64055 64055 0600"),
}
UNKNOWN = {
    "chmod and back, chattr, a hard link, mv and back, or a write and the time put back": LATER,
    "touched, or written in place": TOUCHED,
    "copied back without its time, to another owner": replace(TOUCHED, access="64055 64055 0600"),
    "copied back by a program that keeps whole seconds": replace(LATER, written="1767225600"),
    "the storage tells no time any more": replace(IMAGE, written=""),
}
SPOILT = {
    "more data": replace(TOUCHED, size=393217),
    "more data and the time put back": replace(LATER, size=393217),
    "data in other places": replace(TOUCHED, tables="t2"),
    "data in other places and the time put back": replace(LATER, tables="t2"),
    "data in other places, then given to QEMU": replace(LATER, tables="t2", access="64055 64055 0600"),
    "another file with the name, of the same time": replace(IMAGE, capacity=1 << 21),
    "rebased": replace(TOUCHED, backing="/i/other.qcow2"),
    "without its backing file": replace(TOUCHED, backing=None),
    "another format": replace(TOUCHED, format="raw"),
}


@pytest.mark.parametrize("now", SAME.values(), ids=SAME.keys())
def test_what_leaves_an_image_the_same(now):
    """Broken: checkpoints would lose their labels although nobody wrote to their images."""
    assert RECORDED.difference(Fingerprint.of(now)) is None


@pytest.mark.parametrize("now", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_leaves_the_content_unknown(now):
    """Broken: a write with the time put back would not be seen; or a copy from a backup be called spoilt."""
    found = RECORDED.difference(Fingerprint.of(now))
    assert found is not None
    assert not found.spoilt
    assert RECORDED.doubted(now)
    assert found.of(now.path).startswith(f"nothing shows that the image {now.path} still has what was checkpointed: it")


@pytest.mark.parametrize("now", SPOILT.values(), ids=SPOILT.keys())
def test_what_shows_that_an_image_is_spoilt(now):
    """Broken: a checkpoint whose image another program changed would be restored as what it was."""
    found = RECORDED.difference(Fingerprint.of(now))
    assert found is not None
    assert found.spoilt
    assert now.capacity != IMAGE.capacity or RECORDED.doubted(now)
    assert found.of(now.path).startswith(f"another program changed the image {now.path} after a checkpoint was taken: it")


def test_tables_that_were_not_read_are_not_compared():
    """Broken: every look would have to read the tables of every image; or an image be spoilt because they could not be read."""
    assert not RECORDED.doubted(replace(IMAGE, tables=""))
    assert RECORDED.difference(Fingerprint.of(replace(IMAGE, tables=""))) is None
    unread = RECORDED.difference(Fingerprint.of(replace(TOUCHED, tables="")))
    assert unread is not None
    assert not unread.spoilt


def test_a_fingerprint_of_an_older_quiesce_is_still_compared():
    """Broken: after an upgrade, all checkpoints would be unknown, or a later write not be seen."""
    old = Fingerprint(IMAGE.size, IMAGE.written, RECORDED.header)
    assert not old.doubted(LATER)
    assert old.difference(Fingerprint.of(LATER)) is None
    assert old.difference(Fingerprint.of(TOUCHED)) is not None


def test_times_are_shown_as_times():
    """Broken: nobody could tell when it was."""
    text = str(RECORDED.difference(Fingerprint.of(TOUCHED)))
    assert "last written at 2026-01-01T00:00:00.123456789Z, and now at 2026-01-01T00:01:40.0Z" in text
    assert "an unknown time" in str(RECORDED.difference(Fingerprint.of(replace(IMAGE, written=""))))


def test_an_image_that_was_given_to_qemu_keeps_its_digest():
    """Broken: a digest that took minutes would be lost when a VM is started."""
    given = replace(LATER, access="64055 64055 0600", tables="")
    known = replace(RECORDED, content="c").known_as(Fingerprint.of(given))
    assert (known.content, known.tables, known.changed) == ("c", "t1", LATER.changed)
    assert known.difference(Fingerprint.of(replace(given, changed="1767225800.0"))) is not None


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


def test_a_spoilt_checkpoint_keeps_the_time_since_when_it_is():
    """Broken: each look would move the time, so that nobody knows which backups are from before."""
    once = lowered_for_good(node("a"), {"/i/x": "x was changed"}, "2026-01-01T00:00:00+00:00")
    assert once.spoilt == "2026-01-01T00:00:00+00:00"
    assert lowered_for_good(once, {"/i/y": "y was changed"}, "2026-02-01T00:00:00+00:00").spoilt == once.spoilt

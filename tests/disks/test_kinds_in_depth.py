"""Long chains, the identity of content, and copies that are booted aside, on images that are raw files and block devices."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.disks import shortening_plan
from quiesce.disks.survey import COPY, survey
from quiesce.model.errors import ProofError, RefusedError
from quiesce.model.names import TRIAL_PREFIX
from quiesce.operations.content import ContentState, verify_content
from quiesce.operations.delete import delete
from quiesce.operations.restore import restore
from quiesce.operations.settings import settings
from quiesce.operations.verify import verify
from tests.disks.kinds import KINDS
from tests.disks.making import Bench
from tests.disks.subject import Content, Subject

BASES = ("raw", "raw-elsewhere", "raw-with-header", "block", "block-with-header", "block-beside-a-file", "nbd-base", "on-raw")
QUICK = ("raw-with-header", "block", "nbd-base")
"""A long run tries all of BASES."""
LONG, SHORT = 6, 4
MEMORY = 64 << 20


def some(*names: str) -> list[object]:
    return [pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.long) for name in names]


@pytest.fixture
def subject(bench: Bench, base: str) -> Iterator[Subject]:
    subject = Subject(bench, next(kind for kind in KINDS if kind.name == base).make(bench))
    try:
        if subject.made.overlays:
            settings(subject.context, subject.name, overlays=subject.made.overlays)
        yield subject
    finally:
        subject.remove()


def chain(subject: Subject) -> tuple[str, ...]:
    with subject.context.vm(subject.name) as vm:
        found = survey(subject.context, vm)
        return found.chains.chain(found.head[subject.target])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("power", ["running", "off"])
@pytest.mark.parametrize("base", some(*BASES))
def test_chains_stay_short(subject: Subject, power: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a VM on a raw image or a block device would lose data, or not start, once it has many checkpoints."""
    monkeypatch.setattr(shortening_plan, "LONG", LONG)
    monkeypatch.setattr(shortening_plan, "SHORT", SHORT)
    if power == "running":
        subject.start()
    taken: dict[str, Content] = {}
    for number in range(8):
        subject.write(1 + number % 5, 10 + number)
        taken[f"c{number}"] = subject.checkpoint(f"c{number}")
        assert len(chain(subject)) < LONG
        subject.holds(subject.content)
    copies = [path for path in subject.files() if COPY in Path(path).name]
    assert copies
    place = Path(chain(subject)[0]).parent
    for path in copies:
        assert Path(path).parent == place
        below = Path(path).with_name(Path(chain(subject)[0]).name).stat()
        assert Path(path).stat().st_mode == below.st_mode
    subject.healthy()
    for name in ("c0", "c3", "c7"):
        restore(subject.context, subject.reference(name), discard_current=True)
        subject.starts_with(taken[name])
    delete(subject.context, [subject.reference("c[0-6]")])
    subject.starts_with(taken["c7"])
    subject.healthy()


@pytest.mark.parametrize("base", some("raw", "raw-with-header", "raw-elsewhere"))
def test_a_raw_image_is_what_was_checkpointed_or_not(subject: Subject) -> None:
    """Broken: nobody would see that somebody wrote into a raw image below a checkpoint, or `verify --content` refuse it."""
    subject.write(3, 33)
    subject.checkpoint("one")
    for expected in (ContentState.RECORDED, ContentState.SAME):
        found = verify_content(subject.context, subject.reference("one"))
        assert {image.outcome for image in found.images} == {expected}
    path = Path(subject.made.path)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(RefusedError, match="nothing shows"):
        restore(subject.context, subject.reference("one"))
    verify_content(subject.context, subject.reference("one")).require()
    restore(subject.context, subject.reference("one"), discard_current=True)
    subject.holds(subject.content)
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:  # what the header of a qcow2 image would not name
        file.seek(6 * 2**20)
        file.write(b"x" * 4096)
    os.utime(path, ns=(before, before))
    with pytest.raises(RefusedError, match="another program changed the image"):
        restore(subject.context, subject.reference("one"))


@pytest.mark.parametrize("base", some("block", "block-with-header", "block-beside-a-file"))
def test_of_a_device_nothing_is_claimed(subject: Subject) -> None:
    """Broken: a checkpoint on a block device could not be restored, or its content be called compared."""
    subject.write(3, 33)
    subject.checkpoint("one")
    found = verify_content(subject.context, subject.reference("one"))
    outcomes = {image.path: image.outcome for image in found.images}
    assert outcomes[subject.made.path] is ContentState.UNKNOWN
    with pytest.raises(RefusedError, match="it is no file, so nothing tells"):
        found.require()
    restore(subject.context, subject.reference("one"), discard_current=True)
    subject.holds(subject.content)
    subject.healthy()


@pytest.mark.parametrize("base", some(*BASES))
def test_a_copy_boots_and_leaves_the_image_alone(subject: Subject) -> None:
    """Broken: a checkpoint of such a disk could not be proved, or its proof write into the disk."""
    subject.write(3, 33)
    subject.checkpoint("one")
    before = _digest(subject.made.path)
    with pytest.raises(ProofError, match="did not come up in time"):
        verify(subject.context, subject.reference("one"), timeout_s=1, memory=MEMORY)
    assert _digest(subject.made.path) == before
    assert [path for path in subject.files() if TRIAL_PREFIX in path] == []
    subject.holds(subject.content)
    subject.healthy()


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

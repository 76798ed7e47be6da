"""Every verb on every kind of disk (kinds.py), of a VM that runs or is off: the content is compared and the VM starts after
each verb; or the checkpoint is refused, and nothing is changed.

A short run has each kind with one of the two powers, and starts a VM that is off only after all verbs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from quiesce.hypervisor import domain_xml
from quiesce.model.errors import RefusedError
from quiesce.operations.delete import delete
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.restore import restore
from quiesce.operations.settings import settings
from quiesce.operations.tree import tree
from tests.disks.kinds import KINDS, Kind
from tests.disks.making import Bench, disk
from tests.disks.subject import Content, Subject, file_holds

POWERS = ("running", "off")
NO_FILE = ("network", "volume-inactive", "vhost-user", "nvme")
"""Kinds without a path: libvirt makes up no name for a snapshot of theirs, and refuses one that does not list them."""


def cases(*kinds: Kind) -> list[object]:
    """Each kind with both powers; a short run has each kind once, and each power with half of them."""
    return [
        pytest.param(kind, power, id=f"{kind.name}-{power}", marks=() if not kind.rare and turn in turns else pytest.mark.long)
        for number, kind in enumerate(sorted(kinds, key=lambda kind: kind.rare))
        for turns in [(number % 2,) if kind.starts else (0, 1)]
        for turn, power in enumerate(POWERS)
        if power == "off" or kind.starts
    ]


@pytest.fixture
def subject(bench: Bench, kind: Kind, power: str, request: pytest.FixtureRequest) -> Iterator[Subject]:
    if reason := kind.lacking():
        pytest.skip(reason)
    subject = Subject(bench, kind.make(bench), thorough=request.config.getoption("--long"))
    try:
        if subject.made.overlays:
            settings(subject.context, subject.name, overlays=subject.made.overlays)
        if power == "running":
            subject.start()
        yield subject
    finally:
        subject.remove()


@pytest.mark.parametrize(("kind", "power"), cases(*(kind for kind in KINDS if kind.refused is None)))
def test_every_verb(kind: Kind, power: str, subject: Subject) -> None:
    """Broken: an administrator with such a disk loses data, or has a VM that does not start, after one of the verbs."""
    subject.holds(subject.content)
    before = subject.image()
    subject.write(1, 11)
    first = subject.checkpoint("first")
    subject.holds(first)
    subject.write(1, 12)
    subject.write(2, 22)
    second = subject.checkpoint("second")
    subject.holds(second)
    assert subject.size() == subject.made.size
    subject.write(3, 33)
    last = dict(subject.content)

    exported = subject.bench.directory / "export"
    export(subject.context, subject.reference("first"), str(exported))
    file_holds(exported / f"{subject.target}.qcow2", first)
    _import_holds(subject, exported, first)

    done = restore(subject.context, subject.reference("first"), start=power == "running")
    assert done.safety
    if power == "running":
        subject.bare.connection.lookupByName(subject.name).suspend()
    subject.holds(first)
    subject.healthy()
    subject.content = dict(first)
    subject.write(4, 44)
    restore(subject.context, subject.reference(done.safety.name), discard_current=True, start=power == "running")
    if power == "running":
        subject.bare.connection.lookupByName(subject.name).suspend()
    subject.holds(last)

    delete(subject.context, [subject.reference("first")])
    subject.holds(last)
    delete(subject.context, [subject.reference("*")])
    assert subject.names() == set()
    subject.starts_with(last)
    subject.healthy()
    if kind.shortened:
        assert Path(subject.made.path).is_file()
    else:
        _is_as_it_was(subject, before)


def _import_holds(subject: Subject, exported: Path, content: Content) -> None:
    copy = import_vm(subject.context, str(exported), to=str(subject.bench.directory / "copy"), name=f"{subject.name}-copy")
    domain = subject.bare.connection.lookupByName(copy.vm)
    try:
        found = domain_xml.disks(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))[0]
        assert (found.format, found.source_type) == ("qcow2", "file")
        file_holds(Path(str(found.path)), content)
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        domain.destroy()
    finally:
        domain.undefine()


def _is_as_it_was(subject: Subject, before: domain_xml.Disk) -> None:
    """The VM writes its own image again, which nobody removed or made shorter, and nothing of ours is left."""
    made, now = subject.made, subject.image()
    assert (now.path, now.format) == (made.path, made.format)
    assert now.source_type == (before.source_type if before.source_type != "volume" else "file")
    assert 'discard="unmap"' in subject.definition().replace("'", '"') or before.source_type == "volume"
    assert Path(made.path).is_file() == (before.source_type != "block")
    if made.format == "raw" and before.source_type != "block":
        assert Path(made.path).stat().st_size == made.size
    left = {Path(path).relative_to(subject.bench.directory) for path in subject.files()}
    ours = re.compile(rf"{re.escape(subject.name)}\.|quiesce-")
    assert [path for path in left if ours.match(path.name) and path.parts[0] not in ("copy", "export")] == []


@pytest.mark.parametrize(("kind", "power"), cases(*(kind for kind in KINDS if kind.refused is not None)))
def test_a_refusal(kind: Kind, power: str, subject: Subject) -> None:
    """Broken: what cannot work is begun, or the refusal does not say what to do."""
    before = subject.files(), subject.definition()
    with pytest.raises(RefusedError) as refused:
        subject.checkpoint("first")
    assert refused.value.exit_code == 4
    text = f"{refused.value.message}; {refused.value.hint}"
    assert re.search(str(kind.refused), text), text
    assert (subject.files(), subject.definition(), subject.names()) == (*before, set())


@pytest.mark.parametrize(
    ("kind", "power"), cases(*(replace(kind, rare=kind.name not in NO_FILE) for kind in KINDS if kind.refused))
)
def test_what_is_refused_can_be_left_out(kind: Kind, power: str, bench: Bench) -> None:
    """Broken: the way out that the refusal names does not work: --exclude."""
    made = kind.make(bench)
    other = bench.image("other.qcow2")
    subject = Subject(bench, made, disk(other).replace("'vda'", "'vdz'"))
    try:
        if power == "running":
            subject.start()
        subject.checkpoint("first", exclude=(subject.target,))
        (node,) = tree(subject.context, subject.name).checkpoints
        assert [image.target for image in node.disks] == ["vdz"]
        delete(subject.context, [subject.reference("first")])
        assert domain_xml.disks(subject.definition())[-1].path == other
    finally:
        subject.remove()

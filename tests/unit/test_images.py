"""disks/images.py: what stands between an image and its removal. The catalog is real; the VM and its directories are
stand-ins that answer as libvirt does."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from quiesce.catalog.journal import Journal
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.hypervisor import volumes
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.storage_xml import Volume
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.events import Event, Warned
from quiesce.model.tree import DiskImage
from tests.samples import node

OLD = "/i/old.qcow2"


@dataclass
class Disks:
    """The images on the host: of each, the one below it."""

    below: dict[str, str | None]
    failing: HypervisorError | None = None

    @contextmanager
    def directory(self, _host: Host, path: str, **_: bool) -> Iterator[Directory]:
        yield Directory(self, path)


@dataclass
class Directory:
    disks: Disks
    path: str

    def delete(self, name: str) -> None:
        if self.disks.failing:
            raise self.disks.failing
        self.disks.below.pop(posixpath.join(self.path, name), None)

    def volumes(self) -> list[Volume]:
        here = [path for path in self.disks.below if posixpath.dirname(path) == self.path]
        return [Volume(path, "qcow2", self.disks.below[path], 1024, 1024, "1.0") for path in here]


class StandInHost:
    name = "host1"

    def __init__(self, others: set[str]) -> None:
        self.others = others

    def files_of_others(self, _uuid: str) -> set[str]:
        return self.others


@dataclass(eq=False)
class Machine:
    """A VM whose present XML names these images, and writes the first of them."""

    named: list[str]
    others: set[str] = field(default_factory=set)
    name: str = "web1"
    uuid: str = "uuid-1"

    @property
    def host(self) -> Any:
        return StandInHost(self.others)

    def chain(self) -> set[str]:
        return set(self.named)

    def file_disks(self) -> dict[str, str]:
        return {"vda": self.named[0]}


NOW = "/i/now.qcow2"


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    """`now` on `base`, with `old`, on `base` too, left over."""
    made = Disks({NOW: "/i/base.qcow2", OLD: "/i/base.qcow2", "/i/base.qcow2": None})
    monkeypatch.setattr(volumes, "directory", made.directory)
    return made


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def context(tmp_path, heard: list[Event]) -> Iterator[Context]:
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    catalog.note_image("host1", "uuid-1", OLD)
    yield Context("test:///", catalog, heard.append)
    catalog.close()


VM: Any = Machine([NOW])


def test_an_image_of_ours_that_nothing_stands_on_is_removed_and_forgotten(context, disks):
    """Broken: disks would fill up with images of deleted checkpoints."""
    images.discard(context, VM, OLD)
    assert set(disks.below) == {NOW, "/i/base.qcow2"}
    assert not context.catalog.made_image("host1", OLD)


def test_an_image_that_somebody_else_made_is_left_alone(context, disks):
    """Broken: an administrator's image would be removed."""
    disks.below["/i/theirs.qcow2"] = None
    with pytest.raises(RefusedError, match="not made by quiesce"):
        images.discard(context, VM, "/i/theirs.qcow2")
    assert "/i/theirs.qcow2" in disks.below


@pytest.mark.parametrize("vm_uuid", ["uuid-1", "uuid-2"])
def test_an_image_of_a_checkpoint_is_left_alone_whatever_its_vm(vm_uuid, context, disks):
    """Broken: a checkpoint would lose what it consists of."""
    held = node("before", vm_uuid=vm_uuid, disks=(DiskImage("vda", OLD, "qcow2"),))
    context.catalog.add(held, "<domain/>", head_parent=None)
    with pytest.raises(RefusedError, match="belongs to checkpoint 'before'"):
        images.discard(context, VM, OLD)
    assert OLD in disks.below
    assert context.catalog.made_image("host1", OLD)


@pytest.mark.parametrize(
    ("named", "below"),
    [
        ([OLD], {}),
        ([NOW, OLD], {}),
        ([NOW], {NOW: OLD}),
        ([NOW], {NOW: "/j/middle.qcow2", "/j/middle.qcow2": OLD}),
        ([NOW, "/i/b.qcow2"], {"/i/b.qcow2": "/i/c.qcow2", "/i/c.qcow2": OLD}),
    ],
    ids=["its source", "in its XML", "below its source", "two below, in another directory", "below its other disk"],
)
def test_an_image_in_the_vms_chain_is_left_alone(named, below, context, disks):
    """Broken: the VM would lose its disk. A stopped VM's XML names its sources only; the rest is in the images' headers."""
    disks.below.update(below)
    with pytest.raises(RefusedError, match="in the chain of web1"):
        images.discard(context, Machine(named), OLD)
    assert OLD in disks.below
    assert context.catalog.made_image("host1", OLD)


def test_an_image_that_somebodys_clone_lies_on_is_left_alone(context, disks):
    """Broken: a clone made by hand of a checkpoint would lose what it lies on."""
    disks.below["/i/clone.qcow2"] = OLD
    with pytest.raises(RefusedError, match=r"clone\.qcow2 is based on"):
        images.discard(context, VM, OLD)
    assert survey(context, VM).orphans() == []


def test_nothing_is_removed_where_an_image_is_missing(context, disks):
    """Broken: a listing that is not whole would make what is below the missing image look unneeded."""
    del disks.below["/i/base.qcow2"]
    with pytest.raises(NotFoundError, match=r"base\.qcow2 is gone"):
        images.discard(context, VM, OLD)
    assert OLD in disks.below


@pytest.mark.parametrize("others", [{OLD}, {"/elsewhere/clone.qcow2"}], ids=["its disk", "below its disk"])
def test_what_another_vm_reads_is_no_orphan(others, context, disks):
    """Broken: another VM would lose its disk, running or not."""
    disks.below["/elsewhere/clone.qcow2"] = OLD
    assert survey(context, Machine([NOW], others)).orphans() == []


def test_a_disk_that_was_taken_from_the_vm_is_no_orphan(context, disks):
    """Broken: what was written to it since the last checkpoint would be thrown away."""
    assert survey(context, VM).orphans() == [OLD]
    context.catalog.set_live("host1", [OLD], True)
    assert survey(context, VM).orphans() == []


def test_an_empty_directory_is_one_that_is_not_mounted(context, disks):
    """Broken: checkpoints would be given up because a network filesystem was away."""
    context.catalog.add(node("a", disks=(DiskImage("vda", "/nfs/a.qcow2", "qcow2"),)), "<domain/>", head_parent="a")
    with pytest.raises(HypervisorError, match="is it mounted"):
        survey(context, VM)
    assert survey(context, VM, patient=True).missing(context.catalog.tree("host1", "uuid-1").nodes[0]) == []


def test_images_that_lie_on_each_other_do_not_hang_it(context, disks):
    """Broken: a damaged header would hang a deletion, with its lock held."""
    disks.below.update({NOW: OLD, OLD: NOW})
    assert survey(context, VM).needed() == {NOW, OLD}


def test_an_image_that_could_not_be_removed_stays_ours(context, disks):
    """Broken: nobody would ever remove it."""
    disks.failing = HypervisorError("removing /i/old.qcow2: no")
    with pytest.raises(HypervisorError):
        images.discard(context, VM, OLD)
    assert context.catalog.made_image("host1", OLD)


def test_an_image_left_over_is_a_warning_and_its_step_stays_open(context, disks, heard):
    """Broken: a finished operation would fail for an image that does no harm, or nobody would know of it."""
    journal = Journal(context.catalog, "host1", "uuid-1", "delete")
    disks.failing = HypervisorError("no")
    images.discard_or_warn(context, VM, journal, OLD)
    (warning,) = heard
    assert isinstance(warning, Warned)
    assert OLD in warning.message
    disks.failing = None
    images.discard_or_warn(context, VM, journal, OLD)
    assert heard == [warning]
    with context.catalog.transaction() as connection:
        done = connection.exec_driver_sql("SELECT done FROM steps ORDER BY number").scalars().all()
    assert [bool(value) for value in done] == [False, True]

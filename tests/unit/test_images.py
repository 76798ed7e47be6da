"""disks/images.py: what stands between an image and its removal."""

from __future__ import annotations

import pytest

from quiesce.catalog.journal import Journal
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.tree import DiskImage
from tests.samples import KEY, node
from tests.unit.conftest import Fake
from tests.unit.fake_host import FakeVm, definition

BASE, OLD, NOW = "/i/base.qcow2", "/i/old.qcow2", "/i/now.qcow2"


@pytest.fixture
def fake(fake: Fake) -> Fake:
    """`now`, which the VM writes, on `base`, with `old`, which is ours, on `base` too, left over."""
    storage = fake.host.storage
    storage.files.clear()
    storage.make(BASE)
    storage.make(NOW, BASE)
    fake.own(OLD, BASE)
    fake.vm.xml = definition({"vda": NOW})
    return fake


def lay(fake: Fake, below: dict[str, str]) -> None:
    for path, lower in below.items():
        fake.host.storage.make(path, lower)


def refuse(fake: Fake, message: str) -> None:
    """Has libvirt refuse whatever is asked of it."""

    def fail() -> None:
        raise HypervisorError(message)

    fake.host.on_step = fail


def test_an_image_of_ours_that_nothing_stands_on_is_removed_and_forgotten(fake):
    """Broken: disks would fill up with images of deleted checkpoints."""
    images.discard(fake.context, fake.vm, OLD)
    assert fake.host.storage.files.keys() == {NOW, BASE}
    assert not fake.catalog.images.has("host1", OLD)


def test_an_image_that_somebody_else_made_is_left_alone(fake):
    """Broken: an administrator's image would be removed."""
    fake.host.storage.make("/i/theirs.qcow2")
    with pytest.raises(RefusedError, match="quiesce did not make"):
        images.discard(fake.context, fake.vm, "/i/theirs.qcow2")
    assert "/i/theirs.qcow2" in fake.host.storage.files


@pytest.mark.parametrize("vm_uuid", ["uuid-1", "uuid-2"])
def test_an_image_of_a_checkpoint_is_left_alone_whatever_its_vm(vm_uuid, fake):
    """Broken: a checkpoint would lose what it consists of."""
    held = node("before", vm_uuid=vm_uuid, disks=(DiskImage("vda", OLD, "qcow2"),))
    fake.catalog.checkpoints.add(held, "<domain/>", head_parent=None)
    with pytest.raises(RefusedError, match="belongs to checkpoint 'before'"):
        images.discard(fake.context, fake.vm, OLD)
    assert OLD in fake.host.storage.files
    assert fake.catalog.images.has("host1", OLD)


@pytest.mark.parametrize(
    ("disks", "more", "below"),
    [
        ({"vda": OLD}, "", {}),
        ({"vda": NOW}, f"<os><nvram>{OLD}</nvram></os>", {}),
        ({"vda": NOW}, "", {NOW: OLD}),
        ({"vda": NOW}, "", {NOW: "/j/middle.qcow2", "/j/middle.qcow2": OLD}),
        ({"vda": NOW, "vdb": "/i/b.qcow2"}, "", {"/i/b.qcow2": "/i/c.qcow2", "/i/c.qcow2": OLD}),
    ],
    ids=["its source", "in its XML", "below its source", "two below, in another directory", "below its other disk"],
)
def test_an_image_in_the_vms_chain_is_left_alone(disks, more, below, fake):
    """Broken: the VM would lose its disk. A stopped VM's XML names its sources only; the rest is in the images' headers."""
    lay(fake, below)
    fake.vm.xml = definition(disks, more)
    with pytest.raises(RefusedError, match="in the backing chain of web1"):
        images.discard(fake.context, fake.vm, OLD)
    assert OLD in fake.host.storage.files
    assert fake.catalog.images.has("host1", OLD)


def test_an_image_that_somebodys_clone_lies_on_is_left_alone(fake):
    """Broken: a clone made by hand of a checkpoint would lose what it lies on."""
    fake.host.storage.make("/i/clone.qcow2", OLD)
    with pytest.raises(RefusedError, match=r"is a backing file of .*clone\.qcow2"):
        images.discard(fake.context, fake.vm, OLD)
    assert fake.survey().orphans() == []


def test_nothing_is_removed_where_an_image_is_missing(fake):
    """Broken: a listing that is not whole would make what is below the missing image look unneeded."""
    del fake.host.storage.files[BASE]
    with pytest.raises(NotFoundError, match=r"base\.qcow2 does not exist"):
        images.discard(fake.context, fake.vm, OLD)
    assert OLD in fake.host.storage.files


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("disk", [OLD, "/elsewhere/clone.qcow2"], ids=["its disk", "below its disk"])
def test_what_another_vm_reads_is_no_orphan(disk, running, fake):
    """Broken: another VM would lose its disk, running or not."""
    lay(fake, {"/elsewhere/clone.qcow2": OLD})
    other = FakeVm(fake.host, {"vda": disk}, name="web2", uuid="uuid-2")
    if running:
        other.start()
    assert fake.survey().orphans() == []


def test_a_disk_that_was_taken_from_the_vm_is_no_orphan(fake):
    """Broken: what was written to it since the last checkpoint would be thrown away."""
    assert fake.survey().orphans() == [OLD]
    fake.catalog.images.set_live("host1", [OLD], True)
    assert fake.survey().orphans() == []


def test_an_empty_directory_is_one_that_is_not_mounted(fake):
    """Broken: checkpoints would be given up because a network filesystem was away."""
    fake.catalog.checkpoints.add(node("a", disks=(DiskImage("vda", "/nfs/a.qcow2", "qcow2"),)), "<domain/>", head_parent="a")
    with pytest.raises(HypervisorError, match="is it mounted"):
        fake.survey()
    assert survey(fake.context, fake.vm, patient=True).missing(fake.catalog.checkpoints.tree(KEY).nodes[0]) == []


def test_images_that_lie_on_each_other_do_not_hang_it(fake):
    """Broken: a damaged header would hang a deletion, with its lock held."""
    lay(fake, {NOW: OLD, OLD: NOW})
    with pytest.raises(HypervisorError, match=f"the backing files of {NOW} lead back to it: {NOW}, {OLD}"):
        fake.survey()
    assert survey(fake.context, fake.vm, patient=True).needed() == {NOW, OLD}


def test_an_image_that_could_not_be_removed_stays_ours(fake):
    """Broken: nobody would ever remove it."""
    refuse(fake, "removing /i/old.qcow2: no")
    with pytest.raises(HypervisorError):
        images.discard(fake.context, fake.vm, OLD)
    assert fake.catalog.images.has("host1", OLD)


def test_an_image_left_over_is_a_warning_and_its_step_stays_open(fake):
    """Broken: a finished operation would fail for an image that does no harm, or nobody would know of it."""
    journal = Journal(fake.catalog, KEY, "delete")
    refuse(fake, "no")
    images.discard_or_warn(fake.context, fake.vm, journal, OLD)
    (warning,) = fake.heard
    assert isinstance(warning, Warned)
    assert OLD in warning.message
    fake.host.on_step = lambda: None
    images.discard_or_warn(fake.context, fake.vm, journal, OLD)
    assert fake.heard == [warning]
    with fake.catalog.database.transaction() as connection:
        done = connection.exec_driver_sql("SELECT done FROM steps ORDER BY number").scalars().all()
    assert [bool(value) for value in done] == [False, True]

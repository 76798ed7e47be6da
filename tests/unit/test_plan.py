"""operations/plan.py"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import BusyError, RefusedError
from quiesce.model.events import Event, Warned
from quiesce.model.tree import Tree
from quiesce.operations import plan
from tests.samples import node

GOOD = Disk("vda", "disk", "file", "/i/a.qcow2", "qcow2", read_only=False, shareable=False, mirrored=False, chain=())
CDROM = Disk("sda", "cdrom", "file", None, "raw", read_only=True, shareable=False, mirrored=False, chain=())


def but(**changes: Any) -> Disk:
    return dataclasses.replace(GOOD, **changes)


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "name": "web1",
        "uuid": "uuid-1",
        "power": PowerState.RUNNING,
        "persistent": True,
        "disks": (GOOD, CDROM),
        "channels": {},
        "passthrough": (),
        "snapshots": 0,
        "job": None,
        "managed_save": False,
    }
    values |= changes
    values.setdefault("next_sources", {disk.target: disk.path for disk in values["disks"]})
    return Facts(**values)


@pytest.mark.parametrize(
    ("power", "says"), [(PowerState.OFF, "is off"), (PowerState.PAUSED, "is paused"), (PowerState.OTHER, "neither running")]
)
def test_a_vm_that_does_not_run_is_refused_with_what_to_do(power, says):
    """Broken: a guest that cannot answer would be waited for until the time-out."""
    with pytest.raises(RefusedError, match=says) as refusal:
        plan.require_running(facts(power=power))
    assert refusal.value.exit_code == 4
    assert "web1" in refusal.value.message
    assert "virsh" in refusal.value.hint
    plan.require_running(facts())


def test_a_job_of_libvirts_is_waited_for():
    """Broken: a switch under a running block job ends with a chain nobody knows."""
    with pytest.raises(BusyError, match="a block job on disk vda") as refusal:
        plan.require_nothing_in_the_way(facts(job="a block job on disk vda"))
    assert refusal.value.exit_code == 9


def test_libvirts_own_snapshots_are_in_the_way():
    """Broken: libvirt's snapshots would silently stop working."""
    with pytest.raises(RefusedError, match=r"2 snapshot\(s\)") as refusal:
        plan.require_nothing_in_the_way(facts(snapshots=2))
    assert "snapshot-list web1" in refusal.value.hint
    plan.require_nothing_in_the_way(facts())


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (but(device="lun", source_type="block"), "LUN"),
        (but(source_type="block"), "type block"),
        (but(source_type="network", path=None), "type network"),
        (but(source_type="volume", path=None), "type volume"),
        (but(path=None), "image files"),
        (but(read_only=True), "read-only"),
        (but(shareable=True), "shared"),
        (but(format="raw"), "format is raw"),
        (but(format="vmdk"), "format is vmdk"),
        (but(mirrored=True), "block job"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_disk_that_cannot_take_part_is_refused_by_name(disk, says):
    """Broken: the checkpoint would be without this disk, or fail in the window."""
    disk = dataclasses.replace(disk, target="vdx")
    with pytest.raises(RefusedError, match=says) as refusal:
        plan.disks_to_switch(facts(disks=(GOOD, disk)))
    assert "disk vdx: " in refusal.value.message
    assert "vda" not in refusal.value.message
    assert refusal.value.exit_code == 4


def test_all_reasons_are_told_at_once():
    """Broken: the user would mend one disk, and learn of the next one."""
    bad = (but(target="vdb", format="raw"), but(target="vdc", shareable=True))
    with pytest.raises(RefusedError) as refusal:
        plan.disks_to_switch(facts(disks=bad, passthrough=("scsi host device",)))
    assert [text in refusal.value.message for text in ("disk vdb", "disk vdc", "scsi host device")] == [True] * 3
    assert len(refusal.value.details["disks"]) == 3


def test_passed_through_storage_is_refused():
    """Broken: what lies on it would go on while the rest goes back in time."""
    with pytest.raises(RefusedError, match="outside any image"):
        plan.disks_to_switch(facts(passthrough=("scsi host device",)))


@pytest.mark.parametrize("disks", [(), (CDROM,), (dataclasses.replace(CDROM, device="floppy"),)])
def test_a_vm_without_disks_is_refused(disks):
    """Broken: a checkpoint of nothing would be called one."""
    with pytest.raises(RefusedError, match="no disk"):
        plan.disks_to_switch(facts(disks=disks))


def test_disks_are_taken_and_removable_media_left():
    """Broken: a CD in the drive would keep the VM from every checkpoint."""
    second = but(target="vdb", path="/i/b.qcow2")
    assert plan.disks_to_switch(facts(disks=(GOOD, CDROM, second))) == (GOOD, second)


# -- the chain

BASE = node("base", name="before")
TREE = Tree.of([BASE], "base")


def chain(*paths: str) -> tuple[Disk, ...]:
    return (but(chain=paths),)


def check(disks: tuple[Disk, ...], tree: Tree) -> list[Event]:
    events: list[Event] = []
    plan.require_known_chain(disks, tree, events.append)
    return events


def test_a_chain_as_the_tree_says_passes():
    """Broken: every second checkpoint would be refused."""
    assert check(chain(BASE.disks[0].path, "/older.qcow2"), TREE) == []
    assert check(chain("/anything.qcow2"), Tree.of([BASE], None)) == []
    assert check(chain(), Tree.of([], None)) == []


@pytest.mark.parametrize("paths", [(), ("/other.qcow2",), ("/other.qcow2", BASE.disks[0].path)])
def test_a_chain_that_somebody_changed_is_refused(paths):
    """Broken: a checkpoint would be recorded below one it is not based on, and restored as something else."""
    with pytest.raises(RefusedError, match="chain of disk vda") as refusal:
        check(chain(*paths), TREE)
    assert "'before'" in refusal.value.message


def test_a_disk_added_since_the_last_checkpoint_is_no_obstacle():
    """Broken: after adding a disk a VM could never be checkpointed again."""
    assert check((*chain(BASE.disks[0].path), but(target="vdb", path="/i/b.qcow2")), TREE) == []


def test_a_checkpoint_whose_deletion_was_interrupted_is_not_built_upon():
    """Broken: a checkpoint would be based on images that may hold what came later."""
    with pytest.raises(RefusedError, match=r"'before'.* was interrupted") as refusal:
        check(chain(BASE.disks[0].path), Tree.of([BASE], "base", ["base"]))
    assert "quiesce delete web1@before" in refusal.value.hint


def test_long_chains_are_warned_of_and_overlong_ones_refused():
    """Broken: the VM would become slow without a word, or meet libvirt's own limit in the window."""
    rest = [BASE.disks[0].path, *(f"/{number}" for number in range(plan.MAX_CHAIN))]
    assert check(chain(*rest[: plan.LONG_CHAIN - 1]), TREE) == []
    (warning,) = check(chain(*rest[: plan.LONG_CHAIN]), TREE)
    assert isinstance(warning, Warned)
    assert "vda" in warning.message
    assert len(check(chain(*rest[: plan.MAX_CHAIN - 1]), TREE)) == 1
    with pytest.raises(RefusedError, match="disk vda has a chain of 190"):
        check(chain(*rest[: plan.MAX_CHAIN]), TREE)


def test_a_disk_plugged_in_only_for_this_run_is_refused():
    """Broken: a restore would silently lose it, and a recovery what was written to it."""
    (disk,) = facts().disks[:1]
    with pytest.raises(RefusedError, match=f"disk {disk.target}: it is not the disk the VM will have"):
        plan.disks_to_switch(facts(next_sources={}))
    assert plan.disks_to_switch(facts(next_sources={}, persistent=False))

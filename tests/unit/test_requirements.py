"""taking/requirements.py"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.disks.shortening_plan import STARTABLE
from quiesce.disks.survey import Survey
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import BusyError, RefusedError, UsageError
from quiesce.model.grades import Consistency
from quiesce.taking import requirements
from tests.unit.test_survey import at, surveyed

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
    ("power", "says"),
    [(PowerState.PAUSED, "is paused"), (PowerState.PANICKED, "panicked"), (PowerState.OTHER, "neither running")],
)
@pytest.mark.parametrize(
    "check",
    [requirements.require_running, lambda found: requirements.require_answering(found, Consistency.FILESYSTEM)],
    ids=["running", "answering"],
)
def test_a_vm_that_does_not_run_is_refused_with_what_to_do(check, power, says):
    """Broken: a guest that cannot answer would be waited for until the time-out."""
    with pytest.raises(RefusedError, match=says) as refusal:
        check(facts(power=power))
    assert refusal.value.exit_code == 4
    assert "web1" in refusal.value.message
    assert "virsh" in refusal.value.hint
    check(facts())


def test_a_paused_vm_will_do_where_its_guest_is_not_asked():
    """Broken: a VM that its administrator has paused could not be kept as it is."""
    requirements.require_answering(facts(power=PowerState.PAUSED), Consistency.CRASH)
    with pytest.raises(RefusedError, match="neither running"):
        requirements.require_answering(facts(power=PowerState.OTHER), Consistency.CRASH)


def test_a_vm_with_saved_memory_is_refused():
    """Broken: libvirt would resume the guest on other disks than its memory knows, and the guest ruin them."""
    with pytest.raises(RefusedError, match="saved memory") as refusal:
        requirements.require_no_saved_memory(facts(managed_save=True))
    assert "managedsave-remove web1" in refusal.value.hint
    requirements.require_no_saved_memory(facts())


def test_a_transient_vm_is_refused_where_it_would_be_gone():
    """Broken: the VM would be stopped for a restore, and no longer exist."""
    with pytest.raises(RefusedError, match="transient"):
        requirements.require_persistent(facts(persistent=False))
    requirements.require_persistent(facts())


def test_a_job_of_libvirts_is_waited_for():
    """Broken: a switch under a running block job ends with a chain nobody knows."""
    with pytest.raises(BusyError, match="a block job on disk vda") as refusal:
        requirements.require_nothing_in_the_way(facts(job="a block job on disk vda"))
    assert refusal.value.exit_code == 9


def test_libvirts_own_snapshots_are_in_the_way():
    """Broken: libvirt's snapshots would silently stop working."""
    with pytest.raises(RefusedError, match=r"2 snapshot\(s\)") as refusal:
        requirements.require_nothing_in_the_way(facts(snapshots=2))
    assert "snapshot-list web1" in refusal.value.hint
    requirements.require_nothing_in_the_way(facts())


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (but(device="lun", source_type="block"), "LUN"),
        (but(source_type="block"), "qcow2 on a block device"),
        (but(source_type="vhostuser", path=None), "type vhostuser"),
        (but(source_type="nvme", path=None), "type nvme"),
        (but(source_type="network", path=None), "type network"),
        (but(source_type="volume", path=None, volume=("images", "a")), "virsh pool-start images"),
        (but(path=None), "only files and block devices"),
        (but(transient=True), "transient"),
        (but(format="raw", encrypted=True), "encrypted"),
        (but(read_only=True), "read-only"),
        (but(shareable=True), "shared"),
        (but(format="vmdk"), "format is vmdk"),
        (but(encrypted=True), "encrypted"),
        (but(encrypted=True, format="raw"), "encrypted"),
        (but(sliced=True), "part of a file"),
        (but(mirrored=True), "block job"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_disk_that_cannot_take_part_is_refused_by_name(disk, says):
    """Broken: the checkpoint would be without this disk, or fail in the window."""
    disk = dataclasses.replace(disk, target="vdx")
    with pytest.raises(RefusedError, match=says) as refusal:
        requirements.disks_to_switch(facts(disks=(GOOD, disk)))
    assert "disk vdx: " in refusal.value.message
    assert "vda" not in refusal.value.message
    assert refusal.value.exit_code == 4


def test_all_reasons_are_told_at_once():
    """Broken: the user would mend one disk, and learn of the next one."""
    bad = (but(target="vdb", format="qed"), but(target="vdc", shareable=True))
    with pytest.raises(RefusedError) as refusal:
        requirements.disks_to_switch(facts(disks=bad, passthrough=("scsi host device",)))
    assert [text in refusal.value.message for text in ("disk vdb", "disk vdc", "scsi host device")] == [True] * 3
    assert len(refusal.value.details["disks"]) == 3


@pytest.mark.parametrize(
    ("path", "warns"),
    [
        ("/dev/sdb", True),
        ("/dev/dm-3", True),
        ("/dev/nvme0n1", True),
        ("/dev/loop7", True),
        ("/dev/vg/data", False),
        ("/dev/disk/by-id/wwn-1", False),
        ("/dev/mapper/mpatha", False),
        ("/i/sdb", False),
    ],
)
def test_a_name_that_may_be_another_device_s_tomorrow(path, warns):
    """Broken: after a boot, a checkpoint would have another disk's content, and nobody was told."""
    found = requirements.changing_names([but(target="vdb", path=path, source_type="block", format="raw")])
    assert bool(found) == warns
    assert not warns or path in str(found)


def test_passed_through_storage_is_refused():
    """Broken: what lies on it would go on while the rest goes back in time."""
    with pytest.raises(RefusedError, match="no image has its state"):
        requirements.disks_to_switch(facts(passthrough=("scsi host device",)))


@pytest.mark.parametrize("disks", [(), (CDROM,), (dataclasses.replace(CDROM, device="floppy"),)])
def test_a_vm_without_disks_is_refused(disks):
    """Broken: a checkpoint of nothing would be called one."""
    with pytest.raises(RefusedError, match="no disk"):
        requirements.disks_to_switch(facts(disks=disks))


def test_disks_are_taken_and_removable_media_left():
    """Broken: a CD in the drive would keep the VM from every checkpoint."""
    second = but(target="vdb", path="/i/b.qcow2")
    assert requirements.disks_to_switch(facts(disks=(GOOD, CDROM, second))) == (GOOD, second)


def chain_of(images: int, checkpoints: int = 0, branch: bool = False) -> Survey:
    """A chain /i/0 <- /i/1 <- ...; the lowest images belong to checkpoints."""
    below: dict[str, str | None] = {f"/i/{number}": f"/i/{number - 1}" if number else None for number in range(images)}
    nodes = [at(f"c{number}", f"/i/{number}", f"c{number - 1}" if number else None) for number in range(checkpoints)]
    if branch:
        below["/i/branch"] = "/i/0"
        nodes.append(at("branch", "/i/branch", "c0"))
    return surveyed(below, nodes, {"vda": f"/i/{images - 1}"})


@pytest.mark.parametrize(("path", "fits"), [("/" + "x" * 1022, True), ("/" + "x" * 1023, False), ("/" + "ü" * 512, False)])
def test_the_header_of_an_overlay_can_name_its_backing_file(path, fits):
    """Broken: the error would be a page of QEMU's, after the overlay was begun."""
    with contextlib.nullcontext() if fits else pytest.raises(RefusedError, match=r"vda has 102[45] bytes"):
        requirements.require_short_paths({"vda": path})


@given(images=st.integers(1, 40))
def test_no_chain_gets_longer_than_libvirt_can_start(images):
    """Broken: the VM would not start any more after its next power-off."""
    overlaid = {"vda": f"/i/{images - 1}"}
    if images + 1 > STARTABLE:
        with pytest.raises(RefusedError, match=f"the backing chain of disk vda has {images} images"):
            requirements.require_short_chains(overlaid, chain_of(images))
    else:
        requirements.require_short_chains(overlaid, chain_of(images))


def test_the_refusal_names_the_oldest_checkpoints_that_shorten_the_chain():
    """Broken: the user would delete the newest ones, which does not help, or a branching one, which cannot be merged yet."""

    def hint(found: Survey) -> str:
        with pytest.raises(RefusedError) as refused:
            requirements.require_short_chains({"vda": "/i/22"}, found)
        return str(refused.value.hint)

    assert hint(chain_of(23, 22)).endswith("quiesce delete web1@c0 web1@c1")
    assert hint(chain_of(23, 22, branch=True)).endswith("quiesce delete web1@c1 web1@c2")
    assert "qemu-img convert" in hint(chain_of(23, 1))


def test_a_disk_plugged_in_only_for_this_run_is_refused():
    """Broken: a restore would silently lose it, and a recovery what was written to it."""
    (disk,) = facts().disks[:1]
    with pytest.raises(RefusedError, match=f"disk {disk.target}: at its next start the VM will have another image"):
        requirements.disks_to_switch(facts(next_sources={}))
    assert requirements.disks_to_switch(facts(next_sources={}, persistent=False))


def test_a_disk_that_is_left_out_needs_not_be_one_of_ours():
    """Broken: one foreign or shared disk would keep the VM from every checkpoint, though its user does without it."""
    bad = but(target="vdb", path="/i/b.vmdk", format="vmdk")
    assert requirements.disks_to_switch(facts(disks=(GOOD, bad)), ("vdb",)) == (GOOD,)
    with pytest.raises(RefusedError, match="disk vdb: its format is vmdk") as refusal:
        requirements.disks_to_switch(facts(disks=(GOOD, bad)))
    assert "--exclude" in refusal.value.hint


def test_a_disk_to_leave_out_must_be_there():
    """Broken: a mistyped --exclude would put the disk that was meant into the checkpoint."""
    with pytest.raises(UsageError, match="no disk vdx, vdy to exclude") as refusal:
        requirements.disks_to_switch(facts(), ("vdy", "vda", "vdx"))
    assert "domblklist web1" in refusal.value.hint


def test_not_every_disk_can_be_left_out():
    """Broken: a checkpoint of nothing would be called one."""
    with pytest.raises(UsageError, match=r"a checkpoint of .* would have no disk"):
        requirements.disks_to_switch(facts(), ("vda",))

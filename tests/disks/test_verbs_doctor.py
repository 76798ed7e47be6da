"""What doctor finds, and mends, after others changed real disks and definitions; and the catalog made anew from manifests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt
import pytest

from lab.bare import Bare, directory
from lab.forest import TARGETS, read
from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.rebuild import rebuild
from quiesce.operations.restore import restore
from quiesce.operations.settings import settings
from tests.disks.scene import Scene


def test_doctor_snapshot_made_with_virsh(three_branches: Scene) -> None:
    """One more image on the VM's own does no harm: checkpoints go on above it."""
    scene = three_branches
    scene.start()
    scene.virsh("snapshot-create-as", scene.name, "theirs", "--disk-only", "--no-metadata")
    scene.change()
    assert scene.complaints() == ()
    scene.create("after")
    scene.stop()
    scene.back("after")
    found = scene.survey()
    assert found.orphans() == []
    restore(scene.context, scene.reference("after"), discard_current=True)


def test_doctor_overwritten_by_a_commit_with_virsh(three_branches: Scene) -> None:
    """virsh merged the VM's image into its checkpoint's: that one is lost, and is said to be; no other is. Nothing tells that
    the overlay may go, so the user is asked."""
    scene = three_branches
    scene.start()
    here, overlays = scene.tree().find("here"), list(scene.sources().values())
    for target in TARGETS:
        scene.virsh("blockcommit", scene.name, target, "--base", here.image(target).path, "--active", "--pivot", "--wait")
    scene.look()
    with pytest.raises(RefusedError):
        checkpoint(scene.context, scene.name, name="x", required=Consistency.CRASH)
    found = scene.complaints()
    assert any("'here' can no longer be restored" in text for text in found)
    assert not any("'middle' can" in text or "'left' can" in text for text in found)
    scene.complaints(repair=True)
    assert all(Path(path).exists() for path in overlays)
    assert "here" in [node.name for node in scene.tree().checkpoints]
    scene.complaints(repair=True, give_up=["here", *overlays])
    assert scene.complaints() == ()
    del scene.nodes["here"]
    scene.check()
    scene.create("after")
    scene.check()


def test_doctor_flattened_with_virsh(three_branches: Scene) -> None:
    """blockpull leaves the VM on no checkpoint at all."""
    scene = three_branches
    scene.start()
    for target in TARGETS:
        scene.virsh("blockpull", scene.name, target, "--wait")
    with pytest.raises(RefusedError, match="somebody changed the backing chain"):
        checkpoint(scene.context, scene.name, name="x", required=Consistency.CRASH)
    assert "is based on no checkpoint, not on 'here'" in scene.complaints()[0]
    scene.complaints(repair=True)
    assert scene.complaints() == ()
    scene.create("after")
    scene.check()


def test_a_disk_that_was_detached_is_not_thrown_away(three_branches: Scene) -> None:
    """It holds what was written since the last checkpoint, and nobody said that this may go."""
    scene = three_branches
    kept = scene.sources()["vdb"]
    held = read(kept)
    scene.virsh("detach-disk", scene.name, "vdb", "--config")
    assert any("no longer has; quiesce does not remove it" in text for text in scene.complaints(repair=True))
    delete(scene.context, [scene.reference("left"), scene.reference("right")])
    assert read(kept) == held


def test_a_disk_given_to_another_vm_is_not_thrown_away(three_branches: Scene) -> None:
    scene = three_branches
    clone = Path(scene.tree().find("left").disks[0].path)
    with directory() as path:
        disk = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{clone}'/><target dev='vda'/></disk>"
        other = Bare(path, disk_xml=disk, disks=0, start=False)
        try:
            scene.delete("left")
            assert clone.exists()
        finally:
            other.remove()
    scene.complaints(repair=True)
    assert not clone.exists()
    scene.check()


def test_doctor_a_directory_that_is_not_mounted(three_branches: Scene) -> None:
    """It is there, and empty: nothing is given up for that."""
    scene = three_branches
    aside = scene.bare.directory / "aside"
    aside.mkdir()
    moved = [Path(path) for path in scene.files()]
    for path in moved:
        path.rename(aside / path.name)
    found = scene.complaints(repair=True)
    assert any("is it mounted?" in text for text in found)
    assert len(scene.tree().checkpoints) == 5
    for path in moved:
        (aside / path.name).rename(path)
    aside.rmdir()
    scene.vouch()  # mounting a filesystem changes no inode, renaming a file does
    assert scene.complaints() == ()
    scene.check()


def test_doctor_a_file_is_gone(three_branches: Scene) -> None:
    scene = three_branches
    Path(scene.tree().find("left").disks[0].path).unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        restore(scene.context, scene.reference("left"))
    assert ["'left' can no longer be restored" in text for text in scene.complaints(repair=True)] == [True]
    assert "left" in [node.name for node in scene.tree().checkpoints]
    scene.complaints(repair=True, give_up=["left"])
    assert scene.complaints() == ()
    del scene.nodes["left"]
    scene.check()


def test_doctor_an_orphan_and_a_manifest(three_branches: Scene) -> None:
    scene = three_branches
    stray = f"{scene.bare.directory}/{scene.name}.vda.0123456789ab.qcow2"
    below = ["-b", scene.tree().find("left").disks[0].path, "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, stray], check=True)
    scene.catalog.images.note(scene.key, stray)
    (scene.bare.directory / f"quiesce-{scene.tree().find('left').id}.json").unlink()
    assert len(scene.complaints()) == 2
    scene.complaints(repair=True)
    assert scene.complaints() == ()
    scene.check()


def test_a_file_with_data_that_no_record_names(three_branches: Scene) -> None:
    """Broken: data of which nobody knows whose they are would be removed; or, given up, be gone at once."""
    scene = three_branches
    stray = Path(f"{scene.bare.directory}/{scene.name}.vda.0123456789ab.qcow2")
    below = ["-b", scene.tree().find("left").disks[0].path, "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, stray], check=True)
    subprocess.run(["qemu-io", "-c", "write -q -P 7 0 64k", stray], check=True)
    scene.catalog.images.note(scene.key, str(stray))
    content = stray.read_bytes()
    assert scene.complaints(repair=True) == (f"no record names {stray}",)
    scene.delete("right")
    scene.back("root")
    assert stray.read_bytes() == content
    assert not scene.examine(repair=True, give_up=[str(stray)]).left
    (kept,) = scene.examine().quarantine
    assert (kept.aside.original, kept.days) == (str(stray), 30)
    assert Path(kept.aside.path).read_bytes() == content
    settings(scene.context, scene.name, quarantine_days=0)
    assert not scene.examine(repair=True).quarantine
    assert not Path(kept.aside.path).parent.exists()
    scene.check()


def test_doctor_renamed(three_branches: Scene) -> None:
    scene = three_branches
    old, new = scene.name, f"{scene.name}x"
    scene.virsh("domrename", old, new)
    (found,) = doctor(scene.context, new, repair=True)
    assert found.found == (f"{new} was renamed: its checkpoints have its old name, {old}",)
    assert {node.vm_name for node in scene.catalog.checkpoints.tree(scene.key).nodes} == {new}
    scene.virsh("domrename", new, old)


def test_doctor_undefined(three_branches: Scene) -> None:
    """`virsh undefine` forgets the VM; its disks and checkpoints are there, and so is it again."""
    scene = three_branches
    scene.bare.domain.undefine()
    (found,) = doctor(scene.context, scene.name, repair=False)
    assert "libvirt no longer has the VM" in found.found[0]
    doctor(scene.context, scene.name, repair=True)
    scene.bare.domain = scene.bare.connection.lookupByName(scene.name)
    assert scene.complaints() == ()
    scene.check()


def test_doctor_undefined_and_its_disks_removed(three_branches: Scene) -> None:
    scene = three_branches
    for path in scene.sources().values():
        Path(path).unlink()
    scene.bare.domain.undefine()
    doctor(scene.context, scene.name, repair=True)
    scene.bare.domain = scene.bare.connection.lookupByName(scene.name)
    scene.head = dict(scene.nodes["here"])
    assert scene.complaints() == ()
    scene.check()


def test_doctor_defined_anew(three_branches: Scene) -> None:
    """The same disks under another UUID, as after an import of its XML elsewhere."""
    scene = three_branches
    xml = scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    old = scene.bare.domain.UUIDString()
    scene.bare.domain.undefine()
    scene.bare.domain = scene.bare.connection.defineXML(xml.replace(old, "11111111-2222-4333-8444-" + old[-12:]))
    assert "was defined anew" in scene.complaints()[0]
    scene.complaints(repair=True)
    assert scene.complaints() == ()
    scene.check()


def test_catalog_rebuild(three_branches: Scene) -> None:
    """From the manifests alone: every checkpoint, where the VM stands, and which files are ours."""
    scene = three_branches
    scene.delete("middle")
    tree, made = scene.tree(), scene.survey().made
    scene.catalog.close()
    for path in (scene.bare.directory / "catalog").glob("catalog.db*"):
        path.unlink()
    scene.reopen()

    def rebuilt() -> list[Checkpoint]:
        """Of this VM: others of the host may be having checkpoints made meanwhile."""
        return [node for node in rebuild(scene.context).checkpoints if node.vm_uuid == scene.bare.domain.UUIDString()]

    assert len(rebuilt()) == len(tree.nodes)
    assert scene.tree() == tree
    assert scene.survey().made == made
    assert scene.complaints() == ()
    scene.check()
    assert rebuilt() == []
    scene.delete("left", "right")
    scene.check()
    assert scene.hidden() == set()

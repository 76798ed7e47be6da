"""Deletions on real disks without a guest, by content: branches, clones, and merges that are interrupted."""

from __future__ import annotations

import signal
import subprocess
import time

import libvirt
import pytest

from lab.bare import directory
from lab.forest import TARGETS, Forest, read
from quiesce.model.errors import NotFoundError
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.restore import restore
from tests.disks.scene import Scene
from tests.host import Quiesce, interruptible


def test_the_middle_of_three_branches_goes_when_one_is_left(three_branches: Scene, power: bool) -> None:
    scene = three_branches
    scene.delete("middle")
    scene.check()
    assert scene.hidden() == {"middle"}
    scene.delete("left")
    scene.check()
    assert scene.hidden() == {"middle"}
    scene.delete("right")
    scene.check()
    assert scene.hidden() == set()
    assert len(scene.survey().chains.chain(scene.sources()["vda"])) == 3  # root, here, now
    assert [node.name for node in scene.tree().checkpoints] == ["root", "here"]


def test_the_one_the_vm_runs_on(three_branches: Scene, power: bool) -> None:
    three_branches.delete("here")
    three_branches.check()
    assert three_branches.hidden() == set()
    assert three_branches.tree().visible(three_branches.tree().head_parent) == three_branches.tree().find("middle").id


def test_the_root(three_branches: Scene, power: bool) -> None:
    three_branches.delete("root")
    three_branches.check()
    assert three_branches.hidden() == set()
    assert three_branches.tree().find("middle").parent is None
    assert three_branches.complaints() == ()
    assert three_branches.tree().find("middle").disks[0].path.endswith("/vda.qcow2")  # the first image keeps its name


def test_what_libvirt_wrote_down_of_a_chain_holds_nothing_up(scene: Scene) -> None:
    """A merge while the VM runs leaves the whole chain in its definition; images merged away later, when it is off, go."""
    scene.start()
    for name in ("one", "two", "three"):
        scene.create(name)
    scene.delete("one")
    assert "backingStore" in scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    scene.stop()
    scene.delete("two")
    scene.check()
    scene.start()
    scene.check()


def test_what_runs_holds_up_is_merged_when_it_is_off(three_branches: Scene) -> None:
    """The running VM has the merged image open, so the dead branches stay on the old file; nothing but room is lost."""
    scene = three_branches
    scene.start()
    waiting = scene.delete("root").waiting
    assert {item.name for item in waiting} == {"left", "right"}
    scene.check()
    assert scene.complaints() == ()
    scene.stop()
    found = scene.survey()
    assert found.merged & found.needed()
    assert scene.complaints(repair=True)
    assert scene.complaints() == ()
    found = scene.survey()
    assert not found.merged & found.needed()
    scene.check()


def test_a_subtree_and_a_pattern(three_branches: Scene, power: bool, quiesce: Quiesce) -> None:
    scene = three_branches
    would = delete(scene.context, [scene.reference("*")], dry_run=True)
    assert {node.name for node in would.checkpoints} == set(scene.nodes)
    scene.check()
    scene.delete("*t")  # root, left, right
    scene.check()
    assert set(scene.nodes) == {"middle", "here"}
    scene.delete("middle", subtree=True)
    scene.check()
    assert scene.tree().nodes == ()
    assert scene.sources() == {target: str(scene.bare.directory / f"{target}.qcow2") for target in TARGETS}
    with pytest.raises(NotFoundError, match="no checkpoint named 'x\\*'"):
        scene.delete("x*")


def test_a_clone_of_a_checkpoint_stops_a_merge_and_loses_nothing(three_branches: Scene) -> None:
    """Somebody else's image on one of ours: libvirt would not notice, and destroy it."""
    scene = three_branches
    node = scene.tree().find("root")
    clone = scene.bare.directory / "clone.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", node.disks[0].path, "-F", "qcow2", clone], check=True)
    before = read(str(clone))
    (waiting,) = scene.delete("root").waiting
    assert "clone.qcow2" in waiting.reason
    assert read(str(clone)) == before
    clone.unlink()
    scene.complaints(repair=True)
    assert scene.hidden() == set()
    scene.check()


def test_a_checkpoint_after_a_restore_without_a_disk(scene: Scene) -> None:
    """Disks that stand on another branch than the tree says: a deletion merges by the images, never by the tree alone."""
    scene.create("a", exclude=("vdb",))
    scene.nodes["a"].pop("vdb")
    scene.create("c1")
    scene.create("c2")
    restore(scene.context, scene.reference("a"), discard_current=True)
    scene.head["vda"] = scene.nodes["a"]["vda"]
    scene.check()
    scene.create("d")
    scene.delete("c2")
    scene.check()
    scene.delete("c1", "a")
    scene.check()


def test_a_merge_can_be_interrupted_and_goes_on(quiesce: Quiesce) -> None:
    """Ctrl-C in the middle of a long merge: the VM runs on, and the next deletion, or doctor, finishes it."""
    with directory() as path:
        scene = Forest(path, size=1024**3)
        try:
            environment = quiesce.environment | {"QUIESCE_CATALOG": str(path / "catalog" / "catalog.db")}
            for number, name in enumerate(("one", "two"), 1):
                scene.write("vda", 0, 900 * 1024 * 1024, number)
                checkpoint(scene.context, scene.name, name=name, required=Consistency.CRASH)
            scene.start()
            process = subprocess.Popen(
                [quiesce.program, "delete", f"{scene.name}@one"],
                env=environment,
                stderr=subprocess.PIPE,
                preexec_fn=interruptible,
            )
            while not (scene.bare.domain.blockJobInfo("vda", 0) or process.poll() is not None):
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 130
            assert scene.running
            assert not scene.bare.domain.blockJobInfo("vda", 0)
            (found,) = doctor(scene.context, scene.name, repair=True)
            assert found.mended
            assert [node.name for node in scene.tree().nodes] == ["two"]
            assert set(read(scene.tree().find("two").disks[0].path)[: 900 * 1024 * 1024]) == {2}
        finally:
            scene.remove()

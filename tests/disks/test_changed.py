"""Another program changes an image of a checkpoint on real disks; and nobody is alarmed by what QEMU and quiesce write."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.forest import TARGETS, read
from quiesce.model.errors import ConsistencyError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.content import verify_content
from quiesce.operations.restore import restore
from tests.disks.scene import Scene


def changed(scene: Scene) -> dict[str, tuple[str, ...]]:
    return {node.name: node.changed for node in scene.tree().checkpoints if node.changed}


def image(scene: Scene, name: str, target: str = "vda") -> str:
    found = scene.tree().find(name).image(target)
    assert found is not None
    return found.path


def test_a_write_into_an_image_while_the_vm_is_off(three_branches: Scene) -> None:
    """root - middle - (here - now, left, right): whoever writes into the image of `middle` changes all above it."""
    scene = three_branches
    assert changed(scene) == {}
    path = image(scene, "middle")
    subprocess.run(["qemu-io", "-c", "write -q -P 99 0 4096", path], check=True)
    assert changed(scene) == dict.fromkeys(("middle", "here", "left", "right"), (path,))
    with pytest.raises(RefusedError, match=path):
        restore(scene.context, scene.reference("left"))
    with pytest.raises(ConsistencyError, match=path):
        checkpoint(scene.context, scene.name, name="x")
    assert any(path in text for text in scene.complaints(repair=True))
    assert scene.complaints() == ()
    assert scene.tree().find("left").consistency is Consistency.CRASH
    with pytest.raises(RefusedError, match="it was found spoilt at"):
        restore(scene.context, scene.reference("left"), discard_current=True)
    restore(scene.context, scene.reference("left"), discard_current=True, accept_changed=True)
    assert scene.complaints() == ()


def test_a_commit_with_virsh_between_two_checkpoints(three_branches: Scene) -> None:
    """virsh commits the image of `here` into that of `middle`: what the VM reads is the same, what `middle` says is not."""
    scene = three_branches
    scene.start()
    top, base = image(scene, "here"), image(scene, "middle")
    before = read(base)
    scene.virsh("blockcommit", scene.name, "vda", "--base", base, "--top", top, "--wait")
    scene.flush()
    assert read(base) != before
    assert base in changed(scene)["middle"]
    assert any(base in text for text in scene.complaints())
    with pytest.raises(RefusedError, match=base):
        restore(scene.context, scene.reference("middle"), discard_current=True)
    assert scene.running


def test_a_commit_with_virsh_of_what_the_vm_writes(three_branches: Scene) -> None:
    scene = three_branches
    scene.start()
    for target in TARGETS:
        scene.virsh("blockcommit", scene.name, target, "--base", image(scene, "here", target), "--active", "--pivot", "--wait")
    scene.stop()
    assert changed(scene).keys() == {"here"}
    with pytest.raises(RefusedError, match="'here' cannot be restored as what it was"):
        restore(scene.context, scene.reference("here"), discard_current=True)


def test_a_file_that_was_copied_back_is_the_same_by_its_digest(three_branches: Scene) -> None:
    """As from a backup that keeps times; the file is another inode, and not sparse."""
    scene = three_branches
    path = image(scene, "middle")
    verify_content(scene.context, scene.reference("middle")).require()
    aside = Path(path).with_suffix(".aside")
    subprocess.run(["cp", "-a", "--sparse=never", path, aside], check=True)
    Path(path).unlink()
    shutil.move(aside, path)
    assert changed(scene) == dict.fromkeys(("middle", "here", "left", "right"), (path,))
    verify_content(scene.context, scene.reference("middle")).require()
    assert changed(scene) == {}
    assert scene.complaints() == ()
    scene.delete("middle")
    scene.check()


def test_nobody_is_alarmed_by_a_vm_that_runs(scene: Scene) -> None:
    """QEMU writes its own tables into an image until the switch has ended. Nothing that it writes then is taken for a change,
    whether the VM runs on, is started again, or goes back."""
    scene.start(paused=False)
    for name in ("a", "b", "c"):
        for target in TARGETS:
            scene._qemu_io(target, "aio_write -q -P 7 0 512k")  # not flushed
        scene.look()
        scene.create(name, window_s=30)
        assert changed(scene) == {}
    scene.delete("a")
    assert changed(scene) == {}
    scene.stop()
    scene.start()
    scene.stop()
    assert changed(scene) == {}
    scene.back("b")
    scene.delete("c")
    assert changed(scene) == {}
    assert scene.complaints() == ()
    scene.check()

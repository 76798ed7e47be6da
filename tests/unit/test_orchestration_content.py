"""quiesce verify --content, on a host in memory: what it records, what it settles, and what it never takes for right."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.content import Content, ContentState, verify_content
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.restore import restore
from tests.unit.changed_images import IMAGE, change, found, labels, vm_with
from tests.unit.world import World

APPLICATION, CRASH = Consistency.APPLICATION, Consistency.CRASH
SAME, RECORDED, SPOILT, UNKNOWN = ContentState.SAME, ContentState.RECORDED, ContentState.SPOILT, ContentState.UNKNOWN


def verify(world: World, name: str = "a") -> Content:
    return verify_content(world.context, CheckpointReference("web1", name))


def states(world: World, name: str = "a") -> dict[str, ContentState]:
    return {image.path: image.outcome for image in verify(world, name).images}


def write_in_place(world: World, path: str = IMAGE) -> None:
    """Over a block that the image has already."""
    file = world.host.storage.files[path]
    file.blocks[min(file.blocks)] = "other bytes"
    world.host.storage.touch(path)


def refused(world: World, name: str = "a") -> str:
    with pytest.raises(RefusedError) as error:
        restore(world.context, CheckpointReference("web1", name), discard_current=True)
    return error.value.message


def test_the_first_run_records_and_the_second_compares(world):
    """Broken: there would be nothing to compare with; or a digest be recorded anew, whatever the bytes are."""
    vm_with(world, "a", "b")
    assert set(states(world, "b").values()) == {RECORDED}
    assert set(states(world, "b").values()) == {SAME}
    assert found(world) == ()  # the manifests have the digests, too


def test_what_was_touched_is_known_again_with_its_label(world):
    """Broken: whoever moves images to another filesystem would lose the labels of all checkpoints."""
    vm_with(world, "a", "b")
    verify(world, "b")
    world.host.storage.touch(IMAGE)
    assert labels(world) == {"a": CRASH, "b": CRASH}
    (item,) = doctor(world.context, "web1", repair=True)[0].items
    assert "verify web1@CHECKPOINT --content" in (item.remedy.advice or "")
    assert "nothing shows" in refused(world)
    assert labels(world) == {"a": CRASH, "b": CRASH}
    assert states(world)[IMAGE] is SAME
    assert labels(world) == {"a": APPLICATION, "b": APPLICATION}
    assert found(world) == ()
    restore(world.context, CheckpointReference("web1", "a"), discard_current=True)


@pytest.mark.parametrize("write", [change, write_in_place])
def test_other_bytes_spoil_the_checkpoints_for_good(world, write):
    """Broken: bytes that another program wrote would be taken for those that were checkpointed."""
    vm = vm_with(world, "a", "b")
    verify(world, "b")
    write(world)
    result = verify(world, "b")
    with pytest.raises(RefusedError, match=f"{IMAGE} is spoilt: .*its bytes are others") as error:
        result.require()
    assert error.value.details["images"][IMAGE] == "spoilt"
    assert [bool(node.spoilt) for node in world.tree(vm).checkpoints] == [True, True]
    assert "found spoilt" in refused(world)
    assert labels(world) == {"a": CRASH, "b": CRASH}


@pytest.mark.parametrize(("write", "state"), [(change, SPOILT), (write_in_place, UNKNOWN)])
def test_what_may_be_changed_is_never_recorded_as_right(world, write, state):
    """Broken: the first run after a change would bless it."""
    vm = vm_with(world, "a")
    write(world)
    for _ in range(2):
        assert states(world)[IMAGE] is state
    assert not world.catalog.fingerprints.of(vm.key)[IMAGE].content
    assert labels(world) == {"a": CRASH}
    refused(world)


def test_what_nobody_can_settle_is_spoilt_after_a_repair(world):
    """Broken: an image that is unknown and has no digest would be in the way of every later label; or be taken for right."""
    vm = vm_with(world, "a")
    world.host.storage.touch(IMAGE)
    assert "no digest of its content was recorded" in found(world, repair=True)[0]
    assert found(world) == ()
    assert world.tree(vm).find("a").spoilt
    refused(world)
    assert states(world)[IMAGE] is RECORDED  # from now on another change is seen
    refused(world)


def test_a_restored_backup_makes_no_spoilt_checkpoint_good_again(world):
    """Broken: a label would come back for an image of which nobody knows whether it is the right one."""
    vm = vm_with(world, "a")
    change(world)
    found(world, repair=True)
    del world.host.storage.files[IMAGE].blocks[9]
    world.host.storage.touch(IMAGE)
    verify(world)
    assert world.tree(vm).find("a").spoilt
    refused(world)


def test_what_changes_while_it_is_read_is_unknown(world, monkeypatch):
    """Broken: the digest of half of the old and half of the new bytes would be recorded."""
    vm = vm_with(world, "a")
    read = world.host.storage.content

    def late(*arguments: Any) -> str:
        found = read(*arguments)
        write_in_place(world)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(world.host.storage, "content", late)
        (image,) = verify(world).images
    assert (image.outcome, image.reason) == (UNKNOWN, "it was changed while it was read; try again")
    assert not world.catalog.fingerprints.of(vm.key)[IMAGE].content


def test_others_work_while_an_image_is_read(world, monkeypatch):
    """Broken: a night's reading would be in the way of every checkpoint."""
    vm = vm_with(world, "a", "b")
    read = world.host.storage.content

    def meanwhile(*arguments: Any) -> str:
        if not world.tree(vm).has_name("c"):
            world.take(vm, "c")
            delete(world.context, [CheckpointReference("web1", "a")])
        return read(*arguments)

    monkeypatch.setattr(world.host.storage, "content", meanwhile)
    result = verify(world, "b")
    assert {image.outcome for image in result.images} == {UNKNOWN}
    assert labels(world) == {"b": APPLICATION, "c": APPLICATION}


def test_a_merge_of_ours_forgets_the_digest_of_what_it_writes(world):
    """Broken: after a deletion, the merged image would be called spoilt because its bytes are others."""
    vm = vm_with(world, "a", "b", "c")
    verify(world, "c")
    delete(world.context, [CheckpointReference("web1", "a")])
    assert labels(world) == {"b": APPLICATION, "c": APPLICATION}
    contents = {path: bool(print.content) for path, print in world.catalog.fingerprints.of(vm.key).items()}
    assert contents[IMAGE] is False
    assert set(states(world, "c").values()) <= {SAME, RECORDED}
    assert found(world) == ()


def test_a_checkpoint_with_digests(world):
    """Broken: an administrator who asks for digests would find none when he needs them."""
    world.vm().start()
    checkpoint(world.context, "web1", name="a", required=CRASH, digest=True)
    assert set(states(world).values()) == {SAME}


def test_an_image_that_is_gone_is_named(world):
    """Broken: a traceback, or a verdict without the image."""
    vm_with(world, "a")
    del world.host.storage.files[IMAGE]
    with pytest.raises(NotFoundError, match=IMAGE):
        verify(world)


def test_an_image_that_the_vm_writes_is_spoilt(world):
    """Broken: after `virsh blockcommit --active --pivot` nothing is written yet, and a restore would give what comes then."""
    vm = vm_with(world, "a", "b")
    top = world.tree(vm).find("b").disks[0].path
    vm.redefine(vm.definition().replace(vm.sources()["vda"], top))
    vm.power_off()
    vm.start()
    assert vm.sources()["vda"] == top
    assert states(world, "b")[top] is SPOILT
    assert labels(world) == {"a": APPLICATION, "b": CRASH}
    assert "the VM writes to it" in refused(world, "b")

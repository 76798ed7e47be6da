"""What administrators, backup tools and clusters do to a VM between two of our operations, by real libvirt."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import libvirt
import pytest

from lab.bare import Bare, directory
from quiesce.context import Context
from quiesce.model.errors import RefusedError
from quiesce.model.events import Event, Warned
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.doctor import doctor
from quiesce.operations.restore import restore
from quiesce.operations.vms import vms
from tests.disks.scene import Scene
from tests.host import Quiesce

SOCKET = "/run/libvirt/qemu/quiesce-test-nbd"
"""QEMU's own user may make it there."""


def define_anew(scene: Scene, *, name: str | None = None) -> None:
    """Undefines the VM, and defines it with a new UUID."""
    xml = scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    scene.bare.domain.undefine()
    xml = xml.replace(f"  <uuid>{scene.bare.domain.UUIDString()}</uuid>\n", "")
    scene.bare.name = name or scene.name
    xml = xml.replace(f"<name>{scene.bare.domain.name()}</name>", f"<name>{scene.name}</name>")
    scene.bare.domain = scene.bare.connection.defineXML(xml)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_vm_that_was_defined_anew_is_recognised_by_its_disks(scene: Scene, renamed: bool) -> None:
    """Broken: the old checkpoints could not be reached any more, and a checkpoint of the new VM would cut their chains."""
    scene.create("one")
    scene.create("two")
    define_anew(scene, name=f"{scene.name}-new" if renamed else None)
    with pytest.raises(RefusedError, match=r"@one, .*@two$") as refused:
        scene.create("three")
    assert f"quiesce doctor {scene.name} --repair" in (refused.value.hint or "")
    scene.complaints(repair=True)
    assert [node.name for node in scene.tree().checkpoints] == ["one", "two"]
    scene.create("three")
    scene.check()
    scene.back("one")
    scene.check()


def test_a_vm_that_was_defined_anew_with_its_first_disks(scene: Scene) -> None:
    """Broken: the VM would overwrite what all its checkpoints are based on, or a repair give all of them up."""
    scene.create("one")
    scene.create("two")
    scene.bare.define()
    define_anew(scene)
    with pytest.raises(RefusedError, match=r"@one, .*@two$") as refused:
        scene.create("three")
    assert f"quiesce doctor {scene.name}" in (refused.value.hint or "")
    assert not scene.examine(repair=True).left
    assert scene.complaints() == ()
    assert [node.name for node in scene.tree().checkpoints] == ["one", "two"]
    scene.check()
    scene.create("three")
    scene.check()


def test_a_vm_of_another_name_with_the_first_disks_of_a_lost_one(scene: Scene) -> None:
    """Broken: a clone would get the checkpoints of another VM, and other disks than its administrator gave it."""
    scene.create("one")
    old, name, last = scene.bare.domain.UUIDString(), scene.name, scene.sources()
    scene.bare.define()
    first = scene.sources()
    define_anew(scene, name=f"{scene.name}-clone")
    found = scene.examine(repair=True)
    assert found.left
    assert f"quiesce doctor {old} --repair" in (found.items[0].remedy.advice or "")
    assert (scene.sources(), scene.tree().nodes) == (first, ())
    scene.bare.domain.undefine()  # as it says
    doctor(scene.context, old, repair=True)
    scene.bare.name, scene.bare.domain = name, scene.bare.connection.lookupByName(name)
    assert scene.sources() == last
    scene.check()


def test_a_second_vm_with_the_disks_of_one_that_has_checkpoints(scene: Scene) -> None:
    """Broken: the checkpoints of one VM would be based on what another one writes."""
    scene.create("one")
    xml = scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = xml.replace(scene.bare.domain.UUIDString(), "11111111-2222-3333-4444-555555555555")
    other = scene.bare.connection.defineXML(xml.replace(f"<name>{scene.name}</name>", f"<name>{scene.name}-twin</name>"))
    try:
        with pytest.raises(RefusedError, match=f"images of the VM {scene.name} ") as refused:
            checkpoint(scene.context, f"{scene.name}-twin", required=Consistency.CRASH)
        assert "qemu-img convert" in (refused.value.hint or "")
        scene.create("two")
    finally:
        other.undefine()


def test_a_restore_tells_of_the_bitmaps_of_backups(scene: Scene) -> None:
    """Broken: the next incremental backup fails, at night, with "missing or broken bitmap"."""
    heard: list[Event] = []
    context = Context(scene.context.uri, scene.catalog, heard.append)
    scene.start()
    checkpoint(context, scene.name, name="one", required=Consistency.CRASH)
    scene.virsh("checkpoint-create-as", scene.name, "monday")
    checkpoint(context, scene.name, name="two", required=Consistency.CRASH)
    assert warnings(heard) == []  # libvirt takes the bitmaps over into overlays
    restore(context, scene.reference("one"), start=True)
    (warning,) = warnings(heard)
    assert "libvirt's checkpoints monday" in warning
    with pytest.raises(libvirt.libvirtError, match="missing or broken bitmap"):
        back_up(scene, since="monday")
    scene.virsh("checkpoint-delete", scene.name, "monday", "--metadata")  # as the warning says
    back_up(scene)
    scene.bare.domain.abortJob()
    heard.clear()
    scene.stop()
    scene.start()
    scene.virsh("checkpoint-create-as", scene.name, "tuesday")
    scene.stop()
    checkpoint(context, scene.name, name="off", required=Consistency.CRASH)
    assert ["tuesday" in warning for warning in warnings(heard)] == [True]
    scene.virsh("checkpoint-delete", scene.name, "tuesday", "--metadata")


def warnings(heard: list[Event]) -> list[str]:
    return [event.message for event in heard if isinstance(event, Warned) and "bitmaps" in event.message]


def back_up(scene: Scene, since: str | None = None) -> None:
    incremental = f"<incremental>{since}</incremental>" if since else ""
    scene.bare.domain.backupBegin(
        f"<domainbackup mode='pull'>{incremental}<server transport='unix' socket='{SOCKET}'/></domainbackup>",
        None,
    )


def test_the_list_of_vms_while_one_starts_and_stops(scene: Scene) -> None:
    """Broken: the whole list fails because of one VM."""
    end = threading.Event()

    def start_and_stop(path: Path) -> None:
        bare = Bare(path, start=False)
        while not end.is_set():
            bare.domain.create()
            bare.domain.destroy()
        bare.remove()

    with directory() as path:
        other = threading.Thread(target=start_and_stop, args=(path,))
        other.start()
        try:
            for _ in range(5):
                assert scene.name in [vm.name for vm in vms(scene.context)]
        finally:
            end.set()
            other.join()


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-", "| head -0; exit ${PIPESTATUS[0]}"])
def test_a_checkpoint_is_not_lost_with_its_output(scene: Scene, redirected: str, quiesce: Quiesce) -> None:
    """Broken: exit code 1, although the checkpoint was taken."""
    environment = quiesce.environment | {"QUIESCE_CATALOG": scene.url}
    for json in ("", "--json"):
        line = f"'{quiesce.program}' checkpoint {scene.name} --require crash {json} {redirected}"
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(scene.tree().checkpoints) == 2

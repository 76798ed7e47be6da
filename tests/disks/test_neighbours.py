"""Storages of other VMs that do not answer, and images of others, by real libvirt."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from lab.machine import URI
from quiesce.local import client
from quiesce.model.events import Event, Warned
from quiesce.operations.doctor import doctor
from quiesce.operations.restore import restore
from quiesce.operations.tree import tree
from quiesce.operations.vms import vms
from tests.disks.scene import Scene
from tests.unit.hung_filesystem import hung

PATIENCE_S = 45.0
"""Longest time of an operation beside a dead storage, on a busy machine; without a limit it would never end."""


@pytest.fixture
def silent(scene: Scene, tmp_path: Path) -> Iterator[Path]:
    """A storage that never answers; another VM, which is off, has its disk there, behind a link too."""
    with hung(tmp_path) as path:
        (tmp_path / "dead").symlink_to(path)
        definitions = [
            f"""<domain type='qemu'><name>{scene.name}-{number}</name><memory unit='MiB'>64</memory>
            <os><type machine='q35'>hvm</type></os><devices><disk type='file'><driver name='qemu' type='qcow2'/>
            <source file='{place}/other.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""
            for number, place in enumerate((path, tmp_path / "dead"))
        ]
        with contextlib.closing(libvirt.open(URI)) as connection:
            others = [connection.defineXML(xml) for xml in definitions]
            try:
                yield path
            finally:
                for other in others:
                    other.undefine()
                client.files().close()
                client._files = None


def within_limit(do: Callable[[], object]) -> None:
    """Raises what `do` raises. Pools are listed meanwhile, by another connection."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            do()
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=work, daemon=True)
    started = time.monotonic()
    worker.start()
    while worker.is_alive():
        assert time.monotonic() - started < PATIENCE_S
        subprocess.run(["virsh", "-c", URI, "pool-list", "--all"], check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)
        worker.join(0.2)
    if raised:
        raise raised[0]


@pytest.mark.parametrize("running", [False, True], ids=["off", "running"])
def test_a_dead_storage_of_another_vm_holds_nobody_up(scene: Scene, silent: Path, running: bool) -> None:
    """Broken: one dead share would stop the checkpoints of every VM of the host, and libvirt's list of pools with them."""
    heard: list[Event] = []
    object.__setattr__(scene.context, "emit", heard.append)
    if running:
        scene.start()
    within_limit(lambda: scene.create("one"))
    within_limit(lambda: scene.create("two"))
    within_limit(lambda: tree(scene.context, scene.name))
    within_limit(lambda: vms(scene.context))
    kept = dict(scene.head)
    within_limit(lambda: restore(scene.context, scene.reference("two")))
    assert not [event for event in heard if isinstance(event, Warned) and str(silent) in event.message]
    scene.head = dict(scene.nodes["two"])
    within_limit(lambda: scene.delete("one"))
    told = [event.message for event in heard if isinstance(event, Warned) and "it was not looked whether" in event.message]
    assert any(str(silent) in text for text in told)
    within_limit(lambda: doctor(scene.context, None, repair=False))
    assert scene.hidden() == set()
    safety = next(node for node in scene.tree().checkpoints if node.name.startswith("before restore"))
    scene.nodes[safety.name] = kept
    scene.check()


def test_an_own_storage_that_does_not_answer_is_said(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: an operation on the VM would never return, with its lock held."""
    monkeypatch.setattr("quiesce.hypervisor.connection.LIMIT_S", 2.0)
    scene.create("one")
    with hung(tmp_path) as path:
        xml = scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        scene.bare.connection.defineXML(xml.replace(f"{scene.bare.directory}/{scene.name}.vdb", f"{path}/vdb"))
        with pytest.raises(Exception, match="does not answer") as raised:
            within_limit(lambda: scene.create("two"))
        assert str(path) in str(raised.value)
        scene.bare.connection.defineXML(xml)
        client.files().close()
        client._files = None
    scene.create("two")
    scene.check()


def test_a_clone_of_another_vm_is_never_damaged(scene: Scene) -> None:
    """Broken: a merge would change the disk of a VM that was cloned from a checkpoint, into a directory of its own."""
    scene.create("one")
    scene.create("two")
    base = scene.tree().find("one").disks[0].path
    place = scene.bare.directory / "elsewhere"
    place.mkdir()
    clone = place / "clone.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", clone], check=True)
    (place / "link.qcow2").symlink_to("clone.qcow2")
    with contextlib.closing(libvirt.open(URI)) as connection:
        other = connection.defineXML(
            f"""<domain type='qemu'><name>{scene.name}-clone</name><memory unit='MiB'>64</memory>
            <os><type machine='q35'>hvm</type></os><devices><disk type='file'><driver name='qemu' type='qcow2'/>
            <source file='{place}/link.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""
        )
        try:
            deleted = scene.delete("one")
            assert any(str(clone) in item.reason for item in deleted.waiting)
        finally:
            other.undefine()
    scene.check()

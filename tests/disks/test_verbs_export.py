"""Export and import on real disks without a guest, by content."""

from __future__ import annotations

import json
import subprocess

import libvirt
import pytest

from lab.forest import TARGETS, read
from quiesce.catalog import exported
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import NameTakenError, QuiesceError, RefusedError
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from tests.disks.scene import Scene
from tests.host import Quiesce


def test_export_and_import(scene: Scene, quiesce: Quiesce) -> None:
    """An export holds the content, of a VM that runs; what is made of it has another identity, or the same."""
    scene.create("one")
    scene.create("two")
    scene.start()
    target = scene.bare.directory / "export"
    export(scene.context, scene.reference("one"), str(target))
    assert {disk: read(str(target / f"{disk}.qcow2")) for disk in TARGETS} == scene.nodes["one"]
    info = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", target / "vda.qcow2"], capture_output=True, check=True).stdout
    )
    assert "backing-filename" not in info
    scene.check()
    with pytest.raises(RefusedError, match="not empty"):
        export(scene.context, scene.reference("one"), str(target))
    copy = import_vm(scene.context, str(target), to=str(scene.bare.directory / "copy"), name=f"{scene.name}-copy")
    try:
        domain = scene.bare.connection.lookupByName(copy.vm)
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert domain.UUIDString() == copy.uuid != scene.bare.domain.UUIDString()
        assert domain_xml.generation_id(xml)
        assert {disk.target: read(str(disk.path)) for disk in domain_xml.disks(xml)} == scene.nodes["one"]
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        domain.destroy()
    finally:
        scene.bare.connection.lookupByName(copy.vm).undefine()
    with pytest.raises(NameTakenError):
        import_vm(scene.context, str(target), to=str(scene.bare.directory / "again"), same=True)
    with (target / "vda.qcow2").open("r+b") as file:
        file.seek(70_000)
        file.write(b"flipped")
    with pytest.raises(QuiesceError, match=r"vda\.qcow2 is damaged"):
        import_vm(scene.context, str(target), to=str(scene.bare.directory / "again"), name="x")
    assert not (scene.bare.directory / "again").exists()


def test_a_link_in_the_directory_of_an_export(scene: Scene) -> None:
    """Broken: whoever may write to the directory could have root write a file anywhere."""
    scene.create("one")
    target = scene.bare.directory / "export"
    target.mkdir()
    for name in ("vda.qcow2", exported.DOMAIN, exported.NAME):
        (target / name).symlink_to(scene.bare.directory / "elsewhere")
        with pytest.raises(RefusedError, match=f"is not empty: it has .*/{name}"):
            export(scene.context, scene.reference("one"), str(target))
        (target / name).unlink(missing_ok=True)
        assert list(target.iterdir()) == []
        assert not (scene.bare.directory / "elsewhere").exists()


def test_the_same_vm_again(scene: Scene) -> None:
    """After the host lost it: same name, same UUID, at the checkpoint's state."""
    scene.create("one")
    target = scene.bare.directory / "export"
    export(scene.context, scene.reference("one"), str(target))
    uuid = scene.bare.domain.UUIDString()
    scene.bare.domain.undefine()
    import_vm(scene.context, str(target), to=str(scene.bare.directory / "again"), same=True)
    scene.bare.domain = scene.bare.connection.lookupByName(scene.name)
    assert scene.bare.domain.UUIDString() == uuid
    assert {disk: read(path) for disk, path in scene.sources().items()} == scene.nodes["one"]
    manifest = exported.load((target / exported.NAME).read_bytes())
    assert manifest.checkpoint.name == "one"

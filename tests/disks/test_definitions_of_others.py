"""Ansible, Terraform and backups of XML define a VM anew, on images that it had once, or never. Nothing is lost by that, nor by
`doctor --repair`: the definition is pointed back, or both images are kept and the user is asked."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from lab.forest import faults, read
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.operations.doctor import doctor
from quiesce.operations.start import start
from quiesce.storage.quarantine import NAME
from tests.disks.scene import Scene


def define(scene: Scene, sources: dict[str, str]) -> None:
    """As `virsh define FILE` does, whether the VM runs or not."""
    xml = scene.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    scene.bare.connection.defineXML(domain_xml.with_sources(xml, sources))


def first_disks(scene: Scene) -> dict[str, str]:
    return {target: f"{scene.bare.directory}/{target}.qcow2" for target in ("vda", "vdb")}


def a_checkpoints_own(scene: Scene) -> dict[str, str]:
    return {disk.target: disk.path for disk in scene.tree().find("left").disks}


def one_disk_only(scene: Scene) -> dict[str, str]:
    return {"vdb": scene.tree().find("middle").image("vdb").path}  # type: ignore[union-attr]


def before_a_merge(scene: Scene) -> dict[str, str]:
    """The images that the VM wrote when its definition was saved; a deletion has merged them since."""
    saved = scene.sources()
    scene.delete("here")
    return saved


def before_a_restore(scene: Scene) -> dict[str, str]:
    saved = scene.sources()
    scene.back("left")
    return saved


def copies(scene: Scene) -> dict[str, str]:
    made = {target: f"{scene.bare.directory}/copy-{target}.qcow2" for target in scene.sources()}
    for target, path in scene.sources().items():
        subprocess.run(["qemu-img", "convert", "-U", "-O", "qcow2", path, made[target]], check=True)
        Path(made[target]).chmod(0o666)
    return made


def files_copied(scene: Scene) -> dict[str, str]:
    made = {target: f"{scene.bare.directory}/cp-{target}.qcow2" for target in scene.sources()}
    for target, path in scene.sources().items():
        shutil.copy(path, made[target])
        Path(made[target]).chmod(0o666)
    return made


def unrelated(scene: Scene) -> dict[str, str]:
    made = {target: f"{scene.bare.directory}/new-{target}.qcow2" for target in scene.sources()}
    for path in made.values():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        Path(path).chmod(0o666)
    return made


def overlays_of_an_old_one(scene: Scene) -> dict[str, str]:
    made = {}
    for disk in scene.tree().find("root").disks:
        made[disk.target] = f"{scene.bare.directory}/over-{disk.target}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.path, "-F", "qcow2", made[disk.target]], check=True
        )
        Path(made[disk.target]).chmod(0o666)
    return made


OLD = [first_disks, a_checkpoints_own, one_disk_only, before_a_merge, before_a_restore]
NEW = [copies, files_copied, unrelated, overlays_of_an_old_one]
Definition = Callable[[Scene], dict[str, str]]


def kept(scene: Scene, written: dict[str, bytes]) -> None:
    """Every image that the VM wrote last still has its content."""
    for path, content in written.items():
        assert read(path) == content


@pytest.mark.parametrize("running", [False, True], ids=["off", "running"])
@pytest.mark.parametrize("definition", OLD)
def test_a_definition_of_old_is_pointed_back(three_branches: Scene, definition: Definition, running: bool) -> None:
    """Broken: all checkpoints and everything written since would be removed, although no image was written."""
    scene = three_branches
    sources = definition(scene)
    last = scene.sources()
    if running:
        scene.start()
    define(scene, sources)
    scene.look() if running else None
    plan = scene.examine()
    assert plan.found
    assert all(item.remedy.does and not item.remedy.choices for item in plan.items if item.remedy.wrong), plan
    assert scene.examine(repair=True).left is False
    assert scene.complaints() == ()
    assert scene.examine(repair=True).items == ()
    if running:
        scene.stop()
    assert scene.sources() == last
    scene.check()
    scene.create("after")
    scene.check()


@pytest.mark.parametrize("running", [False, True], ids=["off", "running"])
@pytest.mark.parametrize("definition", NEW)
def test_a_definition_with_other_images_is_a_question(three_branches: Scene, definition: Definition, running: bool) -> None:
    """Broken: one of two images that both may have data nowhere else would be removed, or forgotten."""
    scene = three_branches
    sources, last = definition(scene), scene.sources()
    written = {path: read(path) for path in [*last.values(), *sources.values()]}
    if running:
        scene.start()
    define(scene, sources)
    found = scene.examine(repair=True)
    assert (found.left, found.mended) == (True, ())
    assert {choice.give_up for item in found.items for choice in item.remedy.choices} >= set(written)
    kept(scene, written)
    scene.examine(repair=True, give_up=list(sources.values()))
    kept(scene, written)
    assert scene.complaints() == ()
    if running:
        scene.stop()
    assert scene.sources() == last
    for path in sources.values():
        Path(path).unlink()
    scene.check()


@pytest.mark.parametrize("definition", NEW)
def test_the_other_images_are_taken(three_branches: Scene, definition: Definition) -> None:
    """Broken: the image that was given up would be gone at once, or the VM could never be checkpointed again."""
    scene = three_branches
    sources, last = definition(scene), scene.sources()
    contents = {path: Path(path).read_bytes() for path in last.values()}
    define(scene, sources)
    assert scene.examine(repair=True, give_up=list(last.values())).left is False
    assert scene.complaints() == ()
    assert scene.sources() == sources
    aside = {kept.aside.original: kept.aside.path for kept in scene.examine().quarantine}
    assert {path: Path(aside[path]).read_bytes() for path in last.values()} == contents
    scene.look()
    scene.check()
    scene.create("after")
    scene.check()


@pytest.mark.parametrize("running", [False, True], ids=["was started", "runs"])
def test_a_vm_that_wrote_to_an_old_image(three_branches: Scene, running: bool) -> None:
    """Broken: what it wrote last would be removed because it no longer names it."""
    scene = three_branches
    last = scene.sources()
    written = {path: Path(path).read_bytes() for path in last.values()}
    define(scene, first_disks(scene))
    scene.start()
    scene.write("vda", 0, 4096, 77)
    scene.write("vdb", 0, 4096, 77)
    if not running:
        scene.stop()
    found = scene.examine(repair=True)
    assert found.left
    assert {path: Path(path).read_bytes() for path in last.values()} == written
    assert len(scene.tree().checkpoints) == 5
    choices = {choice.give_up for item in found.items for choice in item.remedy.choices}
    assert (set(first_disks(scene).values()) <= choices) is not running
    if running:
        scene.stop()
    scene.examine(repair=True, give_up=list(first_disks(scene).values()))
    assert scene.sources() == last
    assert scene.complaints() == ()
    assert {node.consistency.value for node in scene.tree().checkpoints} == {"crash"}


def test_a_definition_of_before_a_merge_whose_image_is_there_still(three_branches: Scene) -> None:
    """Broken: old data of a merged image would hide what was written since, or the newest image be removed."""
    scene = three_branches
    saved = scene.sources()
    stale = {path: Path(path).read_bytes() for path in saved.values()}
    scene.delete("here")
    scene.change()
    last = scene.sources()
    for path, content in stale.items():
        Path(path).write_bytes(content)
        Path(path).chmod(0o666)
    define(scene, saved)
    scene.complaints(repair=True)
    assert {path: read(path) for path in last.values()} == {last[target]: scene.head[target] for target in last}


def test_no_verb_writes_while_the_definition_is_an_old_one(three_branches: Scene) -> None:
    """Broken: a start, a deletion or a checkpoint would write to the image of a checkpoint."""
    scene = three_branches
    last = scene.sources()
    define(scene, a_checkpoints_own(scene))
    for verb in (
        lambda: scene.create("x"),
        lambda: scene.delete("middle"),
        lambda: start(scene.context, scene.name),
    ):
        with pytest.raises(RefusedError) as refused:
            verb()
        assert f"quiesce doctor {scene.name}" in str(refused.value.hint)
        assert "--give-up" not in str(refused.value.hint)
    scene.complaints(repair=True)
    assert scene.sources() == last
    scene.check()


def test_an_undefined_vm_gets_what_virsh_put_above(three_branches: Scene) -> None:
    """Broken: the VM would be defined on an image that it did not write last."""
    scene = three_branches
    scene.start()
    scene.virsh("snapshot-create-as", scene.name, "theirs", "--disk-only", "--no-metadata")
    scene.change()
    scene.stop()
    last = scene.sources()
    scene.bare.domain.undefine()
    doctor(scene.context, scene.name, repair=True)
    scene.bare.domain = scene.bare.connection.lookupByName(scene.name)
    assert scene.sources() == last
    scene.check()


@pytest.mark.parametrize("after", range(1, 5))
def test_undefined_during_a_deletion(three_branches: Scene, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the VM would be defined at an older checkpoint, and its newest data be in a file that nobody names."""
    scene, calls = three_branches, 0
    real = Merges.record

    def undefine_then(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            scene.bare.domain.undefine()
        real(*arguments)

    monkeypatch.setattr("quiesce.disks.merges._record", undefine_then)
    with contextlib.suppress(QuiesceError):
        scene.delete("here", "middle")
    for name in ("here", "middle"):
        scene.nodes.pop(name, None)
    doctor(scene.context, scene.name, repair=True)
    scene.bare.domain = scene.bare.connection.lookupByName(scene.name)
    doctor(scene.context, scene.name, repair=True)
    assert {target: read(path) for target, path in scene.sources().items()} == scene.head
    scene.check()


class Merges:
    """What the test replaces."""

    from quiesce.disks.merges import _record

    record = staticmethod(_record)


def test_a_template_that_is_not_mounted_costs_nothing(scene: Scene) -> None:
    """Broken: a template on another filesystem that is not mounted would cost every checkpoint."""
    template, aside = scene.bare.directory / "templates", scene.bare.directory / "aside"
    template.mkdir()
    for target, path in first_disks(scene).items():
        Path(path).rename(template / f"{target}.qcow2")
        below = ["-b", template / f"{target}.qcow2", "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, path], check=True)
        Path(path).chmod(0o666)
    scene.create("one")
    scene.create("two")
    template.rename(aside)
    template.mkdir()
    found = scene.examine(repair=True, give_up=["one", "two"])
    assert found.left
    assert any("is it mounted?" in text for text in found.found)
    assert [node.name for node in scene.tree().checkpoints] == ["one", "two"]
    assert not (scene.bare.directory / NAME).exists()
    template.rmdir()
    aside.rename(template)
    assert scene.complaints(repair=True) == ()
    assert faults(scene, scene.nodes, scene.head).lost == ()

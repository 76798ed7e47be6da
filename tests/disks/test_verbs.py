"""Each verb on real disks without a guest, by content: what the random campaigns do not look at."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab.bare import Bare, directory
from lab.forest import TARGETS, Disks, Forest, check, read
from quiesce.catalog import exported
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import ConsistencyError, NameTakenError, NotFoundError, QuiesceError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Checkpoint, Kind
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import Deleted, delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.rebuild import rebuild
from quiesce.operations.restore import restore
from tests.host import Quiesce, interruptible


class Scene(Forest):
    """A forest that keeps count of what ought to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.nodes: dict[str, Disks] = {}
        self.head: Disks = {}
        self._number = 0
        self.change()

    def keep(self) -> None:
        """All as it is, for `begin_again`. The VM is off."""
        self.save("grown")
        self._kept = dict(self.nodes), dict(self.head), self._number

    def begin_again(self) -> None:
        """Whatever became of it, and of its VM."""
        with contextlib.suppress(libvirt.libvirtError):
            found = self.bare.connection.lookupByName(self.name)
            with contextlib.suppress(libvirt.libvirtError):  # off
                found.destroy()
            found.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        nodes, head, self._number = self._kept
        self.nodes, self.head = dict(nodes), dict(head)
        self.put_back("grown")

    def reference(self, name: str) -> CheckpointReference:
        return CheckpointReference(self.name, name)

    def change(self) -> None:
        self._number += 1
        for target, at in zip(TARGETS, (self._number % 7, self._number % 5), strict=True):
            self.write(target, at * 128 * 1024, 64 * 1024, self._number)
        self.look()

    def look(self) -> None:
        self.flush()
        self.head = {target: read(path) for target, path in self.sources().items()}

    def create(self, name: str, **options: object) -> None:
        checkpoint(self.context, self.name, **({"name": name, "required": Consistency.CRASH} | options))  # type: ignore[arg-type]
        self.nodes[name] = dict(self.head)
        self.change()

    def back(self, name: str) -> None:
        restore(self.context, self.reference(name), discard_current=True)
        self.head = dict(self.nodes[name])
        self.change()

    def delete(self, *names: str, subtree: bool = False) -> Deleted:
        done = delete(self.context, [self.reference(name) for name in names], subtree=subtree)
        for node in done.checkpoints:
            del self.nodes[node.name]
        return done

    def check(self) -> None:
        check(self, self.nodes, self.head)

    def hidden(self) -> set[str]:
        return {node.name for node in self.tree().nodes if node.hidden}

    def complaints(self, *, repair: bool = False) -> tuple[str, ...]:
        (found,) = doctor(self.context, self.name, repair=repair)
        return found.found

    def virsh(self, *arguments: str) -> None:
        subprocess.run(["virsh", "-q", "-c", "qemu:///system", *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with directory() as path:
        scene = Scene(path)
        yield scene
        scene.remove()


@pytest.fixture(scope="session")
def grown() -> Iterator[Scene]:
    """root - middle - (here - now, left, right), made once for all tests that begin with it."""
    with directory() as path:
        scene = Scene(path)
        for name in ("root", "middle", "here"):
            scene.create(name)
        for name in ("left", "right"):
            scene.back("middle")
            scene.create(name)
        scene.back("here")
        scene.keep()
        yield scene
        scene.begin_again()
        scene.remove()


@pytest.fixture
def three_branches(grown: Scene) -> Scene:
    grown.begin_again()
    return grown


@pytest.fixture(params=[True, False], ids=["running", "off"])
def power(request: pytest.FixtureRequest, three_branches: Scene) -> bool:
    if request.param:
        three_branches.start()
    return request.param


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


def test_off_is_labelled_by_how_it_went_off(scene: Scene) -> None:
    with pytest.raises(ConsistencyError, match="not known to have shut itself down"):
        checkpoint(scene.context, scene.name, name="no")
    scene.check()
    scene.create("crash")
    assert scene.tree().find("crash").consistency is Consistency.CRASH
    assert scene.tree().find("crash").off


def test_off_since_a_restore_is_worth_what_was_restored(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a VM that had shut down cleanly, then was put back to a crash image, would be called application-consistent."""
    scene.create("crash")
    monkeypatch.setattr("quiesce.hypervisor.vm.Vm.shut_itself_down", lambda _: True)
    restore(scene.context, scene.reference("crash"), discard_current=True)
    scene.look()
    again = checkpoint(scene.context, scene.name, name="again", required=Consistency.CRASH)
    assert again.consistency is Consistency.CRASH
    scene.nodes["again"] = dict(scene.head)
    scene.change()
    written = checkpoint(scene.context, scene.name, name="written")
    assert written.consistency is Consistency.APPLICATION
    scene.nodes["written"] = dict(scene.head)
    scene.check()


def test_standard_is_restored_running_and_merges_like_any_other(scene: Scene) -> None:
    scene.start(paused=False)
    scene.create("one", type=Type.STANDARD)
    node = scene.tree().find("one")
    assert (node.kind, node.consistency) == (Kind.STANDARD, Consistency.CRASH)
    scene.create("two")
    scene.stop()
    restored = restore(scene.context, scene.reference("one"))
    assert restored.started
    assert scene.running
    assert restored.safety
    scene.nodes[restored.safety.name] = dict(scene.head)
    scene.head = dict(scene.nodes["one"])
    scene.check()
    scene.delete("one")  # the memory goes with it
    scene.check()
    assert not list(scene.bare.directory.glob("*.memory"))


def test_disabled_and_settings_of_the_vm(scene: Scene) -> None:
    scene.catalog.settings.put(scene.key, Settings(type=Type.DISABLED))
    with pytest.raises(RefusedError, match="disabled"):
        checkpoint(scene.context, scene.name, name="x", required=Consistency.CRASH)
    scene.catalog.settings.put(scene.key, Settings(require=Consistency.CRASH, exclude=("vdb",)))
    node = checkpoint(scene.context, scene.name, name="x")
    assert (node.excluded, [disk.target for disk in node.disks]) == (("vdb",), ["vda"])
    assert any("vdb" in warning for warning in node.warnings)


def test_an_excluded_disk_stays_as_it_is(scene: Scene) -> None:
    scene.create("both")
    scene.create("vda alone", exclude=("vdb",))
    scene.nodes["vda alone"].pop("vdb")
    scene.create("both again")
    said: list[object] = []
    object.__setattr__(scene.context, "emit", said.append)
    result = restore(scene.context, scene.reference("vda alone"))
    assert any("vdb" in str(event) for event in said)
    assert result.safety
    assert result.safety.excluded == ("vdb",)
    scene.nodes[result.safety.name] = {"vda": scene.head["vda"]}
    scene.head["vda"] = scene.nodes["vda alone"]["vda"]
    scene.check()


def test_disks_in_different_pools(tmp_path: Path, quiesce: Quiesce) -> None:
    """Each overlay lies beside its own image."""
    with directory() as one, directory() as two:
        for path in (one, two):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path / "disk.qcow2", "1M"], check=True)
        disks = "".join(
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}/disk.qcow2'/>"
            f"<target dev='{target}'/></disk>"
            for path, target in ((one, "vda"), (two, "vdb"))
        )
        bare = Bare(one, disk_xml=disks, disks=0, start=False)
        try:
            for name in ("a", "b", "c"):
                quiesce("checkpoint", bare.name, "--name", name, "--require", "crash")
            now = {disk.target: Path(str(disk.path)).parent for disk in domain_xml.disks(bare.domain.XMLDesc(2))}
            assert now == {"vda": one, "vdb": two}
            quiesce("restore", f"{bare.name}@a", "--discard-current")
            quiesce("delete", f"{bare.name}@*")
            assert sorted(path.name for path in two.glob("*.qcow2")) == ["disk.qcow2"]
            assert not list(one.glob("quiesce-*.json"))
        finally:
            bare.remove()


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
    """virsh merged the VM's image into its checkpoint's: that one is lost, and is said to be; no other is."""
    scene = three_branches
    scene.start()
    here = scene.tree().find("here")
    for target in TARGETS:
        scene.virsh("blockcommit", scene.name, target, "--base", here.image(target).path, "--active", "--pivot", "--wait")
    scene.look()
    with pytest.raises(RefusedError):
        checkpoint(scene.context, scene.name, name="x", required=Consistency.CRASH)
    found = scene.complaints()
    assert any("'here' can no longer be restored" in text for text in found)
    assert not any("'middle' can" in text or "'left' can" in text for text in found)
    scene.complaints(repair=True)
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
    assert scene.complaints() == ()
    scene.check()


def test_doctor_a_file_is_gone(three_branches: Scene) -> None:
    scene = three_branches
    Path(scene.tree().find("left").disks[0].path).unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        restore(scene.context, scene.reference("left"))
    assert ["'left' can no longer be restored" in text for text in scene.complaints()] == [True]
    scene.complaints(repair=True)
    assert scene.complaints() == ()
    del scene.nodes["left"]
    scene.check()


def test_doctor_an_orphan_and_a_manifest(three_branches: Scene) -> None:
    scene = three_branches
    stray = f"{scene.bare.directory}/{scene.name}.vda.0123456789ab.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", stray, "1M"], check=True)
    scene.catalog.images.note(scene.key, stray)
    (scene.bare.directory / f"quiesce-{scene.tree().find('left').id}.json").unlink()
    assert len(scene.complaints()) == 2
    scene.complaints(repair=True)
    assert scene.complaints() == ()
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
    shutil.rmtree(scene.bare.directory / "catalog")
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


def test_one_operation_at_a_time(scene: Scene, quiesce: Quiesce) -> None:
    """Who waits is told for whom; a dead holder's lock is free; looking disturbs nobody."""
    scene.create("one")
    with scene.context.vm(scene.name) as vm, scene.context.locked(vm, "export"):
        with pytest.raises(QuiesceError, match=f"quiesce export {scene.name} \\(process") as raised:
            scene.delete("one")
        assert raised.value.exit_code == 9
        assert [node.name for node in scene.tree().checkpoints] == ["one"]
    scene.delete("one")
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

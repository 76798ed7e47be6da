"""Checkpoints on real disks without a guest, by content: labels, settings, excluded disks and pools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.bare import Bare, directory
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import ConsistencyError, QuiesceError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Kind
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.restore import restore
from tests.disks.scene import Scene
from tests.host import Quiesce


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
    with pytest.raises(RefusedError, match="disable checkpoints"):
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

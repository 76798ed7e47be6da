"""`catalog rebuild`, `doctor --repair` and `delete`, when somebody else writes beside the images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import manifest
from quiesce.catalog.store import Catalog
from quiesce.disks import images
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import QuiesceError
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, DiskImage, MachineFile, Role
from quiesce.operations import doctor as doctoring
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.rebuild import rebuild
from quiesce.operations.tree import tree
from tests.samples import node
from tests.strategies import almost, examples
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.world import World, uuid_of

VICTIM = "/any/file"
FOREIGN = "f" * 32


@pytest.fixture
def vm(world: World) -> FakeVm:
    vm = world.vm()
    world.take(vm)
    world.host.storage.make(VICTIM)
    return vm


@pytest.fixture
def lost(world: World, tmp_path: Path) -> Iterator[World]:
    """The same host, and a catalog that knows nothing and has another key."""
    catalog = Catalog(f"sqlite:///{tmp_path}/another/catalog.db")
    yield World(world.host, catalog, guests=world.guests)
    catalog.close()


def described(**others: Any) -> Checkpoint:
    """A checkpoint of `vm` that nobody took."""
    disks = (DiskImage("vda", "/i/web1.qcow2", "qcow2"),)
    return replace(node(FOREIGN, name="theirs", vm_uuid=uuid_of("web1"), disks=disks), **others)


def put(world: World, value: Any, *, place: str = "/i", id: str = FOREIGN) -> str:
    """A manifest that somebody else wrote."""
    path = f"{place}/{manifest.name(id)}"
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    world.host.storage.write(path, content)
    return path


def body(
    checkpoint: Checkpoint, xml: str = f"<domain><name>evil</name><uuid>{uuid_of('web1')}</uuid></domain>"
) -> dict[str, Any]:
    return json.loads(manifest.dump(manifest.Manifest(checkpoint, xml), _Any())) | {"seal": "0" * 64}


class _Any:
    def of(self, _content: bytes) -> str:
        return ""


def recorded(world: World, vm: FakeVm) -> list[str]:
    return [found.name for found in world.tree(vm).checkpoints]


# -- whose word counts


def test_a_manifest_without_our_seal_is_not_believed(world, vm):
    """Broken: whoever writes beside the images could have checkpoints recorded that nobody took."""
    path = put(world, body(described()))
    assert rebuild(world.context).checkpoints == ()
    assert any(path in text and "no seal" in text for text in world.warnings())
    assert recorded(world, vm) == ["a"]


def test_a_catalog_whose_key_is_lost_too_is_made_again_if_its_user_says_so(world, vm, lost):
    """Broken: with the key, all checkpoints would be lost."""
    assert rebuild(lost.context).checkpoints == ()
    assert [found.name for found in rebuild(lost.context, accept_unsigned=True).checkpoints] == ["a"]
    assert lost.tree(vm).nodes == world.tree(vm).nodes
    assert doctor(lost.context, "web1", repair=True)[0].mended == ("the manifest of 'a' was written anew",)
    assert doctor(lost.context, "web1", repair=False)[0].found == ()
    lost.restore(vm, discard_current=True)
    delete(lost.context, [CheckpointReference("web1", "*")])
    assert lost.names(vm) == []


def test_the_definition_of_a_manifest_without_a_seal_is_never_used(world, vm, lost):
    """Broken: `restore` would run the emulator that somebody else named."""
    path = images.manifest_path(world.context, vm, world.tree(vm).find("a"))
    value = json.loads(world.host.storage.read(path))
    value["domain_xml"] = vm.xml.replace("<devices>", "<devices><emulator>/tmp/evil</emulator>")
    put(world, value, id=value["checkpoint"]["id"])
    rebuild(lost.context, accept_unsigned=True)
    assert "evil" not in lost.catalog.checkpoints.domain_xml(value["checkpoint"]["id"])
    lost.restore(vm, discard_current=True)
    assert "evil" not in vm.xml
    assert domain_xml.identity(vm.xml).name == "web1"


@pytest.mark.parametrize(
    "checkpoint",
    [
        described(disks=(DiskImage("vda", "/etc/shadow", "raw"),)),
        described(files=(MachineFile(Role.NVRAM, "/etc/shadow"),)),
        described(disks=(DiskImage("vdz", "/i/web1.qcow2", "qcow2"),)),
        described(vm_uuid="uuid-nobody"),
    ],
    ids=["disk", "file", "target", "vm"],
)
def test_a_manifest_without_a_seal_names_only_files_of_its_vm(checkpoint, world, vm, lost):
    """Broken: a guest restored to it would read any file of the host as its disk."""
    path = put(lost, body(checkpoint))
    assert FOREIGN not in {found.id for found in rebuild(lost.context, accept_unsigned=True).checkpoints}
    assert any(path in text for text in lost.warnings())


def test_the_memory_of_a_manifest_without_a_seal_is_left_out(world, vm, lost):
    """Broken: libvirt would resume the VM with the definition in that file."""
    put(lost, body(described(files=(MachineFile(Role.MEMORY, "/i/x.memory"), MachineFile(Role.TPM, "/i/x.tpm")))))
    rebuild(lost.context, accept_unsigned=True)
    assert [file.role for file in lost.tree(vm).find("theirs").files] == [Role.TPM]


def test_a_manifest_under_another_name_is_refused(world, vm):
    """Broken: one that was sealed for a checkpoint would stand for another."""
    path = images.manifest_path(world.context, vm, world.tree(vm).find("a"))
    moved = put(world, world.host.storage.read(path))
    world.host.storage.remove(path)
    rebuild(world.context)
    assert any(moved in text and "another checkpoint" in text for text in world.warnings())


# -- what is removed


@pytest.mark.parametrize("repair", [True, False], ids=["doctor", "delete"])
def test_what_a_manifest_lists_is_not_removed(repair, world, vm, lost):
    """Broken: root would remove any file that somebody else names."""
    value = body(described()) | {"made": [VICTIM]}
    put(world, value)
    ours = world.host.storage.make("/any/web1.vda.0123456789ab.qcow2")  # by its name; but no disk of the VM is there
    for id, path in (("d" * 32, ours), ("e" * 32, VICTIM)):
        put(world, body(described(id=id, name=id, disks=(DiskImage("vda", path, "raw"),))), place="/any", id=id)
    rebuild(lost.context, ["/any"], accept_unsigned=True)
    assert {"d" * 32, "e" * 32} <= {found.id for found in lost.tree(vm).nodes}
    if repair:
        doctor(lost.context, None, repair=True)
    delete(lost.context, [CheckpointReference("web1", "*")])
    doctor(lost.context, "web1", repair=True)
    assert {VICTIM, ours, "/i/web1.qcow2"} <= world.host.storage.files.keys()


def test_two_vms_that_claim_one_file_have_it_both_kept(world, vm, lost):
    """Broken: a manifest of one VM could have the images of another one removed."""
    other = world.vm("db1")
    world.take(other)
    world.take(other, "b")
    image = world.tree(other).find("b").disks[0].path
    put(lost, body(described(disks=(DiskImage("vda", image, "qcow2"),))))
    rebuild(lost.context, accept_unsigned=True)
    assert not lost.catalog.images.has("host1", image)
    for name in ("web1", "db1"):
        delete(lost.context, [CheckpointReference(name, "*")])
        doctor(lost.context, name, repair=True)
    assert world.host.storage.has(image)


# -- what is defined


def test_a_repair_of_all_vms_defines_none(world, vm):
    """Broken: VMs that nobody asked about would come back, on the word of a file."""
    vm.power_off()
    world.host.vms.remove(vm)
    (found,) = doctor(world.context, None, repair=True)
    assert "`quiesce doctor web1 --repair` defines it again" in (found.items[0].remedy.advice or "")
    assert (found.mended, found.left, world.host.vms) == ((), True, [])
    assert doctor(world.context, "web1", repair=True)[0].mended == (
        "web1 was defined again, with the images that it wrote last",
    )


def test_one_vm_that_breaks_quiesce_does_not_hide_the_others(world, vm, monkeypatch):
    """Broken: one VM's fault would leave all others unexamined."""
    world.take(world.vm("db1"))
    real = doctoring.survey_with_neighbours

    def broken(context: Any, rounds: Any, asked: FakeVm) -> Any:
        if asked.name == "db1":
            raise KeyError("/i/gone.qcow2")
        return real(context, rounds, asked)

    monkeypatch.setattr(doctoring, "survey_with_neighbours", broken)
    rows = {row.vm: row.found for row in doctor(world.context, None, repair=True)}
    assert rows["web1"] == ()
    assert "KeyError('/i/gone.qcow2')" in rows["db1"][0]


# -- parents in a circle


def test_hidden_parents_in_a_circle_end(world, vm, lost):
    """Broken: `tree` would never end."""
    ids = ["1" * 32, "2" * 32, "3" * 32]
    for place, id in enumerate(ids):
        hidden = described(id=id, name=f"n{place}", parent=ids[place - 1], hidden=place < 2)
        put(lost, body(hidden), id=id)
    rebuild(lost.context, accept_unsigned=True)
    assert [found.name for found in tree(lost.context, "web1").checkpoints] == ["n2", "a"]
    doctor(lost.context, "web1", repair=True)
    delete(lost.context, [CheckpointReference("web1", "*")])


# -- anything at all


@given(st.just(json.loads(json.dumps(body(described())))).flatmap(almost), st.booleans())
@examples(60)
def test_whatever_is_beside_the_images_no_verb_hangs_or_breaks(tmp_path_factory, value, accept):
    """Broken: a file beside the images would end `rebuild`, `tree` or `doctor` in a traceback, or cost a file of somebody."""
    directory = tmp_path_factory.mktemp("catalog")
    catalog = Catalog(f"sqlite:///{directory}/catalog.db")
    world = World(FakeHost(), catalog)
    vm = world.vm()
    world.host.storage.make(VICTIM)
    put(world, value)
    try:
        rebuild(world.context, ["/any"], accept_unsigned=accept)
        tree(world.context, "web1")
        with suppress(QuiesceError):
            doctor(world.context, None, repair=True)
        with suppress(QuiesceError):
            delete(world.context, [CheckpointReference("web1", "*")])
        assert {VICTIM, "/i/web1.qcow2"} <= world.host.storage.files.keys()
        assert vm.xml.count("<domain") == 1
        assert len(world.host.vms) == 1
    finally:
        catalog.close()

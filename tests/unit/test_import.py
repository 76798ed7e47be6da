"""Imports of exports that a stranger changed, on a host in memory (for real: tests/disks/test_import_of_a_stranger.py)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.catalog import exported
from quiesce.catalog.store import Catalog
from quiesce.hypervisor.lookups import Presence
from quiesce.model.errors import NameTakenError, QuiesceError, RefusedError, UsageError
from quiesce.model.names import CheckpointReference
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from tests.strategies import almost, examples
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.world import World

MANIFEST = f"/e/{exported.NAME}"
DEFINITION = f"/e/{exported.DOMAIN}"


@pytest.fixture
def stranger(world: World) -> World:
    """With an export in /e."""
    return with_an_export(world)


def with_an_export(world: World) -> World:
    vm = world.vm()
    world.take(vm)
    export(world.context, CheckpointReference("web1", "a"), "/e")
    return world


def manifest(world: World) -> Any:
    return json.loads(world.host.storage.files[MANIFEST].content)


def write(world: World, value: Any) -> None:
    world.host.storage.files[MANIFEST].content = json.dumps(value).encode()


def define(world: World, definition: bytes) -> None:
    """Another definition, with the right checksum."""
    world.host.storage.files[DEFINITION].content = definition
    value = manifest(world)
    (listed,) = [file for file in value["files"] if file["name"] == exported.DOMAIN]
    listed |= {"bytes": len(definition), "sha256": hashlib.sha256(definition).hexdigest()}
    write(world, value)


def state(world: World) -> tuple[dict[str, Any], list[str]]:
    return copy.deepcopy(world.host.storage.files), [vm.name for vm in world.host.vms]


CHANGES: dict[str, Callable[[Any], object]] = {
    "a disk without a checksum": lambda value: value["files"].remove(value["files"][0]),
    "a checksum twice": lambda value: value["files"].append(value["files"][0]),
    "a file that nothing needs": lambda value: value["files"].append({**value["files"][0], "name": "x"}),
    "two disks in one file": lambda value: value["disks"].append({**value["disks"][0], "target": "vdb"}),
    "a disk twice": lambda value: value["disks"].append(value["disks"][0]),
    "no disk": lambda value: value.update(disks=[], files=value["files"][1:]),
    "a disk of a pebibyte": lambda value: value["disks"][0].update(capacity=2**50),
    "a disk of less than nothing": lambda value: value["disks"][0].update(capacity=-1),
    "a file of less than nothing": lambda value: value["files"][0].update(bytes=-1),
    "no checksum": lambda value: value["files"][0].update(sha256=""),
    "UEFI variables that the definition has not": lambda value: value.update(nvram="vda.qcow2"),
    "many files": lambda value: value.update(files=value["files"] * 1000),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_does_not_fit(what: str, stranger: World) -> None:
    """Broken: a disk would be imported that nobody has compared with a checksum, or that fills the storage."""
    value = manifest(stranger)
    CHANGES[what](value)
    write(stranger, value)
    before = state(stranger)
    with pytest.raises(UsageError):
        import_vm(stranger.context, "/e", to="/t", name="web2")
    assert state(stranger) == before


@pytest.mark.parametrize("path", ["t", "", "/", "//", "/t/../i", "/t/.", "/t\n", "/\x1b[31m", "/\udcff"])
def test_directories_are_absolute_and_plain(path: str, stranger: World) -> None:
    """Broken: images would go, or come from, where nobody meant."""
    before = state(stranger)
    for source, to in (("/e", path), (path, "/t")):
        with pytest.raises(UsageError, match="absolute path"):
            import_vm(stranger.context, source, to=to, name="web2")
    with pytest.raises(UsageError, match="absolute path"):
        export(stranger.context, CheckpointReference("web1", "a"), path)
    assert state(stranger) == before


def test_images_do_not_go_into_the_export(stranger: World) -> None:
    """Broken: the export would not stay as it is."""
    before = state(stranger)
    with pytest.raises(UsageError, match="directory of the export"):
        import_vm(stranger.context, "/e/", to="//e", name="web2")
    assert state(stranger) == before


def with_devices(world: World, more: str) -> None:
    text = world.host.storage.files[DEFINITION].content
    define(world, text.replace(b"</devices>", more.encode() + b"</devices>"))


@pytest.mark.parametrize("lack", [Presence.MISSING, Presence.STOPPED])
def test_what_the_host_lacks_for_the_new_vm_is_said_before_anything_is_copied(lack: Presence, stranger: World) -> None:
    """Broken: hours later, when everything is copied, the VM would not start."""
    with_devices(stranger, "<interface type='network'><source network='lan'/></interface>")
    stranger.host.lacking["lan"] = lack
    before = state(stranger)
    with pytest.raises(RefusedError, match=r"web2 could not start: .*lan"):
        import_vm(stranger.context, "/e", to="/t", name="web2", start=True)
    assert state(stranger) == before
    import_vm(stranger.context, "/e", to="/t", name="web2")
    assert [text for text in stranger.warnings() if "lan" in text and "web2 does not start" in text]


def test_another_emulator_than_in_the_export_is_announced(stranger: World) -> None:
    """Broken: an administrator would not know that the VM runs with another QEMU than before."""
    with_devices(stranger, "<emulator>/opt/qemu/qemu-kvm</emulator>")
    import_vm(stranger.context, "/e", to="/t", name="web2")
    (text,) = [text for text in stranger.warnings() if "emulator" in text and "in the export" in text]
    assert "/opt/qemu/qemu-kvm" in text
    assert "/usr/bin/qemu-system-x86_64" in text


def test_a_file_that_somebody_makes_meanwhile_is_not_removed(stranger: World) -> None:
    """Broken: an import that fails because the file is there would remove it, and with it another VM's disk."""
    storage = stranger.host.storage
    copy_file = storage.copy_file

    def late(*arguments: Any) -> Any:
        storage.make("/t/web2.vda.qcow2", blocks={0: "somebody's"})
        return copy_file(*arguments)

    storage.copy_file = late  # type: ignore[method-assign]
    with pytest.raises(NameTakenError):
        import_vm(stranger.context, "/e", to="/t", name="web2")
    assert storage.blocks("/t/web2.vda.qcow2") == {0: "somebody's"}
    assert [vm.name for vm in stranger.host.vms] == ["web1"]


def test_damage_is_found_before_anything_is_made(stranger: World) -> None:
    """Broken: a backup that rotted would be copied for an hour first."""

    def fail() -> None:
        raise AssertionError("something was changed")

    stranger.host.storage.files["/e/vda.qcow2"].blocks[0] = "at FIRST"
    stranger.host.on_step = fail
    with pytest.raises(QuiesceError, match="is damaged"):
        import_vm(stranger.context, "/e", to="/t", name="web2")


def test_what_was_copied_is_compared_again(stranger: World) -> None:
    """Broken: a disk that is swapped after it was checked would be imported."""
    storage = stranger.host.storage
    copy_file = storage.copy_file

    def late(*arguments: Any) -> Any:
        storage.files["/e/vda.qcow2"].below = "/i/secret"
        return copy_file(*arguments)

    storage.copy_file = late  # type: ignore[method-assign]
    with pytest.raises(QuiesceError, match="is damaged"):
        import_vm(stranger.context, "/e", to="/t", name="web2")
    assert not [path for path in storage.files if path.startswith("/t/")]


# -- whatever a stranger sends


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('catalog')}/catalog.db")
    world = with_an_export(World(FakeHost(), catalog))
    yield world, dict(world.host.storage.files), list(world.host.vms)
    catalog.close()


def attempt(honest: tuple[World, dict[str, Any], list[FakeVm]], change: Callable[[World], None]) -> None:
    """Imports what `change` made of the export. It works, or fails with an error for users and changes nothing."""
    world, files, vms = honest
    world.host.storage.files = {path: copy.copy(file) for path, file in files.items()}
    world.host.vms = list(vms)
    change(world)
    before = state(world)
    with within(10):
        try:
            import_vm(world.context, "/e", to="/t", name="web2")
        except QuiesceError:
            assert state(world) == before
        else:
            assert world.content(world.host.vms[-1]) == {0: "at first"}
    with world.catalog.database.transaction() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM operations WHERE finished IS NULL")).scalar() == 0


@examples(120)
@given(st.data())
def test_whatever_manifest_a_stranger_sends(honest: Any, data: st.DataObject) -> None:
    """Broken: a user would see a traceback, or something of a refused export would be left."""
    value = json.loads(honest[1][MANIFEST].content)
    attempt(honest, lambda world: write(world, data.draw(almost(value))))


@examples(120)
@given(st.data())
def test_whatever_bytes_a_stranger_sends(honest: Any, data: st.DataObject) -> None:
    """Broken: a user would see a traceback, or something of a refused export would be left."""
    name = data.draw(st.sampled_from([MANIFEST, DEFINITION]))
    content = honest[1][name].content
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    part = st.binary(max_size=10) | st.sampled_from([b"[" * 100_000, b"9" * 10_000, b"<", b"\0", b"\xff", b'"', b"{}", b"null"])
    content = content[:start] + data.draw(part) + content[end:]
    attempt(
        honest,
        lambda world: (
            define(world, content) if name == DEFINITION else world.host.storage.files[MANIFEST].__setattr__("content", content)
        ),
    )

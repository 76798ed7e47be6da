"""disks/machine_files.py, and what is removed of an export that was not finished."""

from __future__ import annotations

import pytest

from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import WriteExport
from quiesce.disks import machine_files
from quiesce.model.errors import HypervisorError, NoSpaceError, NotFoundError
from quiesce.model.tree import Role
from quiesce.operations import export
from tests.samples import KEY
from tests.unit.conftest import Fake

NVRAM = "<os><nvram>/n/web1.fd</nvram></os>"
TPM = "<tpm><backend type='emulator' version='2.0'><source type='dir' path='/t/web1'/></backend></tpm>"
STATE = "/t/web1/tpm2-00.permall"


@pytest.fixture
def machine(fake: Fake) -> Fake:
    """With UEFI variables and a TPM."""
    fake.vm.xml = fake.vm.xml.replace("</devices>", f"{TPM}</devices>{NVRAM}")
    put(fake, "/n/web1.fd", b"variables")
    put(fake, STATE, b"state")
    return fake


def put(fake: Fake, path: str, content: bytes) -> None:
    fake.host.storage.files[fake.host.storage.make(path, format="raw")].content = content


def test_what_a_machine_is_besides_its_disks(machine):
    """Broken: a restored guest would boot otherwise than it did, or find its disks locked."""
    assert machine_files.read(machine.context, machine.vm) == {Role.NVRAM: b"variables", Role.TPM: b"state"}


@pytest.mark.parametrize("running", [False, True])
def test_a_machine_without_either_has_nothing_to_keep(running, fake):
    """Broken: a VM with a BIOS and no TPM could not be checkpointed."""
    if running:
        fake.vm.start()
    assert machine_files.read(fake.context, fake.vm) == {}


@pytest.mark.parametrize("how", ["the file", "the directory"])
def test_a_machine_that_was_never_started_has_none_yet_but_one_that_runs_must(how, machine):
    """Broken: a new VM could not be checkpointed, or one whose TPM is somewhere else be restored without its keys."""
    del machine.host.storage.files[STATE]
    if how == "the directory":
        machine.host.storage.unreadable["/t/web1"] = "there is none"
    assert machine_files.read(machine.context, machine.vm) == {Role.NVRAM: b"variables"}
    machine.vm.start()
    with pytest.raises(NotFoundError if how == "the file" else HypervisorError):
        machine_files.read(machine.context, machine.vm)


@pytest.mark.parametrize("content", [b"", b"x" * 300_000])
def test_what_was_written_is_what_is_read(content, fake):
    """Broken: a TPM would be given half its state."""
    machine_files.write_small_file(fake.host.storage, "/i/a.tpm", content)
    assert fake.host.storage.read("/i/a.tpm") == content
    machine_files.write_small_file(fake.host.storage, "/i/a.tpm", b"shorter")
    assert fake.host.storage.read("/i/a.tpm") == b"shorter"
    with pytest.raises(NotFoundError, match=r"/i/b\.tpm"):
        fake.host.storage.read("/i/b.tpm")


def test_nothing_is_written_without_room(fake):
    """Broken: a file would be there that holds only part of what it says."""
    fake.host.storage.free = 3
    with pytest.raises(NoSpaceError, match="state"):
        machine_files.write_small_file(fake.host.storage, "/i/a.tpm", b"1234")
    assert "/i/a.tpm" not in fake.host.storage.files
    machine_files.write_small_file(fake.host.storage, "/i/a.tpm", b"123")


def test_a_tpm_gets_its_state_where_it_looks_for_it(machine):
    """Broken: a restored guest would find its disks locked, or the checkpoint lose what it gave."""
    put(machine, "/i/kept.tpm", b"older")
    machine_files.put_tpm(machine.context, machine.vm, "/i/kept.tpm")
    assert machine_files.read(machine.context, machine.vm)[Role.TPM] == b"older"
    del machine.host.storage.files[STATE]  # as before its first start
    machine_files.put_tpm(machine.context, machine.vm, "/i/kept.tpm")
    assert machine.host.storage.files[STATE].content == b"older"
    assert machine.host.storage.files["/i/kept.tpm"].content == b"older"


def test_only_the_named_files_are_removed_and_those_that_are_gone_are_no_error(fake):
    """Broken: what an interrupted export left could not be removed twice, or more than that would be."""
    for name in ("a", "b", "c"):
        put(fake, f"/new/{name}", b"")
    journal = Journal(fake.catalog, KEY, "export")
    journal.intend(WriteExport("/new", ("a", "c", "d")))
    for _ in range(2):
        assert export.recover(fake.context, fake.vm, journal.read()) == "was undone"
    assert fake.host.storage.files.keys() == {"/i/vda.qcow2", "/new/b"}

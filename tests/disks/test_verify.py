"""`quiesce verify` with a real libvirt and a real QEMU, of VMs without a guest: what is left of a copy, and when it goes."""

from __future__ import annotations

import hashlib
import subprocess
import time
import uuid
from pathlib import Path

import libvirt
import pytest

from lab import victim
from lab.machine import TPM_STATES, URI
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.domain_xml import Identity
from quiesce.hypervisor.trial import TrialFiles, trial
from quiesce.model.errors import BusyError, ProofError
from quiesce.model.names import TRIAL_PREFIX
from quiesce.operations.doctor import doctor
from quiesce.operations.tree import tree
from quiesce.operations.verify import verify
from quiesce.wire.messages import PORT_NAME
from tests.definitions import ORDINARY, definition_of
from tests.disks.scene import Scene

GONE_S = 30.0
KILLED = -9
MEMORY = 64 << 20


def copies(connection: libvirt.virConnect) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains() if domain.name().startswith(TRIAL_PREFIX)]


def wait_until_gone(scene: Scene) -> None:
    deadline = time.monotonic() + GONE_S
    while copies(scene.bare.connection):
        assert time.monotonic() < deadline, "a copy is still there"
        time.sleep(0.05)


def while_it_runs(scene: Scene) -> tuple[str, ...]:
    """What doctor finds as soon as the VM is not locked any more: it is locked while the copy is made."""
    deadline = time.monotonic() + GONE_S
    while True:
        try:
            return scene.complaints()
        except BusyError:
            assert time.monotonic() < deadline, "the VM stays locked"
            time.sleep(0.1)


def files(scene: Scene) -> dict[str, tuple[str, int]]:
    """Of all images: hash, and time of the last write."""
    found = sorted(scene.bare.directory.glob("*.qcow2"))
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in found}


def nothing_of_a_copy(scene: Scene) -> None:
    assert copies(scene.bare.connection) == []
    assert list(scene.bare.directory.glob(f"{TRIAL_PREFIX}*")) == []


@pytest.mark.parametrize("kind", ORDINARY)
def test_libvirt_starts_the_copy_of_an_ordinary_vm(kind: str, scene: Scene) -> None:
    """Broken: the copies of VMs as people have them would not start; or something of them would be left."""
    place = scene.bare.directory / "copy"
    place.mkdir()
    disk = place / "vda.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"], check=True)
    identity = Identity(f"{TRIAL_PREFIX}{scene.name[-8:]}", str(uuid.uuid4()))
    named = TrialFiles({"vda": str(disk)}, str(place / "nvram.fd"), str(place / "console.log"))
    made = trial(definition_of(kind), identity=identity, generation=str(uuid.uuid4()), files=named, port=PORT_NAME)
    domain = scene.bare.connection.createXML(made.xml, libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        xml = domain.XMLDesc()
        assert {each.path for each in domain_xml.disks(xml)} - {None} == {str(disk)}
        assert "<interface" not in xml
        assert "vnc" not in xml
        assert f"io.quiesce.trial={identity.uuid}" in xml
    finally:
        domain.destroy()
    assert not (TPM_STATES / identity.uuid).exists()


def test_a_copy_without_a_guest_failed_and_leaves_nothing(scene: Scene) -> None:
    """Broken: a checkpoint that does not boot would be called anything else; or an image be written to."""
    scene.create("one")
    before = files(scene)
    with pytest.raises(ProofError, match="did not come up in time"):
        verify(scene.context, scene.reference("one"), timeout_s=1, memory=MEMORY)
    assert files(scene) == before
    nothing_of_a_copy(scene)
    (node,) = tree(scene.context, scene.name).checkpoints
    assert node.proof is not None
    assert node.proof.state.value == "failed"
    scene.check()
    assert scene.complaints() == ()


def test_a_vm_that_runs_goes_on_beside_its_copy(scene: Scene) -> None:
    """Broken: production could not write to its disk while a copy reads the images below it, or not afterwards."""
    scene.create("one")
    scene.start(paused=False)
    with pytest.raises(ProofError):
        verify(scene.context, scene.reference("one"), timeout_s=1)
    scene.change()
    scene.create("two")
    scene.check()


def test_the_copy_ends_with_its_command(scene: Scene, tmp_path: Path) -> None:
    """Broken: a copy would run for ever, on memory of the host, when its command was killed."""
    scene.create("one")
    words = ["verify", f"{scene.name}@one", "--timeout", "600"]
    process = victim.start(words, str(scene.bare.directory / "catalog/catalog.db"), tmp_path / "output")
    deadline = time.monotonic() + 60
    while not copies(scene.bare.connection):
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.05)
    try:
        assert while_it_runs(scene) == ()
    finally:
        process.kill()
    assert victim.wait(process, 30) == KILLED
    wait_until_gone(scene)
    (found,) = doctor(scene.context, scene.name, repair=True)
    assert found.mended == ("the copy of an interrupted verification was removed",)
    nothing_of_a_copy(scene)
    assert scene.complaints() == ()
    scene.check()


@pytest.mark.parametrize("verb", ["verify", "settle"])
def test_killed_at_every_step(verb: str, scene: Scene, tmp_path: Path) -> None:
    """Broken: at one step, a kill would leave a VM, a file, or a directory that nobody removes."""
    scene.create("one")
    connection, step = libvirt.open(URI), 0
    words = [verb, f"{scene.name}@one", "--timeout", "1"]
    while True:
        process = victim.start(words, str(scene.bare.directory / "catalog/catalog.db"), tmp_path / "output", step)
        code = victim.wait(process, 60)
        wait_until_gone(scene)
        if code != KILLED:
            break
        doctor(scene.context, scene.name, repair=True)
        nothing_of_a_copy(scene)
        assert scene.complaints() == (), step
        step += 1
    assert (code, step > 8) == (12, True), (tmp_path / "output").read_text()
    connection.close()
    nothing_of_a_copy(scene)
    scene.check()

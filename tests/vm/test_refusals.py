"""Bad input and VMs that cannot be checkpointed: a message that helps, the documented exit code, and nothing changed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import libvirt
import pytest

from lab import Machine
from lab.bare import Bare, directory
from lab.standstill import wait_for
from tests.host import Quiesce


def pools(machine: Machine) -> set[str]:
    """Storage pools of the VM's directory; others may be made beside us."""
    found = set()
    for pool in machine.connection.listAllStoragePools():
        with suppress(libvirt.libvirtError):  # gone meanwhile
            found |= {pool.name()} if machine.name in pool.XMLDesc(0) else set()
    return found


@contextmanager
def unchanged(machine: Machine, quiesce: Quiesce) -> Iterator[None]:
    """Nothing of the VM, its files or the catalog changes in this block, and the guest goes on."""

    def state() -> object:
        files = {(path.name, path.stat().st_ino) for path in machine.directory.iterdir()}
        return machine.domain.XMLDesc(0), machine.domain.state()[0], files, pools(machine), quiesce("tree", machine.name)

    before = state()
    yield
    assert state() == before


def test_names(machine: Machine, quiesce: Quiesce) -> None:
    vm = machine.name
    quiesce("checkpoint", vm, "--name", "taken", "--require", "crash")
    with unchanged(machine, quiesce):
        assert "no VM named 'nobody'" in quiesce.fails("checkpoint", "nobody", code=3)
        assert "blank" in quiesce.fails("checkpoint", vm, "--name", "  ", code=2)
        assert "at most 100 characters" in quiesce.fails("checkpoint", vm, "--name", "x" * 101, code=2)
        assert "already" in quiesce.fails("checkpoint", vm, "--name", "taken", code=4)
        assert "control" in quiesce.fails("checkpoint", vm, "--name", "a\x1b[2Jb", code=2)
        assert "no checkpoint named 'missing'" in quiesce.fails("restore", f"{vm}@missing", code=3)
        assert "no checkpoint named 'missing'" in quiesce.fails("show", f"{vm}@missing", code=3)
        for malformed in (vm, f"{vm}@", "@taken"):
            assert "VM@CHECKPOINT" in quiesce.fails("restore", malformed, code=2)
            assert "VM@CHECKPOINT" in quiesce.fails("delete", malformed, code=2)
        assert quiesce.run("checkpoint", vm, "--require", "everything").returncode == 2
        assert quiesce.run("checkpoint", vm, "--window", "0").returncode == 2


def test_paused_and_off(machine: Machine, quiesce: Quiesce) -> None:
    machine.domain.suspend()
    with unchanged(machine, quiesce):
        assert "paused" in quiesce.fails("checkpoint", machine.name, code=4)
        assert "virsh resume" in quiesce.fails("writers", machine.name, code=4)
    machine.domain.destroy()
    with unchanged(machine, quiesce):
        assert "is off" in quiesce.fails("checkpoint", machine.name, code=6)
        assert "virsh start" in quiesce.fails("guest", "install", machine.name, code=4)


def test_agent_missing_not_running_or_too_old(machine: Machine, quiesce: Quiesce) -> None:
    machine.run("systemctl stop quiesce-agent; sleep 0.5")
    with unchanged(machine, quiesce):
        assert "not running" in quiesce.fails("checkpoint", machine.name, code=5)
    # An agent of an earlier protocol, on the real port.
    machine.run("""
        sed -i 's/BindsTo/#BindsTo/' /etc/systemd/system/quiesce-agent.service
        mkdir -p /root/old && cd /root/old && python3 -m zipfile -e /usr/local/lib/quiesce/quiesce-agent.pyz .
        sed -i 's/^PROTOCOL = .*/PROTOCOL = 0/' quiesce/wire/messages.py
        setsid python3 -m quiesce.agent >/dev/null 2>&1 &
        sleep 2
    """)
    wait_for(lambda: next(vm for vm in quiesce("vms") if vm["name"] == machine.name)["agent"] == "ready", 20)
    with unchanged(machine, quiesce):
        message = quiesce.fails("checkpoint", machine.name, code=5)
    assert "does not fit this quiesce" in message
    assert "quiesce guest install" in message


def test_no_agent_and_installing_it(image, booted, quiesce: Quiesce) -> None:
    """A guest that never had the agent is refused; installing hot-plugs the port, and then it works. Twice is fine."""
    with Machine(image, start_from=booted) as machine:
        with unchanged(machine, quiesce):
            assert "quiesce guest install" in quiesce.fails("checkpoint", machine.name, code=5)
            assert "quiesce guest install" in quiesce.fails("writers", machine.name, code=5)
        crash = quiesce("checkpoint", machine.name, "--name", "plain", "--require", "crash")
        assert (crash["consistency"], crash["stall_ms"]) == ("crash", 0)
        quiesce("guest", "install", machine.name)
        assert quiesce("checkpoint", machine.name, "--name", "full")["consistency"] == "application"
        quiesce("guest", "install", machine.name)
        assert quiesce("writers", machine.name)["expected_consistency"] == "application"


@pytest.fixture
def bare_directory() -> Iterator[Path]:
    with directory() as path:
        yield path


@pytest.fixture
def bare(bare_directory: Path) -> Iterator[Bare]:
    domain = Bare(bare_directory)
    yield domain
    domain.remove()


@pytest.mark.parametrize(
    ("disk", "start", "message"),
    [
        ("<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}/vda.qcow2'/>"
         "<target dev='vda' bus='virtio'/><readonly/></disk>", True, "disk vda: it is read-only"),
        ("<disk type='file'><driver name='qemu' type='raw'/><source file='{}/disk.raw'/>"
         "<target dev='vda' bus='virtio'/><shareable/></disk>", True, "disk vda: it is shared"),
        ("<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/sdz'/>"
         "<target dev='sda' bus='scsi'/></disk>", False, "disk sda: it is a passed-through LUN"),
        ("<disk type='block'><driver name='qemu' type='raw'/><source dev='/dev/sdz'/>"
         "<target dev='vdb' bus='virtio'/></disk>", False, "--overlays DIRECTORY"),
    ],
)  # fmt: skip
def test_disks_that_cannot_take_part(bare_directory: Path, quiesce: Quiesce, disk: str, start: bool, message: str) -> None:
    bare = Bare(bare_directory, disk_xml=disk.format(bare_directory), start=start)
    try:
        with unchanged(bare, quiesce):
            assert message in quiesce.fails("checkpoint", bare.name, "--require", "crash", code=4)
    finally:
        bare.remove()


def test_running_block_job(bare: Bare, quiesce: Quiesce) -> None:
    copy = f"<disk type='file'><driver type='qcow2'/><source file='{bare.directory}/copy.qcow2'/></disk>"
    bare.domain.blockCopy("vda", copy, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    wait_for(lambda: "ready='yes'" in bare.domain.XMLDesc(0), 20)
    try:
        with unchanged(bare, quiesce):
            message = quiesce.fails("checkpoint", bare.name, "--require", "crash", code=4)
        assert "a block job (copy or commit) is running" in message
    finally:
        bare.domain.blockJobAbort("vda", 0)


def test_libvirt_snapshots(bare: Bare, quiesce: Quiesce) -> None:
    bare.domain.snapshotCreateXML("<domainsnapshot><name>theirs</name></domainsnapshot>", 0)
    with unchanged(bare, quiesce):
        assert "snapshot(s) of libvirt's own" in quiesce.fails("checkpoint", bare.name, "--require", "crash", code=4)


def test_no_space_for_the_overlay(bare_directory: Path, quiesce: Quiesce) -> None:
    small = bare_directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M,mode=0755", "tmpfs", small], check=True)
    try:
        bare = Bare(small, name=bare_directory.name)
        try:
            with unchanged(bare, quiesce):
                message = quiesce.fails("checkpoint", bare.name, "--require", "crash", code=7)
            assert str(small) in message
            assert "bytes free" in message
        finally:
            bare.remove()
    finally:
        subprocess.run(["umount", small], check=True)


def test_libvirt_out_of_reach(quiesce: Quiesce) -> None:
    message = quiesce.fails("vms", "--connect", "qemu+unix:///system?socket=/nowhere/libvirt-sock", code=8)
    assert "cannot connect" in message

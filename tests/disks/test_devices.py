"""Raw images and block devices: sizes that change, headers that a guest writes, a lost catalog, files below /dev."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.rebuild import rebuild
from quiesce.operations.restore import restore
from tests.disks.making import SIZE, Bench, Made, disk
from tests.disks.subject import Subject, file_holds


@pytest.fixture
def on_device(bench: Bench) -> Iterator[Subject]:
    path = bench.device()
    subject = Subject(bench, Made(disk(path, "raw", kind="block"), path, "raw"))
    yield subject
    subject.remove()


def enlarge(device: str, bytes: int) -> None:
    """As lvextend does."""
    found = subprocess.run(["losetup", "--noheadings", "--output", "BACK-FILE", device], capture_output=True, check=True)
    os.truncate(found.stdout.decode().strip(), bytes)
    subprocess.run(["losetup", "--set-capacity", device], check=True)


@pytest.mark.parametrize("running", [True, False])
def test_a_disk_that_is_larger_than_its_device_waits_for_it(on_device: Subject, running: bool) -> None:
    """Broken: a merge would fail without a word of what to do, or lose the end of the disk."""
    subject = on_device
    subject.write(1, 11)
    subject.checkpoint("a", overlays=subject.bench.place())
    subject.start()
    subject.bare.connection.lookupByName(subject.name).blockResize("vda", 2 * SIZE, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    subject.write(2, 22)
    subject.write(SIZE // 65536 + 3, 33)
    if not running:
        subject.bare.connection.lookupByName(subject.name).destroy()
    done = delete(subject.context, [subject.reference("a")])
    assert [f"{subject.made.path} has {SIZE} bytes" in item.reason for item in done.waiting] == [True]
    assert "lvextend" in done.waiting[0].reason
    subject.holds(subject.content)
    enlarge(subject.made.path, 2 * SIZE)
    doctor(subject.context, subject.name, repair=True)
    assert subject.image().path == subject.made.path
    subject.starts_with(subject.content)
    subject.healthy()


def test_a_device_that_was_enlarged_leaves_its_checkpoint_as_it_was(on_device: Subject) -> None:
    """Broken: a restore would bring back a disk of another size, with what was on the device behind its end."""
    subject = on_device
    subject.write(1, 11)
    first = subject.checkpoint("a", overlays=subject.bench.place())
    subject.write(1, 12)
    enlarge(subject.made.path, 2 * SIZE)
    restore(subject.context, subject.reference("a"), discard_current=True)
    size = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", str(subject.image().path)], capture_output=True, text=True, check=True
    )
    assert f"({SIZE} bytes)" in size.stdout
    subject.starts_with(first)
    export(subject.context, subject.reference("a"), str(subject.bench.directory / "export"))
    file_holds(subject.bench.directory / "export" / "vda.qcow2", first)


def header(bench: Bench, backing: bytes, *, encrypted: int = 0) -> bytes:
    """Of a qcow2 image with this backing file."""
    path = Path(bench.image("header", "-o", "cluster_size=512", "-b", "x" * len(backing), "-F", "raw", "-u"))
    content = bytearray(path.read_bytes().replace(b"x" * len(backing), backing))
    content[35] = encrypted
    path.unlink()
    return bytes(content)


HEADERS = {
    "a file of the host": (b"/etc/hostname", 0),
    "not UTF-8": (b"/i/\xff\xfe", 0),
    "control characters": (b"/i/\x01\x1b[0m", 0),
    "json": (b'json:{"driver":', 0),
    "a protocol": (b"nbd://127.0.0.1:1/x", 0),
    "a directory that is not there": (b"/nonexistent/a/b", 0),
    "encrypted": (b"/i/x", 2),
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_a_guest_writes_into_a_raw_image_is_nothing_but_data(bench: Bench, name: str) -> None:
    """Broken: a guest could read files of the host, keep its VM from being checkpointed, or have its checkpoints given up."""
    path = bench.image("base.img", format="raw")
    subject = Subject(bench, Made(disk(path, "raw"), path, "raw"))
    try:
        content = header(bench, *HEADERS[name][:1], encrypted=HEADERS[name][1])
        with Path(path).open("r+b") as file:
            file.write(content)
        subject.checkpoint("a")
        subject.write(2, 22)
        subject.healthy()
        restore(subject.context, subject.reference("a"), discard_current=True)
        subject.healthy()
        with pytest.raises(AssertionError):
            subject.holds({2: 22})
        export(subject.context, subject.reference("a"), str(bench.directory / "export"))
        raw = bench.file("exported.raw")
        subprocess.run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", bench.directory / "export" / "vda.qcow2", raw], check=True
        )
        assert Path(raw).read_bytes() == Path(path).read_bytes()
        delete(subject.context, [subject.reference("a")])
        assert (subject.image().path, subject.image().format) == (path, "raw")
        assert Path(path).read_bytes().startswith(content)
    finally:
        subject.remove()


def test_a_lost_catalog_knows_the_device_again(on_device: Subject) -> None:
    """Broken: the checkpoints of a VM on a device would be lost with the catalog."""
    subject = on_device
    subject.write(1, 11)
    first = subject.checkpoint("a", overlays=subject.bench.place())
    subject.write(1, 12)
    subject.checkpoint("b")
    subject.catalog.close()
    (subject.bench.directory / "catalog" / "catalog.db").unlink()
    subject.catalog = Catalog(f"sqlite:///{subject.bench.directory}/catalog/catalog.db")
    subject.context = Context("qemu:///system", subject.catalog, lambda _: None)
    assert len(rebuild(subject.context).checkpoints) == 2
    subject.healthy()
    restore(subject.context, subject.reference("a"), discard_current=True)
    subject.starts_with(first)


def test_files_below_dev_are_files(bench: Bench) -> None:
    """Broken: images in /dev/shm would be taken for devices: the second checkpoint refused, the first never removed."""
    place = Path("/dev/shm") / bench.directory.name
    place.mkdir()
    bench.stack.callback(shutil.rmtree, place)
    path = str(place / "vda.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    subject = Subject(bench, Made(disk(path).replace(" cache='none'", ""), path))
    try:
        subject.write(1, 11)
        first = subject.checkpoint("a")
        subject.write(1, 12)
        subject.checkpoint("b")
        restore(subject.context, subject.reference("a"), discard_current=True)
        subject.starts_with(first)
        export(subject.context, subject.reference("a"), str(bench.directory / "export"))
        delete(subject.context, [subject.reference("*")])
        assert [file.name for file in place.iterdir()] == ["vda.qcow2"]
        subject.healthy()
    finally:
        subject.remove()

"""Hosts with many images, many VMs and many checkpoints, for bench/scale.py. Their images are headers alone: nothing starts on
them."""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import sqlalchemy as sa

from lab.machine import URI
from quiesce.catalog import manifest, schema
from quiesce.catalog.checkpoints import New
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.disks.images import described
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, DiskImage, Kind

CHAIN = 15
"""Longest chain of images of one VM."""
CAPACITY = 2**30
BATCH = 1000


def write_image(path: Path, backing: Path | None = None) -> None:
    """The header of a qcow2 image, version 3, as in QEMU's docs/interop/qcow2."""
    name = os.fsencode(backing) if backing else b""
    offset = 112 if backing else 0
    fields = (3, offset, len(name), 16, CAPACITY, 0, 2, 196608, 65536, 1, 0, 0, 0, 0, 0, 4, 104)
    path.write_bytes(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *fields).ljust(112, b"\0") + name)


def foreign_images(directory: Path, number: int) -> None:
    """Disks of nobody's in a directory: some alone, some linked clones of a template, some raw."""
    template = directory / "template.qcow2"
    write_image(template)
    for place in range(number):
        path = directory / f"vm{place:06d}.qcow2"
        if place % 4 == 3:
            path.write_bytes(b"\0" * 512)
        else:
            write_image(path, template if place % 4 else None)


def definition(name: str, id: str, disk: Path) -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{id}</uuid><memory unit='MiB'>64</memory>"
        "<os><type machine='q35'>hvm</type></os><devices>"
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
        "</devices></domain>"
    )


@contextlib.contextmanager
def vms(directory: Path, number: int) -> Iterator[list[tuple[str, str]]]:
    """(name, UUID) of VMs that are defined during the block, each with a directory of its own and one disk, disk.qcow2."""
    connection = libvirt.open(URI)
    made = []
    try:
        for place in range(number):
            name, id = f"quiesce-bench-{os.getpid()}-{place}", str(uuid.uuid4())
            (directory / name).mkdir(parents=True)
            write_image(directory / name / "disk.qcow2")
            connection.defineXML(definition(name, id, directory / name / "disk.qcow2"))
            made.append((name, id))
        yield made
    finally:
        for _, id in made:
            connection.lookupByUUIDString(id).undefine()
        connection.close()


def node(key: VmKey, vm: str, place: int, image: Path, parent: Checkpoint | None) -> Checkpoint:
    return Checkpoint(
        id=uuid.uuid4().hex,
        host=key.host,
        vm_uuid=key.uuid,
        vm_name=vm,
        name=f"checkpoint {place}",
        created=f"2026-01-01T{place // 3600:02d}:{place // 60 % 60:02d}:{place % 60:02d}.000+00:00",
        kind=Kind.PRODUCTION,
        consistency=Consistency.CRASH,
        required=Consistency.CRASH,
        disks=(DiskImage("vda", str(image), "qcow2"),),
        parent=parent.id if parent else None,
    )


def records_alone(catalog: Catalog, host: str, number: int) -> None:
    """Records of checkpoints of VMs, 50 each, whose files are nowhere."""
    new, made = [], []
    for place in range(number):
        if place % 50 == 0:
            key, parent = VmKey(host, str(uuid.uuid4())), None
        image = Path(f"/nowhere/{key.uuid}/{place}.0123456789ab.qcow2")
        parent = node(key, key.uuid, place % 50, image, parent)
        new.append(New(parent, definition(key.uuid, key.uuid, image), parent.id, fingerprints={str(image): _fingerprint()}))
        made.append({"host": host, "path": str(image), "vm_uuid": key.uuid, "merged": False, "live": False})
    _add(catalog, new, made)


def checkpoints(context: Context, directory: Path, found: list[tuple[str, str]], each: int) -> None:
    """Gives each of these VMs so many checkpoints, in branches of CHAIN, with images and manifests: nothing is wrong."""
    with context.host() as host:
        id = host.id
    new, made = [], []
    for name, vm_uuid in found:
        key, place = VmKey(id, vm_uuid), directory / name
        root = last = node(key, name, 0, place / "disk.qcow2", None)
        mine = [root]
        for number in range(1, each):
            below = root if number % CHAIN == 0 else last
            image = place / f"{name}.vda.{number:012x}.qcow2"
            write_image(image, Path(below.disks[0].path))
            last = node(key, name, number, image, below)
            mine.append(last)
        head = place / f"{name}.vda.{each:012x}.qcow2"
        write_image(head, Path(last.disks[0].path))
        storage_files = [Path(item.disks[0].path) for item in mine]
        for item, path in zip(mine, storage_files, strict=True):
            prints = {str(path): _fingerprint(path, mine, item)}
            xml = definition(name, vm_uuid, path)
            new.append(New(item, xml, last.id, fingerprints=prints))
            content = manifest.dump(described(item, xml, prints), context.catalog.seal)
            (place / manifest.name(item.id)).write_bytes(content)
        paths = [*storage_files[1:], head]
        made += [{"host": id, "path": str(path), "vm_uuid": vm_uuid, "merged": False, "live": path == head} for path in paths]
        _point(name, vm_uuid, head)
    _add(context.catalog, new, made)


def _point(name: str, id: str, disk: Path) -> None:
    connection = libvirt.open(URI)
    connection.defineXML(definition(name, id, disk))
    connection.close()


def _fingerprint(path: Path | None = None, mine: list[Checkpoint] | None = None, item: Checkpoint | None = None) -> Fingerprint:
    if path is None or mine is None or item is None:
        return Fingerprint(196608, "1767225600.123456789", f"qcow2 {CAPACITY}")
    below = next((Path(other.disks[0].path).name for other in mine if other.id == item.parent), "")
    stat = path.stat()
    seconds, fraction = divmod(stat.st_mtime_ns, 10**9)
    written = f"{seconds}.{fraction:09d}" if fraction else str(seconds)
    return Fingerprint(stat.st_size, written, f"qcow2 {CAPACITY} {below}".rstrip())


def _add(catalog: Catalog, new: list[New], made: list[dict[str, object]]) -> None:
    for begin in range(0, len(new), BATCH):
        catalog.checkpoints.add_together(new[begin : begin + BATCH])
        with catalog.database.transaction() as connection:
            connection.execute(sa.insert(schema.images), made[begin : begin + BATCH])

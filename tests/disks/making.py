"""How disks of each kind are made, for the tests and their table (kinds.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import libvirt

from lab.machine import URI

SIZE = 8 * 2**20
"""Of every disk, in bytes."""


@dataclass(frozen=True)
class Made:
    """A disk that a kind made."""

    xml: str
    """The element of the definition, for the target vda."""
    path: str
    """The image that the VM writes."""
    format: str = "qcow2"
    overlays: str | None = None
    """The directory that the setting --overlays must have."""
    machine: str = ""
    """What the definition needs besides."""
    size: int = SIZE
    """In bytes, as the guest sees it."""
    others: tuple[int, ...] = ()
    """The pieces of the disk (subject.py) that are neither zeros nor written by the test."""


@dataclass(frozen=True)
class Bench:
    """Where a kind makes its disk. What `stack` has is undone after the test."""

    directory: Path
    stack: ExitStack = field(default_factory=ExitStack)

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def image(self, name: str, *options: str, format: str = "qcow2", size: int = SIZE) -> str:
        """Makes an image."""
        path = self.file(name)
        subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, path, str(size)], check=True)
        return path

    def device(self, size: int = SIZE) -> str:
        """A block device of this host."""
        path = self.file(f"device-{len(list(self.directory.glob('device-*')))}.img")
        with Path(path).open("wb") as file:
            file.truncate(size)
        found = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
        device = found.stdout.strip()
        self.stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        return device

    def place(self, name: str = "overlays") -> str:
        place = self.directory / name
        place.mkdir(exist_ok=True)
        return str(place)


Make = Callable[[Bench], Made]


def disk(
    path: str, format: str = "qcow2", *, kind: str = "file", more: str = "", bus: str = "virtio", device: str = "disk"
) -> str:
    """The element of a disk with this image."""
    source = f"<source {'dev' if kind == 'block' else 'file'}='{path}'/>"
    target = f"<target dev='{'vda' if bus == 'virtio' else 'sda'}' bus='{bus}'/>"
    return (
        f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{format}' cache='none' discard='unmap'/>{source}"
        f"{target}{more}</disk>"
    )


def qcow2(*options: str) -> Make:
    def make(bench: Bench) -> Made:
        path = bench.image("base.img", *options)
        return Made(disk(path), path)

    return make


def odd_sectors(bench: Bench) -> Made:
    """As an image of a partition, or of a disk of old geometry, may be."""
    path = bench.image("base.img", format="raw", size=SIZE - 512)
    return Made(disk(path, "raw"), path, "raw", size=SIZE - 512)


def raw(bench: Bench) -> Made:
    path = bench.image("base.img", format="raw")
    return Made(disk(path, "raw"), path, "raw")


def raw_elsewhere(bench: Bench) -> Made:
    path = bench.image("base.img", format="raw")
    return Made(disk(path, "raw"), path, "raw", bench.place())


def qcow2_header(bench: Bench, name: str) -> str:
    """A qcow2 image that is a few KB long, over a file that the guest may not read."""
    secret = bench.file("secret")
    Path(secret).write_bytes(b"\x99" * SIZE)
    return bench.image(name, "-o", "cluster_size=512", "-b", secret, "-F", "raw")


def raw_with_header(bench: Bench) -> Made:
    """The guest wrote the header of a qcow2 image into its disk, with a backing file that it may not read."""
    path = qcow2_header(bench, "base.img")
    os.truncate(path, SIZE)
    return Made(disk(path, "raw"), path, "raw", others=(0,))


def block(bench: Bench) -> Made:
    path = bench.device()
    return Made(disk(path, "raw", kind="block"), path, "raw", bench.place())


def block_with_header(bench: Bench) -> Made:
    made = block(bench)
    with Path(made.path).open("r+b") as device:
        device.write(Path(qcow2_header(bench, "header")).read_bytes())
    return replace(made, others=(0,))


def block_by_link(bench: Bench) -> Made:
    """As /dev/disk/by-id/... and /dev/vg/lv are."""
    device = bench.device()
    link = Path(f"/dev/disk/by-id/quiesce-lab-{bench.directory.name}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(device)
    bench.stack.callback(link.unlink)
    return Made(disk(str(link), "raw", kind="block"), str(link), "raw", bench.place())


def block_by_link_of_files(bench: Bench) -> Made:
    device, link = bench.device(), bench.directory / "disk.link"
    link.symlink_to(device)
    return Made(disk(str(link), "raw", kind="block"), str(link), "raw", bench.place())


def block_beside_a_file(bench: Bench) -> Made:
    path, other = bench.device(), bench.image("second.qcow2")
    second = disk(other).replace("'vda'", "'vdc'")
    return Made(disk(path, "raw", kind="block") + second, path, "raw")


def lvm(*options: str) -> Make:
    def make(bench: Bench) -> Made:
        group = f"quiesce-lab-{os.getpid()}"
        device = bench.device(64 * 2**20)

        def run(*words: str) -> None:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

        run("vgcreate", "-q", group, device)
        bench.stack.callback(run, "vgremove", "-q", "-f", group)
        if options:
            run("lvcreate", "-q", "-L", "32m", "--thinpool", "pool", group)
            run("lvcreate", "-q", "-V", f"{SIZE}b", "--thin", "-n", "data", f"{group}/pool")
        else:
            run("lvcreate", "-q", "-L", f"{SIZE}b", "-n", "data", group)
        path = f"/dev/{group}/data"
        return Made(disk(path, "raw", kind="block"), path, "raw", bench.place())

    return make


def no_lvm() -> str | None:
    if not shutil.which("lvcreate"):
        return "there is no lvm"
    devices = Path("/proc/devices").read_text()
    return None if "device-mapper" in devices else "the kernel has no device mapper"


def data_file(*options: str) -> Make:
    def make(bench: Bench) -> Made:
        path = bench.image("base.img", "-o", ",".join([f"data_file={bench.file('base.data')}", *options]))
        return Made(disk(path), path)

    return make


def over(format: str, *options: str, declared: str | None = None) -> Make:
    """An overlay of the administrator's, over an image of this format."""

    def make(bench: Bench) -> Made:
        base = bench.image("template.img", *options, format=format)
        path = bench.image("base.img", "-b", base, "-F", declared or format)
        return Made(disk(path), path)

    return make


@contextmanager
def _served(path: str, socket: str, *options: str) -> Iterator[None]:
    command = ["qemu-nbd", "--persistent", "--shared=8", *options, "-k", socket, "-x", "exp", "-f", "raw", path]
    with subprocess.Popen(command) as server:
        try:
            while not Path(socket).exists():
                assert server.poll() is None
            Path(socket).chmod(0o777)
            yield
        finally:
            server.terminate()


def nbd_base(bench: Bench) -> Made:
    base, socket = bench.image("template.img", format="raw"), bench.file("nbd")
    bench.stack.enter_context(_served(base, socket, "--read-only"))
    path = bench.image("base.img", "-b", f"nbd+unix:///exp?socket={socket}", "-F", "raw")
    return Made(disk(path), path)


def nbd_disk(bench: Bench) -> Made:
    base, socket = bench.image("served.img", format="raw"), bench.file("nbd")
    bench.stack.enter_context(_served(base, socket))
    xml = (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='exp'>"
        f"<host transport='unix' socket='{socket}'/></source><target dev='vda' bus='virtio'/></disk>"
    )
    return Made(xml, "", "raw")


def pool_volume(format: str, *, active: bool = True) -> Make:
    def make(bench: Bench) -> Made:
        name = f"{bench.directory.name}-pool"
        pool = Path(bench.place("pool"))
        subprocess.run(["qemu-img", "create", "-q", "-f", format, pool / "disk.img", str(SIZE)], check=True)
        connection = libvirt.open(URI)
        found = connection.storagePoolDefineXML(
            f"<pool type='dir'><name>{name}</name><target><path>{pool}</path></target></pool>"
        )

        def remove() -> None:
            with contextlib.suppress(libvirt.libvirtError):
                found.destroy()
            found.undefine()
            connection.close()

        bench.stack.callback(remove)
        if active:
            found.create()
        xml = (
            f"<disk type='volume' device='disk'><driver name='qemu' type='{format}'/><source pool='{name}' volume='disk.img'/>"
            "<target dev='vda' bus='virtio'/></disk>"
        )
        return Made(xml, str(pool / "disk.img"), format)

    return make


def chain_of(images: int) -> Make:
    """A chain of so many images."""

    def make(bench: Bench) -> Made:
        path = bench.image("below-1.img")
        for number in range(2, images + 1):
            path = bench.image(f"below-{number}.img", "-b", path, "-F", "qcow2")
        return Made(disk(path), path)

    return make


def changed_by(*words: str) -> Make:
    """qemu-img changed the image: {path} is its path."""

    def make(bench: Bench) -> Made:
        path = bench.image("base.img")
        subprocess.run(["qemu-img", *(word.format(path=path) for word in words)], check=True)
        return Made(disk(path), path)

    return make


def on_bus(bus: str) -> Make:
    def make(bench: Bench) -> Made:
        path = bench.image("base.img")
        return Made(disk(path, bus=bus), path)

    return make


def with_element(more: str, format: str = "qcow2", device: str = "disk") -> Make:
    """A disk with another element in its definition."""

    def make(bench: Bench) -> Made:
        path = bench.image("base.img", format=format)
        return Made(disk(path, format, more=more, device=device), path, format)

    return make


def part(bench: Bench) -> Made:
    path = bench.image("base.img", format="raw")
    slices = f"<slices><slice type='storage' offset='0' size='{SIZE // 2}'/></slices>"
    return Made(disk(path, "raw").replace(f"<source file='{path}'/>", f"<source file='{path}'>{slices}</source>"), path, "raw")


def forgetful(bench: Bench) -> Made:
    """The definition names the format, as it may do for images of older tools."""
    base, path = bench.image("template.img"), bench.file("base.img")
    bench.image("base.img", "-b", base, "-F", "qcow2")
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(bytes.fromhex("e2792aca"), bytes.fromhex("12345678"), 1))
    below = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    return Made(disk(path, more=below), path)


def of_format(format: str) -> Make:
    def make(bench: Bench) -> Made:
        path = bench.image("base.img", format=format)
        return Made(disk(path, format), path, format)

    return make


def lun(bench: Bench) -> Made:
    xml = disk(bench.device(), "raw", kind="block", device="lun", bus="scsi").replace(" discard='unmap'", "")
    return Made(xml, "", "raw")


def block_without_directory(bench: Bench) -> Made:
    path = bench.device()
    return Made(disk(path, "raw", kind="block"), path, "raw")


def qcow2_on_block(bench: Bench) -> Made:
    path = bench.device(2 * SIZE)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return Made(disk(path, "qcow2", kind="block"), path, "qcow2", bench.place())


def xml_only(text: str, machine: str = "") -> Make:
    return lambda _: Made(text, "", "raw", machine=machine)

"""Names and places of images and VMs as administrators have them. From public reports."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

import libvirt
import pytest

from lab.bare import Bare, directory
from tests.disks.own_vm import create, definition, disk, fill, image_of, power, refused, take

running = pytest.mark.parametrize("on", [True, False], ids=["running", "off"])


def test_a_filesystem_that_became_read_only(place, own_vm, quiesce):
    """Broken: a restore would be begun that cannot write a file, or the error be a word of the kernel's. A brother of the
    report of images that could not be used."""
    images = place / "images"
    images.mkdir()
    bare = own_vm(disk(create(images / "vda.qcow2")))
    power(bare, running=True)
    take(quiesce, bare, "a")
    subprocess.run(["mount", "--bind", images, images], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", images], check=True)
        before = definition(bare)
        for verb in (["checkpoint", bare.name, "--require", "crash"], ["restore", f"{bare.name}@a"]):
            assert f"{images}, into which overlays are to go, is on a filesystem that is mounted read-only" in quiesce.fails(
                *verb, code=4
            )
        assert (definition(bare), bare.domain.isActive()) == (before, True)
    finally:
        subprocess.run(["umount", images], check=True)


NAMED_ODDLY = [
    b"f\xfcr.iso",
    b"\xff\xfe",
    b"caf\xe9.qcow2",
    b"a\nb.qcow2",
    b"a\x01b.qcow2",
    b"\x1b[2J",
    b"a\xef\xbf\xbeb",
    b"x" * 255,
]


def clutter(place: Path) -> None:
    """What may lie beside images."""
    for name in NAMED_ODDLY:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).touch()
    os.mkfifo(place / "fifo.qcow2")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place / "socket.qcow2"))
    os.mknod(place / "device.qcow2", 0o60600, os.makedev(7, 200))
    (place / "directory.qcow2").mkdir()
    (place / "loop.qcow2").symlink_to("loop.qcow2")
    (place / "dangling.qcow2").symlink_to("nowhere")
    (place / "garbage.qcow2").write_bytes(b"QFI\xfb\0\0\0\x03" + b"\xff" * 200)
    create(place / "itself.qcow2", "-u", "-b", "itself.qcow2", "-F", "qcow2")


@running
def test_files_that_are_no_images_beside_them(place, own_vm, quiesce, on):
    """Broken: one such file beside the images, and every verb would end in a traceback, or hang. From a report of a name in
    Latin-1; the brothers are other odd names, and whatever is no file."""
    clutter(place)
    odd = os.fsdecode(os.fsencode(place) + b"/b\xe4se.qcow2")
    create(Path(odd))
    create(place / "clone.qcow2", "-b", odd, "-F", "qcow2")
    bare = own_vm(disk(create(place / "vda.qcow2")))
    power(bare, running=on)
    take(quiesce, bare, "a")
    take(quiesce, bare, "b")
    assert quiesce("doctor", bare.name)[0]["findings"] == []
    quiesce("restore", f"{bare.name}@a")
    quiesce("delete", f"{bare.name}@b")
    power(bare, running=True)


@running
@pytest.mark.parametrize("way", ["link", "slashes", "mount", "dots", "link to the file"])
def test_a_directory_with_two_names(place, own_vm, quiesce, way, on):
    """Broken: deleted checkpoints would never be merged, or every verb would fail. From reports of a link and of `//`."""
    real, other = place / "real", place / "other"
    real.mkdir()
    base = create(real / "base.qcow2")
    try:
        if way == "link":
            other.symlink_to(real)
        elif way == "mount":
            other.mkdir()
            subprocess.run(["mount", "--bind", real, other], check=True)
        elif way == "link to the file":
            other.mkdir()
            (other / "vda.qcow2").symlink_to("../real/vda.qcow2")
        name = {"slashes": f"{place}//real", "dots": f"{place}/./real/../real"}.get(way, str(other))
        create(real / "vda.qcow2", "-b", str(base), "-F", "qcow2")
        bare = own_vm(disk(f"{name}/vda.qcow2"))
        power(bare, running=on)
        for checkpoint in ("a", "b"):
            take(quiesce, bare, checkpoint)
        assert quiesce("delete", f"{bare.name}@a")["waiting"] == []
        assert quiesce("delete", f"{bare.name}@b")["waiting"] == []
        assert sorted(path.name for path in real.glob("*.qcow2")) == ["base.qcow2", "vda.qcow2"]
        power(bare, running=False)
        power(bare, running=True)
        power(bare, running=False)
    finally:
        subprocess.run(["umount", other], check=False, capture_output=True)


ODD = ["a b", "c,d", "e&f", "g'h\"", "k:l", "m%n", "json:{}", "nbd:x", "q\\r#t?u", "ü🙂", "[z]*$(v)"]


@running
def test_paths_with_characters_that_mean_something(place, own_vm, quiesce, on):
    """Broken: QEMU, libvirt or quiesce would take a part of a path for something else. Brothers of the reports of odd names."""
    disks = []
    for number, name in enumerate(ODD):
        directory = place / name
        directory.mkdir()
        base = create(directory / "base.qcow2")
        image = create(directory / f"{name}.qcow2", "-b", str(base), "-F", "qcow2")
        disks.append(disk(escape(str(image), {"'": "&apos;"}), target=f"vd{chr(ord('a') + number)}"))
    bare = own_vm("".join(disks))
    power(bare, running=on)
    for name in ("a", "b"):
        take(quiesce, bare, name)
    assert quiesce("doctor", bare.name)[0]["findings"] == []
    quiesce("export", f"{bare.name}@a", str(place / "exported"))
    quiesce("restore", f"{bare.name}@a", "--start", "--discard-current")
    assert quiesce("delete", f"{bare.name}@*")["waiting"] == []
    power(bare, running=False)
    power(bare, running=True)


def test_a_path_that_no_header_can_hold(place, own_vm, quiesce):
    """Broken: the error would be a page of QEMU's. A brother of the report of a long name."""
    directory = place.joinpath(*["d" * 100] * 9)
    directory = directory / ("e" * (1016 - len(str(directory))))
    directory.mkdir(parents=True)
    bare = own_vm(disk(create(directory / "a.qcow2")))
    for on in (False, True):
        power(bare, running=on)
        refused(quiesce, bare, "has 1025 bytes")


def test_an_export_and_an_import_by_paths_with_two_slashes(place, own_vm, quiesce):
    """Broken: libvirt would say that our pool conflicts with itself. From a report."""
    bare = own_vm(disk(create(place / "vda.qcow2")))
    take(quiesce, bare, "a")
    quiesce("export", f"{bare.name}@a", f"{place}//exported")
    made = quiesce("import", f"{place}//exported/", "--to", f"{place}//imported", "--name", f"{bare.name}-copy")
    copy = bare.connection.lookupByName(made["vm"])
    try:
        copy.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        copy.destroy()
    finally:
        copy.undefine()


def test_a_file_with_two_names_is_one_image(place, own_vm, quiesce):
    """Broken: a deletion would write into the disk of another VM."""
    mine, theirs = place / "mine", place / "theirs"
    mine.mkdir()
    theirs.mkdir()
    image = create(mine / "vda.qcow2")
    (theirs / "vda.qcow2").hardlink_to(image)
    fill(image)
    clone = create(theirs / "clone.qcow2", "-b", str(theirs / "vda.qcow2"), "-F", "qcow2")
    bare = own_vm(disk(image))
    with directory() as elsewhere:
        other = Bare(elsewhere, disk_xml=disk(clone), disks=0, start=False)
        try:
            take(quiesce, bare, "a")
            fill(Path(image_of(bare)), 0x33)
            waiting = quiesce("delete", f"{bare.name}@a")["waiting"]
            assert "clone.qcow2" in str(waiting)
            pattern = subprocess.run(["qemu-io", "-c", "read -P 0x5a 0 64k", clone], capture_output=True, text=True, check=True)
            assert "failed" not in pattern.stdout
        finally:
            other.remove()


NAMES = ["web@prod", "-web", "a b", "Ünï@🙂", "web:front", "w" * 235]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_as_libvirt_takes_it(place, own_vm, quiesce, name):
    """Broken: what `checkpoint` prints would not be accepted by the other verbs, or a long name be too long for a file."""
    name = f"{name}{os.getpid()}"[:240]
    bare = own_vm(disk(create(place / "vda.qcow2")), name=name)
    said = quiesce.run("checkpoint", "--name", "a", "--require", "crash", "--", name)
    assert said.returncode == 0
    assert f"{name}@a" in said.stdout.replace("\n", "")
    for verb in (["show"], ["restore"], ["export"]):
        finished = quiesce.run(*verb, "--", f"{name}@a", *([str(place / "exported")] if verb == ["export"] else []))
        assert finished.returncode == 0
    assert quiesce.run("delete", "--", f"{name}@a").returncode == 0
    power(bare, running=True)

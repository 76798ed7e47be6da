"""Disks as administrators define them: what quiesce keeps, what it refuses by name, and that the VM starts after each verb. The
situations are from public reports."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from quiesce.local.headers import backing_format
from tests.disks.own_vm import create, definition, disk, power, refused, take

SECRET = "s3cret"  # noqa: S105
QEMU = (64055, 993)
"""User and group that no VM of this host runs as by default; the first is Debian's libvirt-qemu."""
running = pytest.mark.parametrize("on", [True, False], ids=["running", "off"])


# -- encryption


@pytest.fixture
def secret(place: Path) -> Iterator[str]:
    """The UUID of a secret of libvirt's. Its usage is the path of the image."""
    connection = libvirt.open("qemu:///system")
    usage = f"<usage type='volume'><volume>{place}/vda.img</volume></usage>"
    made = connection.secretDefineXML(f"<secret ephemeral='no' private='yes'>{usage}</secret>")
    made.setValue(SECRET.encode())
    yield str(made.UUIDString())
    made.undefine()
    connection.close()


LUKS = {
    "qcow2": ("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
    "raw": ("luks", "key-secret=s,iter-time=10"),
}


NAMED = ("by UUID", "by usage", "with its engine", "in the disk")


def luks(path: Path, kind: str, *options: str) -> Path:
    format, words = LUKS[kind]
    return create(path, "--object", f"secret,id=s,data={SECRET}", "-o", words, *options, format=format)


@pytest.mark.parametrize(("kind", "named"), [("raw", "by UUID"), *(("qcow2", each) for each in NAMED)])
def test_an_encrypted_disk_is_refused_before_anything_is_touched(place, own_vm, secret, quiesce, kind, named):
    """Broken: what the guest writes next would be in plain text in the overlay, or the VM not start any more."""
    image = luks(place / "vda.img", kind)
    which = f"usage='{image}'" if named == "by usage" else f"uuid='{secret}'"
    engine = " engine='qemu'" if named == "with its engine" else ""
    encryption = f"<encryption format='luks'{engine}><secret type='passphrase' {which}/></encryption>"
    format = "qcow2" if kind == "qcow2" else "raw"
    inside, beside = ("", encryption) if named == "in the disk" else (encryption, "")
    bare = own_vm(disk(image, beside, inside, format=format))
    for on in (False, True):
        power(bare, running=on)
        refused(quiesce, bare, "encrypted")


def test_a_plain_overlay_of_an_encrypted_image_is_seen_by_the_header(place, own_vm, secret, quiesce):
    """Broken: a disk would be overlaid once more whose definition knows no secret; the VM does not start."""
    image = luks(place / "vda.img", "qcow2")
    top = create(place / "top.qcow2", "-u", "-b", str(image), "-F", "qcow2")
    refused(quiesce, own_vm(disk(top)), "vda.img is encrypted")


def test_an_encrypted_disk_that_is_left_out(place, own_vm, secret, quiesce):
    """Broken: one encrypted disk would keep a VM from having checkpoints."""
    image = luks(place / "vda.img", "qcow2")
    plain = create(place / "vdb.qcow2")
    encryption = f"<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>"
    bare = own_vm(disk(image, inside=encryption) + disk(plain, target="vdb"))
    power(bare, running=True)
    quiesce("checkpoint", bare.name, "--name", "a", "--require", "crash", "--exclude", "vda")
    quiesce("restore", f"{bare.name}@a")
    assert f"uuid='{secret}'" in definition(bare)
    power(bare, running=True)


# -- chains


def forget_format(path: Path) -> None:
    """As older tools made images: the header does not record the format of the backing file."""
    content = path.read_bytes()
    assert backing_format(content[:65536]) == "qcow2"
    path.write_bytes(content.replace(bytes.fromhex("e2792aca"), bytes.fromhex("12345678"), 1))
    assert backing_format(content[:65536]) == "qcow2"
    assert backing_format(path.read_bytes()[:65536]) is None


@running
@pytest.mark.parametrize("where", ["top", "middle"])
def test_a_chain_whose_formats_only_the_definition_records(place, own_vm, quiesce, where, on):
    """Broken: after a checkpoint of the VM while it is off, the VM would not start any more."""
    images = [place / name for name in ("b0.qcow2", "b1.qcow2", "vda.qcow2")]
    create(images[0])
    for below, image in itertools.pairwise(images):
        create(image, "-b", str(below), "-F", "qcow2")
    forgetful = images[2] if where == "top" else images[1]
    forget_format(forgetful)
    level = "<backingStore type='file'><format type='qcow2'/><source file='{}'/>{}</backingStore>"
    bare = own_vm(disk(images[2], level.format(images[1], level.format(images[0], "<backingStore/>"))))
    power(bare, running=True)
    power(bare, running=on)
    refused(quiesce, bare, f"{forgetful} does not record the format")
    power(bare, running=False)
    below = images[images.index(forgetful) - 1]
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, forgetful], check=True)
    for state in (on, not on):
        power(bare, running=state)
        take(quiesce, bare, f"now {state}")
    for name in (f"now {on}", f"now {not on}"):
        quiesce("restore", f"{bare.name}@{name}")
        power(bare, running=True)
        power(bare, running=False)
        quiesce("delete", f"{bare.name}@{name}")
        power(bare, running=True)
        power(bare, running=False)


@running
@pytest.mark.parametrize("chain", ["ends early", "other image"])
def test_a_definition_that_contradicts_the_headers(place, own_vm, quiesce, chain, on):
    """Broken: the VM would run on other images after the checkpoint than before."""
    base, other = create(place / "b0.qcow2"), create(place / "b1.qcow2")
    top = create(place / "vda.qcow2", "-b", str(base), "-F", "qcow2")
    level = f"<backingStore type='file'><format type='qcow2'/><source file='{other}'/><backingStore/></backingStore>"
    bare = own_vm(disk(top, "<backingStore/>" if chain == "ends early" else level))
    power(bare, running=on)
    refused(quiesce, bare, "headers")
    power(bare, running=False)
    power(bare, running=True)


@running
@pytest.mark.parametrize(("header", "named"), [("qcow2", "raw"), ("raw", "qcow2")])
def test_a_definition_that_declares_another_format(place, own_vm, quiesce, header, named, on):
    """Broken: after a checkpoint the guest would see another disk. A brother of the report of a chain that is only in the
    definition, which libvirt believes before it reads a header."""
    base = create(place / "b.qcow2")
    top = create(place / "vda.qcow2", "-u", "-b", str(base), "-F", header)
    level = f"<backingStore type='file'><format type='{named}'/><source file='{base}'/><backingStore/></backingStore>"
    bare = own_vm(disk(top, level))
    power(bare, running=on)
    refused(quiesce, bare, f"qemu-img rebase -u -f qcow2 -F {named} -b {base} {top}")
    power(bare, running=False)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", named, "-b", base, top], check=True)
    power(bare, running=on)
    take(quiesce, bare, "a")
    take(quiesce, bare, "b")


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_both_versions_of_headers_record_the_format(place, version):
    """Broken: an image of an older tool would be taken for one that does not record the format."""
    base = create(place / "b.qcow2")
    path = create(place / "x.qcow2", "-o", f"compat={version}", "-b", str(base), "-F", "qcow2")
    assert backing_format(path.read_bytes()[:65536]) == "qcow2"
    assert backing_format(base.read_bytes()[:65536]) is None
    raw = create(place / "r.raw", format="raw")
    assert backing_format(raw.read_bytes()[:65536]) is None


# -- ownership


@running
@pytest.mark.parametrize("mode", [0o660, 0o640, 0o600])
def test_an_overlay_belongs_to_whom_its_backing_file_belongs(place, own_vm, quiesce, mode, on):
    """Broken: a VM whose images libvirt does not give away would not start after a checkpoint, or not be checkpointed."""
    image = create(place / "vda.qcow2")
    os.chown(image, *QEMU)
    image.chmod(mode)
    label = f"<seclabel type='static' model='dac' relabel='no'><label>+{QEMU[0]}:+{QEMU[1]}</label></seclabel>"
    bare = own_vm(disk(image), rest=label)
    power(bare, running=True)
    power(bare, running=on)
    take(quiesce, bare, "a")
    overlays = set(place.glob("*.vda.*.qcow2"))
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in overlays} == {(*QEMU, mode)}
    take(quiesce, bare, "b")
    for _ in range(2):
        power(bare, running=False)
        power(bare, running=True)
        quiesce("restore", f"{bare.name}@a")
    power(bare, running=True)
    quiesce("delete", f"{bare.name}@a", f"{bare.name}@b")
    power(bare, running=False)
    power(bare, running=True)


def access_list(user: int) -> bytes:
    """Owner and this user may read and write, nobody else may do anything; as in linux/posix_acl_xattr.h."""
    nobody = 0xFFFFFFFF
    entries = ((0x01, 6, nobody), (0x02, 6, user), (0x04, 0, nobody), (0x10, 6, nobody), (0x20, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@running
def test_an_overlay_may_be_used_by_whom_an_access_list_names(place, own_vm, quiesce, on):
    """Broken: a VM whose user may use the image by `setfacl` alone would not start after a checkpoint. A brother of the report
    of images that libvirt does not give away."""
    image = create(place / "vda.qcow2")
    image.chmod(0o600)
    os.setxattr(image, "system.posix_acl_access", access_list(QEMU[0]))
    label = f"<seclabel type='static' model='dac' relabel='no'><label>+{QEMU[0]}:+{QEMU[1]}</label></seclabel>"
    bare = own_vm(disk(image), rest=label)
    power(bare, running=on)
    take(quiesce, bare, "a")
    take(quiesce, bare, "b")
    power(bare, running=False)
    power(bare, running=True)
    quiesce("restore", f"{bare.name}@a", "--start")
    assert bare.domain.isActive()


def test_the_seclabel_of_a_disk_stays(place, own_vm, quiesce):
    """Broken: libvirt would give away an image that its administrator keeps."""
    image = create(place / "vda.qcow2")
    image.chmod(0o666)
    bare = own_vm(disk(image, inside="<seclabel model='dac' relabel='no'/>"))
    for state in (False, True):
        power(bare, running=state)
        take(quiesce, bare, f"now {state}")
        assert "relabel='no'" in definition(bare)
    quiesce("restore", f"{bare.name}@now False", "--start")
    assert "relabel='no'" in definition(bare)

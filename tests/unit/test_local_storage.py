"""storage/local.py, as far as it needs no libvirt; tests/disks/test_storage.py has the rest."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quiesce.hypervisor.connection import Host
from quiesce.local import client
from quiesce.local.spelling import Spelling
from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.storage import quarantine
from quiesce.storage.digests import ContentDigest
from quiesce.storage.local import LocalStorage
from quiesce.storage.port import Overlays

MIB = 2**20


def silent(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStorage]:
    monkeypatch.setattr(client, "_files", None)
    host = object.__new__(Host)  # without a connection
    host.local, host.session, host._spelling = True, False, Spelling()
    yield LocalStorage(host)
    client.files().close()


def overlay(path: Path, backing: Path, format: str | None = "qcow2") -> str:
    """`format`: of the backing file; None: the header does not record it."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", format or "raw", path]
    subprocess.run(command, check=True)
    if format is None:
        subprocess.run(["qemu-img", "amend", "-q", "-f", "qcow2", "-o", "compat=1.1", path], check=True)
        content = bytearray(path.read_bytes())
        at = content.index(struct.pack(">I", 0xE2792ACA))
        content[at : at + 4] = struct.pack(">I", 0x6803F857)  # an extension that says nothing
        path.write_bytes(content)
    return str(path)


def raw_with_a_header(path: Path, names: str) -> str:
    """A raw disk whose guest has written the header of a qcow2 image with this backing file into it."""
    header = struct.pack(">4sIQIIQII", b"QFI\xfb", 3, 512, len(names), 16, 64 * MIB, 0, 0)
    path.write_bytes((header.ljust(512, b"\0") + names.encode()).ljust(MIB, b"\0"))
    return str(path)


def base(path: Path) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return str(path)


def test_what_is_declared_raw_is_not_what_its_guest_wrote_into_it(storage, tmp_path):
    """Broken: a guest could have any file of the host read as its backing file."""
    secret = base(tmp_path / "secret.qcow2")
    disk = raw_with_a_header(tmp_path / "disk", secret)
    assert storage.look([disk]).images[disk].backing == secret
    found = storage.look([disk], [disk])
    assert found.images.keys() == {disk}
    assert (found.images[disk].format, found.images[disk].backing, found.images[disk].capacity) == ("raw", None, MIB)
    over = overlay(tmp_path / "over.qcow2", tmp_path / "disk", "raw")
    found = storage.look([over])
    assert found.images.keys() == {over, disk}
    assert found.images[disk].capacity == MIB


@pytest.mark.parametrize("beside", [True, False], ids=["in the same directory", "elsewhere"])
def test_another_vms_guest_cannot_pretend_to_have_an_overlay_of_an_image(beside, storage, tmp_path):
    """Broken: with a few bytes on its own disk, a guest could keep every deletion on the host from being merged."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    image = base(mine / "image.qcow2")
    disk = raw_with_a_header((mine if beside else theirs) / "disk", image)
    lower = raw_with_a_header((mine if beside else theirs) / "lower", image)
    over = overlay(theirs / "over.qcow2", Path(lower), "raw")

    def below(raw: list[str]) -> dict[str, str]:
        found: Overlays = storage.overlays([str(mine)], [disk, over], raw)
        return dict(found.below)

    assert below([disk]) == {over: lower}
    assert below([])[disk] == image


def test_a_chain_of_others_is_followed_out_of_the_directory_and_back(storage, tmp_path):
    """Broken: an image would be removed that another VM reads by way of an image elsewhere."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    image = base(mine / "image.qcow2")
    middle = overlay(theirs / "middle.qcow2", mine / "image.qcow2")
    top = overlay(mine / "top.qcow2", theirs / "middle.qcow2")
    assert storage.overlays([str(mine)], [top]).below == {top: middle, middle: image}


def test_an_image_with_a_second_name_is_no_overlay_of_others(storage, tmp_path):
    """Broken: a deleted checkpoint would never be merged, for an image of its own that somebody linked."""
    image = base(tmp_path / "image.qcow2")
    top = overlay(tmp_path / "top.qcow2", tmp_path / "image.qcow2")
    (tmp_path / "again.qcow2").hardlink_to(top)
    (tmp_path / "link.qcow2").symlink_to(top)
    assert storage.look([top]).images.keys() == {top, image}
    assert storage.overlays([str(tmp_path)], []).below == {top: image}


def test_the_format_that_no_header_records_is_guessed_as_libvirt_guesses_it(storage, tmp_path):
    """Broken: a chain on a raw template, which libvirt starts, could not be checkpointed; or one on another that it does not
    start could be."""
    (tmp_path / "raw").write_bytes(bytes(MIB))
    base(tmp_path / "base.qcow2")
    plain = overlay(tmp_path / "plain.qcow2", tmp_path / "raw", None)
    other = overlay(tmp_path / "other.qcow2", tmp_path / "base.qcow2", None)
    images = storage.look([plain, other]).images
    assert (images[plain].backing_format, images[other].backing_format) == ("raw", "qcow2")
    assert (storage.backing_format(plain), storage.backing_format(other)) == (None, None)


def test_a_digest_of_the_content_reads_no_holes_and_counts_them(storage, tmp_path):
    """Broken: a copy that is not sparse would count as another image."""
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    pieces = {0: b"a" * 70_000, 8 * MIB: b"b" * 10}
    with sparse.open("wb") as file:
        for offset, piece in pieces.items():
            os.pwrite(file.fileno(), piece, offset)
        file.truncate(20 * MIB)
    full.write_bytes(sparse.read_bytes())
    expected = ContentDigest()
    expected.data(full.read_bytes())
    heard: list[tuple[int, int]] = []
    assert storage.content(str(sparse), lambda done, size: heard.append((done, size))) == expected.hexdigest()
    assert storage.content(str(full), silent) == expected.hexdigest()
    assert storage.tables(str(sparse), "raw") == storage.tables(str(full), "raw")
    assert heard
    assert {size for _, size in heard} == {20 * MIB}
    with pytest.raises(NotFoundError):
        storage.content(str(tmp_path / "gone"), silent)


def test_a_file_goes_into_the_quarantine_and_out_of_it(storage, tmp_path):
    """Broken: a repair would lose what it set aside, or put it where somebody else can exchange it."""
    path, now = tmp_path / "a.qcow2", datetime(2026, 11, 29, tzinfo=UTC)
    path.write_bytes(b"content")
    aside = storage.set_aside(str(path), now)
    assert (aside.original, Path(aside.path).read_bytes(), path.exists()) == (str(path), b"content", False)
    assert storage.aside(str(tmp_path)) == [aside]
    place = tmp_path / quarantine.NAME
    place.chmod(0o777)
    path.write_bytes(b"again")
    for refused in (lambda: storage.set_aside(str(path), now), lambda: storage.drop_aside(aside)):
        with pytest.raises(RefusedError, match="others may write"):
            refused()
    assert (path.read_bytes(), Path(aside.path).read_bytes()) == (b"again", b"content")
    place.chmod(0o700)
    storage.drop_aside(aside)
    assert not place.exists()
    with pytest.raises(NotFoundError):
        storage.set_aside(str(tmp_path / "gone"), now)


def test_a_file_has_the_rights_of_the_one_that_it_is_like(storage, tmp_path):
    """Broken: QEMU's user could not read the VM's UEFI variables."""
    model, path = tmp_path / "model", tmp_path / "variables"
    model.write_bytes(b"")
    model.chmod(0o440)
    storage.write(str(path), b"x", like=str(model))
    assert path.stat().st_mode & 0o777 == 0o640
    storage.write(str(path), b"y")
    assert path.stat().st_mode & 0o777 == 0o600

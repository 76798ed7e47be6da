"""local/: files of this machine, by way of a process that is left behind if a storage does not answer."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quiesce.local import client, halves
from quiesce.local.client import TaskFailed, Worker
from quiesce.local.headers import RAW, header
from quiesce.local.looking import TASKS
from quiesce.local.spelling import Spelling
from quiesce.model.errors import SilentStorageError
from tests.unit.hung_filesystem import hung

LIMIT_S = 1.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    with closing(Worker()) as found:
        yield found


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    with hung(tmp_path) as path:
        yield path


def image(path: Path, backing: str = "") -> Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-b", backing, "-F", "qcow2"] if backing else [])]
    subprocess.run([*command, path, *([] if backing else ["1M"])], check=True)
    return path


def test_one_storage_that_hangs_costs_the_limit_once(worker, silent, tmp_path):
    """Broken: a dead share with the disks of a hundred VMs would hold up an operation a hundred times as long."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "file").write_bytes(b"there")
    dead = [(f"{silent}/{number}", ["disk"]) for number in range(20)]
    good = (str(tmp_path / "good"), ["file"])
    started = time.monotonic()
    answers = worker.each("describe", [good, *dead, good], limit=LIMIT_S)
    assert LIMIT_S <= time.monotonic() - started < 3 * LIMIT_S + 10
    assert [type(answer) for answer in answers] == [list, *[SilentStorageError] * 20, list]
    assert answers[0] == answers[-1]
    assert str(silent) in answers[1].message
    started = time.monotonic()
    with pytest.raises(SilentStorageError):
        worker.one("room", str(silent), limit=60)  # it is known to hang
    assert time.monotonic() - started < 10


def test_what_leads_to_a_storage_that_hangs_is_left_alone_and_no_more(worker, silent, tmp_path):
    """Broken: with one link to a dead share, the directory in which the link is would be taken for dead."""
    (tmp_path / "link").symlink_to(silent)
    (tmp_path / "file").write_bytes(b"there")
    (first,) = worker.each("describe", [(f"{tmp_path}/link", ["disk"])], limit=LIMIT_S)
    assert isinstance(first, SilentStorageError)
    assert worker.one("read", f"{tmp_path}/file", 10) == b"there"


def test_the_worker_ends_with_whoever_started_it(silent, tmp_path):
    """Broken: after a kill, a file would be removed or written by nobody, while the next operation is at work."""
    program = textwrap.dedent(f"""
        import os, signal, threading
        from quiesce.local.client import files
        files().one("follow", "/")
        print(files()._process.pid, flush=True)
        threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        files().one("room", {str(silent)!r})
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_task_that_fails_says_why_and_others_go_on(worker, tmp_path):
    """Broken: a file that is not there would end the process that all others need."""
    (tmp_path / "file").write_bytes(b"there")
    answers = worker.each("read", [(f"{tmp_path}/gone", 10), (f"{tmp_path}/file", 10)])
    assert isinstance(answers[0], TaskFailed)
    with pytest.raises(FileNotFoundError):
        worker.one("read", f"{tmp_path}/gone", 10)
    assert answers[1] == b"there"


def test_a_name_that_no_file_can_have_is_no_fault_of_the_storage(worker, tmp_path):
    """Broken: a guest that writes such a name into its raw disk could have every storage of the host taken for dead."""
    with pytest.raises(OSError, match="null"):
        worker.one("spell", f"{tmp_path}/\0")
    assert worker.one("spell", str(tmp_path))[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("error", "there"), [(PermissionError(), True), (FileNotFoundError(), False), (NotADirectoryError(), False)], ids=repr
)
def test_what_a_user_may_not_look_at_is_there(error, there, monkeypatch):
    """Broken: a user without root's rights would see a traceback, or be refused a restore for what libvirt can read."""

    def fail(_path: str) -> None:
        raise error

    monkeypatch.setattr(os, "stat", fail)
    assert [TASKS["is_here"]("/root/x", directory) for directory in (True, False)] == [there, there]


def test_a_forked_process_has_a_worker_of_its_own(worker):
    """Broken: two processes would read each other's answers."""
    worker.one("spell", "/")
    first = worker._process
    child = os.fork()
    if child == 0:
        worker.one("spell", "/")
        os._exit(0 if worker._process is not first else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.one("spell", "/")[0] == "/"


def test_what_is_slow_but_alive_is_waited_for(worker, tmp_path):
    """Broken: the checksum of a large image would be given up."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    heard = []
    digest = worker.one("sha256", str(path), limit=LIMIT_S, progress=lambda done, size: heard.append((done, size)))
    assert len(digest) == 64
    assert heard[-1] == (300 * 2**20, 300 * 2**20)


def test_headers_are_read_as_qemu_writes_them(worker, tmp_path):
    """Broken: an overlay would not be seen, and its backing file be removed."""
    base = image(tmp_path / "base.qcow2")
    image(tmp_path / "one.qcow2", str(base))
    image(tmp_path / "two.qcow2", "one.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", "-b", base, "-F", "qcow2", tmp_path / "three.qed"], check=True)
    (tmp_path / "raw").write_bytes(b"QFI")
    (tmp_path / "link.qcow2").symlink_to(base)
    (tmp_path / os.fsdecode(b"f\xfcr.iso")).write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    found, links = worker.one("overlays", str(tmp_path), False, progress=lambda *_: None)
    assert {backing: sorted(names) for backing, names in found} == {
        (str(base), False): ["one.qcow2", "three.qed"],
        ("one.qcow2", False): ["two.qcow2"],
    }
    assert links == ["link.qcow2"]
    described = worker.one("describe", str(tmp_path), ["two.qcow2", "gone", "raw"])
    assert (described[0][5:], described[1]) == (("qcow2", 2**20, "one.qcow2", "qcow2", False), None)
    assert described[2][5:] == ("raw", None, None, None, False)
    status = (tmp_path / "raw").stat()
    assert described[2][4] == f"{status.st_uid} {status.st_gid} 0{status.st_mode & 0o777:o}"
    assert {name for name, _ in worker.one("listing", str(tmp_path), progress=lambda *_: None)} == {
        "base.qcow2", "one.qcow2", "two.qcow2", "three.qed", "raw", "link.qcow2", "fifo",
    }  # fmt: skip


def header_alone(path: Path, backing: str, at: int = 112) -> None:
    """An image of which there is only the header. `at`: where the name of the backing file is."""
    name = backing.encode()
    fields = (3, at, len(name), 16, 2**20, 0, 2, 196608, 65536, 1, 0, 0, 0, 0, 0, 4, 104)
    path.write_bytes(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *fields).ljust(at, b"\0") + name)


def test_many_images_are_looked_at_like_few(worker, tmp_path):
    """Broken: of a directory with thousands of images, an overlay in one half would not be seen."""
    paths = [tmp_path / f"{number:05}.qcow2" for number in range(halves.MANY + 100)]
    for number, path in enumerate(paths):
        if number % 100:
            path.write_bytes(b"raw" * 500)
        else:
            header_alone(path, f"base{number % 3}", 112 if number % 200 else 2000)
    for number in (0, 1, halves.MANY):  # two of them are overlays
        (tmp_path / f"link{number}").hardlink_to(paths[number])
    heard = []
    found, links = worker.one("overlays", str(tmp_path), False, progress=lambda *sign: heard.append(sign))
    linked = {paths[number].name for number in (0, halves.MANY)}
    assert {backing: sorted(names) for backing, names in found} == {
        (f"base{rest}", False): [
            path.name
            for number, path in enumerate(paths)
            if not number % 100 and number % 3 == rest and path.name not in linked
        ]
        for rest in range(3)
    }
    assert sorted(links) == sorted([*linked, "link0", f"link{halves.MANY}"])
    assert heard


def test_a_second_process_that_fails_is_no_empty_directory(monkeypatch, tmp_path):
    """Broken: half of a directory's overlays would be overlooked, and an image merged that they need."""
    monkeypatch.setattr(halves, "MANY", 2)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # which cannot be closed as a file
    with pytest.raises(OSError, match="second process"):
        halves.each(["a", "b"], lambda items, _: list(items), lambda *_: None)


def encrypted(path: Path, options: str) -> None:
    secret = ["--object", "secret,id=s,data=secret", "-o", options]
    subprocess.run(["qemu-img", "create", "-q", "-f", path.suffix[1:], *secret, path, "1M"], check=True)


@pytest.mark.parametrize("kind", ["qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "raw"])
def test_what_a_file_is_shows_in_its_header(kind, worker, tmp_path):
    """Broken: a template of another format would seem to have another size, and the overlay of it be cut off."""
    path = tmp_path / "image"
    options = ["-o", "force_size=on"] if kind == "vpc" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, "4M"], check=True)
    ((*_, found, capacity, backing, backing_format, secret),) = worker.one("describe", str(tmp_path), ["image"])
    assert (found, capacity or path.stat().st_size) == (kind, 4 * 2**20)
    assert (backing, backing_format, secret) == (None, None, False)


def test_whether_an_image_is_encrypted_shows_in_its_header(worker, tmp_path):
    """Broken: the overlay of an encrypted image would be in plain text."""
    encrypted(tmp_path / "a.luks", "key-secret=s,iter-time=10")
    encrypted(tmp_path / "a.qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    described = worker.one("describe", str(tmp_path), ["a.luks", "a.qcow2"])
    assert [(each[5], each[-1]) for each in described] == [("raw", True), ("qcow2", True)]


def test_the_format_of_a_backing_file_is_what_the_header_records(worker, tmp_path):
    """Broken: a raw base would be probed, and its guest could have any file of the host read."""
    (tmp_path / "base").write_bytes(bytes(2**20))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "one"], check=True)
    assert worker.one("describe", str(tmp_path), ["one"])[0][7:9] == ("base", "raw")
    assert worker.one("backing_files", str(tmp_path), ["one", "base"]) == [("base", True), None]


@pytest.mark.parametrize("name", [b"f\xfcr", b"a\0b"])
def test_a_backing_file_that_qemu_of_ours_cannot_have_named(name):
    """Broken: a guest's raw disk that begins so would end the process that all others need."""
    start = struct.pack(">4sIQIIQII", b"QFI\xfb", 3, 512, len(name), 16, 2**20, 0, 0).ljust(512, b"\0") + name
    assert header(start, lambda offset, length: start[offset : offset + length]) == RAW


def test_files_have_the_rights_that_are_given(worker, tmp_path):
    """Broken: QEMU could not open the overlay, or anybody could."""
    (tmp_path / "staged").write_bytes(b"overlay")
    worker.one("put", f"{tmp_path}/a", f"{tmp_path}/staged", (-1, -1, 0o640, b""))
    worker.one("write", f"{tmp_path}/b", b"variables", (os.geteuid(), os.getegid(), 0o604, b""))
    worker.one("write", f"{tmp_path}/c", b"variables", None)
    assert [worker.one("rights", f"{tmp_path}/{name}")[2] for name in "abc"] == [0o640, 0o604, 0o600]
    assert (tmp_path / "a").read_bytes() == b"overlay"


def test_a_path_has_one_spelling_also_where_a_storage_hangs(silent, tmp_path, monkeypatch):
    """Broken: the definitions of all VMs could not be compared because of one."""
    monkeypatch.setattr(client, "_files", None)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    names = [f"{tmp_path}/link/..//link/a", f"{silent}/b", f"{tmp_path}/real/c"]
    found = Spelling().of(names, LIMIT_S)
    assert found == {names[0]: f"{tmp_path}/real/a", names[2]: f"{tmp_path}/real/c"}
    client.files().close()


def test_a_file_with_several_names_has_one_spelling_and_a_device_keeps_its_path(tmp_path, monkeypatch):
    """Broken: an image would be taken for two, and one of them be removed; or the path of a volume be lost with a boot."""
    monkeypatch.setattr(client, "_files", None)
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "zero").symlink_to("/dev/zero")
    spelling = Spelling()
    assert spelling.of([f"{tmp_path}/b", f"{tmp_path}/a"], LIMIT_S) == dict.fromkeys(
        (f"{tmp_path}/a", f"{tmp_path}/b"), f"{tmp_path}/b"
    )
    devices = ["/dev/zero", "/dev/vg/gone", f"{tmp_path}/zero"]
    assert spelling.of(devices, LIMIT_S) == {path: path for path in devices}
    files = ["/dev/shm/a", f"{tmp_path}/a", f"{tmp_path}/gone"]
    found = [spelling.is_device(path, LIMIT_S) for path in (*devices, *files)]
    assert found == [True] * 3 + [False] * 3
    client.files().close()

"""agent/openfiles.py: real processes that have files open, and the looks at them, which nothing may hang."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent import openfiles
from quiesce.agent.mounts import Found, Mount
from quiesce.agent.openfiles import Disks, IncompleteError, WritingProcess, WrittenFile, is_log, parse_fdinfo, parse_maps
from quiesce.agent.writers.base import deadline_in_ns

REALLY = Disks.of


@pytest.fixture(autouse=True)
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    """The filesystem of the test's own directory is a disk, whatever it is on this machine; no other is."""
    with (tmp_path / "probe").open("w") as file:
        _, mount = parse_fdinfo(Path(f"/proc/self/fdinfo/{file.fileno()}").read_text())
        device = os.fstat(file.fileno()).st_dev
    found = Disks({mount: (os.major(device), os.minor(device))}, frozenset({(os.major(device), os.minor(device))}))
    monkeypatch.setattr(Disks, "of", lambda _: found)
    return found


@contextlib.contextmanager
def running(code: str, directory: Path, **how: object) -> Iterator[int]:
    """A program that does this and then nothing more. Ready when the block begins."""
    ready, told = os.pipe()
    program = f"import os, time\nF = 'data'\n{code}\nos.write({told}, b'x')\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], cwd=directory, pass_fds=[told], **how)  # type: ignore[call-overload]
    try:
        os.close(told)
        assert os.read(ready, 1) == b"x"
        yield process.pid
    finally:
        os.close(ready)
        process.kill()
        process.wait()


def looked_at(pid: int) -> WritingProcess | None:
    hung: set[int] = set()
    found = openfiles.look(deadline_in_ns(20), hung)
    assert hung == set()
    return next((each for each in found if each.pid == pid), None)


MMAP = """
import ctypes
mmap = ctypes.CDLL(None).mmap
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
"""  # Python's own keeps a descriptor open
DATA, LOG, NOTHING = "data", "log", "nothing"
SITUATIONS = {
    "read and written": ("os.open(F, os.O_RDWR)", DATA),
    "written": ("os.open(F, os.O_WRONLY)", DATA),
    "appended to, as a write-ahead log": ("os.open(F, os.O_WRONLY | os.O_APPEND)", DATA),
    "read": ("os.open(F, os.O_RDONLY)", NOTHING),
    "only named": ("os.open(F, os.O_PATH)", NOTHING),
    "mapped shared, its descriptor closed": (
        MMAP + "f = os.open(F, os.O_RDWR); mmap(None, 4096, 3, 1, f, 0); os.close(f)",
        DATA,
    ),
    "mapped for itself": (MMAP + "f = os.open(F, os.O_RDWR); mmap(None, 4096, 3, 2, f, 0); os.close(f)", NOTHING),
    "mapped to read": (MMAP + "f = os.open(F, os.O_RDWR); mmap(None, 4096, 1, 1, f, 0); os.close(f)", NOTHING),
    "a log": ("os.open('shop.log', os.O_WRONLY | os.O_APPEND)", LOG),
    "a log by its directory": ("os.open('logs/shop', os.O_WRONLY | os.O_APPEND)", LOG),
    "a log's name, and read": ("os.open('shop.log', os.O_RDWR | os.O_APPEND)", DATA),
    "a log's name, and written anywhere": ("os.open('shop.log', os.O_WRONLY)", DATA),
    "a log that is also data": ("os.open('shop.log', os.O_WRONLY | os.O_APPEND); os.open('shop.log', os.O_RDWR)", DATA),
    "its standard output": ("f = os.open(F, os.O_WRONLY); os.dup2(f, 1); os.close(f)", LOG),
    "data at the number of its standard output": ("os.dup2(os.open(F, os.O_RDWR), 1)", DATA),
    "a lock": ("os.open('empty', os.O_RDWR)", NOTHING),
    "without a name": ("os.open('gone', os.O_RDWR); os.unlink('gone')", NOTHING),
    "a pipe with a name": ("os.open('pipe', os.O_RDWR)", NOTHING),
    "a directory": ("os.open('logs', os.O_RDONLY)", NOTHING),
    "in memory": ("f = os.memfd_create('x'); os.write(f, b'x')", NOTHING),
    "a name that a terminal obeys": ("os.open(b'\\x1b[2J\\n\\xff', os.O_RDWR)", DATA),
}


@pytest.mark.parametrize(("code", "expected"), SITUATIONS.values(), ids=SITUATIONS)
def test_what_a_process_does_with_a_file(code, expected, tmp_path):
    """Broken: a database would be passed over; or every program that reads, or logs, be taken for one."""
    (tmp_path / "logs").mkdir()
    for name in ("data", "shop.log", "logs/shop", "gone", os.fsdecode(b"\x1b[2J\n\xff")):
        (tmp_path / name).write_bytes(b"x" * 4096)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with running(code, tmp_path) as pid:
        found = looked_at(pid)
    if expected == NOTHING:
        assert found is None
        return
    assert found is not None
    assert os.path.realpath(found.executable) == os.path.realpath(sys.executable)
    assert not found.container
    [file] = found.files
    assert file.log is (expected == LOG)
    assert file.path.startswith(f"{os.path.realpath(tmp_path)}/")
    if "terminal" in code:
        assert file.path.endswith("\x1b[2J\n\udcff")


def test_a_file_on_another_filesystem_is_not_touched(tmp_path, disks, monkeypatch):
    """Broken: a look would wait for a server or a FUSE program that does not answer, or call its files ours."""
    (tmp_path / "data").write_bytes(b"x")
    with running(MMAP + "f = os.open(F, os.O_RDWR); mmap(None, 4096, 3, 1, f, 0)", tmp_path) as pid:
        monkeypatch.setattr(Disks, "of", lambda _: Disks({}, frozenset()))
        stat, asked = os.stat, []
        monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
        assert list(openfiles._look_at(pid, Disks({}, frozenset()), stat("/"))) == []
        assert asked == []
        assert looked_at(pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
def test_a_file_that_only_the_process_sees_by_its_name(tmp_path):
    """Broken: a database in a container, or in a service with mounts of its own, would be passed over."""
    (tmp_path / "data").write_bytes(b"x")
    (tmp_path / "inside").mkdir()
    code = "exec sleep 60 3<>inside/data"
    command = ["unshare", "--mount", "sh", "-c", f"mount --bind . inside && echo ready && {code}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                pytest.skip("no mount namespaces here")
            time.sleep(0.3)
            mounts = Path(f"/proc/{process.pid}/mountinfo").read_text()
            inner = next(int(line.split()[0]) for line in mounts.splitlines() if line.split()[4].endswith("/inside"))
            device = tmp_path.stat().st_dev
            found = Disks({inner: (os.major(device), os.minor(device))}, frozenset())
            [seen] = openfiles._look_at(process.pid, found, Path("/").stat())
            assert [file.path for file in seen.files] == [f"{os.path.realpath(tmp_path)}/inside/data"]
        finally:
            process.kill()


def test_which_filesystems_are_on_the_machines_disks():
    """Broken: what a container writes would be passed over, or what is on a server be called ours."""

    def found(id: int, fstype: str, skip: str | None) -> Found:
        return Found((Mount(id, (0, id), f"/{id}", fstype, "x", False),), skip)

    items = [found(1, "ext4", None), found(2, "overlay", "carried"), found(3, "nfs", "network"), found(4, "ext4", "read-only")]
    disks = REALLY(items)
    assert (disks.mounts, disks.devices) == ({1: (0, 1), 2: (0, 2)}, {(0, 1), (0, 2)})


MAPS = b"""\
7f0000000000-7f0000001000 rw-s 00000000 08:01 11    /srv/shared and written
7f0000001000-7f0000002000 rwxs 00000000 08:01 12    /srv/with a\\012newline
7f0000002000-7f0000003000 -w-s 00000000 08:01 13    /srv/only written
7f0000003000-7f0000004000 rw-p 00000000 08:01 14    /srv/its own copy
7f0000004000-7f0000005000 r--s 00000000 08:01 15    /srv/read
7f0000005000-7f0000006000 rw-s 00000000 00:05 16    /memfd:x (deleted)
7f0000006000-7f0000007000 rw-s 00000000 08:02 17    /elsewhere/file
7f0000007000-7f0000008000 rw-s 00000000 08:01 18    /srv/gone (deleted)
7f0000008000-7f0000009000 rw-s 00000000 00:00 0
7f0000009000-7f000000a000 rw-s 00000000 08:01 19    /dev/zero
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0     [stack]
"""


def test_mappings_are_read_as_the_kernel_writes_them():
    """Broken: what a database maps would be passed over, or a library be called data."""
    disks = Disks({}, frozenset({(8, 1)}))
    assert [(file.id, file.path) for file in parse_maps(MAPS, disks)] == [
        ("8:1:11", "/srv/shared and written"),
        ("8:1:12", "/srv/with a\\012newline"),
        ("8:1:13", "/srv/only written"),
    ]


@pytest.mark.parametrize(
    ("descriptor", "flags", "path", "expected"),
    [
        (5, os.O_WRONLY | os.O_APPEND, "/srv/shop/log/shop", True),
        (5, os.O_WRONLY | os.O_APPEND, "/srv/shop/catalogs/shop", False),
        (5, os.O_WRONLY | os.O_APPEND, "/srv/shop.logbook", False),
        (5, os.O_WRONLY | os.O_APPEND, "/srv/shop.err", True),
        (5, os.O_WRONLY | os.O_TRUNC, "/srv/000003.log", False),  # as LevelDB opens it
        (5, os.O_RDWR, "/kafka/logs/0/00000000000000000000.log", False),
        (1, os.O_WRONLY, "/srv/output", True),
        (2, os.O_WRONLY | os.O_APPEND, "/srv/output", True),
        (0, os.O_WRONLY, "/srv/data", False),
        (1, os.O_RDWR, "/srv/data", False),
    ],
)
def test_what_is_a_log(descriptor, flags, path, expected):
    """Broken: a database's log would be no reason to doubt the label; or each program's own log be one."""
    assert is_log(descriptor, flags, path) is expected


@pytest.mark.parametrize("text", ["", "flags:\t0100002\n", "mnt_id:\t5\n", "pos:\t0\nflags:\tx\nmnt_id:\t5\n"])
def test_an_fdinfo_without_what_is_asked_is_none(text):
    """Broken: a file closed meanwhile would end the look."""
    with pytest.raises(ValueError, match="no fdinfo"):
        parse_fdinfo(text)
    assert parse_fdinfo("pos:\t0\nflags:\t0100002\nmnt_id:\t28\nino:\t7\n") == (0o100002, 28)


# -- nothing hangs


def played(monkeypatch: pytest.MonkeyPatch, **does: object) -> None:
    """Three processes, 11 to 13, each of which writes a file named as it; or does something else when it is looked at."""
    monkeypatch.setattr(
        os, "listdir", lambda path, really=os.listdir: ["11", "12", "13", "net"] if path == "/proc" else really(path)
    )

    def look_at(pid: int, *_: object) -> Iterator[WritingProcess]:
        what = does.get(f"p{pid}")
        if callable(what):
            what()
        yield WritingProcess(pid, "/bin/x", "", False, (WrittenFile(str(pid), "/srv/\udcff"),))

    monkeypatch.setattr(openfiles, "_look_at", look_at)
    monkeypatch.setattr(openfiles, "HUNG_S", 1.0)


def test_a_process_at_which_the_look_hangs_is_passed_over(monkeypatch):
    """Broken: one process that waits for a FUSE program would keep the agent from answering."""
    played(monkeypatch, p12=lambda: time.sleep(60))
    hung: set[int] = set()
    assert [each.pid for each in openfiles.look(deadline_in_ns(20), hung)] == [11, 13]
    assert hung == {12}
    assert [each.pid for each in openfiles.look(deadline_in_ns(20), hung)] == [11, 13]


def test_a_look_that_gets_no_processor_does_not_hang(monkeypatch):
    """Broken: on a busy machine a database would be passed over, and the label be application."""

    def work() -> None:
        while sum(os.times()[:2]) < 2.5:  # its own processor time, so that a busy machine only makes it longer
            pass

    played(monkeypatch, p12=work)
    hung: set[int] = set()
    assert [each.pid for each in openfiles.look(deadline_in_ns(50), hung)] == [11, 12, 13]
    assert hung == set()


def test_a_look_that_fails_is_no_look(monkeypatch):
    """Broken: a look that ran out of memory would find nothing, and the label be application."""

    def fail() -> None:
        raise MemoryError

    played(monkeypatch, p12=fail)
    with pytest.raises(IncompleteError):
        openfiles.look(deadline_in_ns(20), set())


def test_a_look_ends_at_its_deadline(monkeypatch):
    """Broken: a machine with very many processes would keep the agent from answering; or count as looked at."""
    played(monkeypatch, p12=lambda: time.sleep(60))
    with pytest.raises(IncompleteError):
        openfiles.look(deadline_in_ns(0.1), set())


def test_a_look_has_room_for_so_much(monkeypatch):
    """Broken: anybody's processes could fill the agent's memory."""
    played(monkeypatch)
    monkeypatch.setattr(openfiles, "MAX_TOLD", 150)
    with pytest.raises(IncompleteError):
        openfiles.look(deadline_in_ns(20), set())


def test_the_child_that_looks_keeps_nothing_open(monkeypatch, tmp_path):
    """Broken: a session of a database would outlive the agent in a child that hangs, and with it the hold."""
    report = tmp_path / "open"
    played(
        monkeypatch,
        p11=lambda: report.write_text(
            "\n".join(str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
        ),
    )
    with (tmp_path / "session").open("w"):
        openfiles.look(deadline_in_ns(20), set())
    [only] = [line for line in report.read_text().splitlines() if line != str(report)]
    assert only.startswith("pipe:")


def test_many_files_are_told_up_to_a_number(tmp_path, monkeypatch):
    """Broken: a process with a million files open would take all the time there is."""
    monkeypatch.setattr(openfiles, "MAX_FILES", 5)
    code = "for n in range(20): open(str(n), 'w').write('x')\nkept = [open(str(n), 'r+') for n in range(20)]"
    with running(code, tmp_path) as pid:
        found = looked_at(pid)
    assert found is not None
    assert [Path(file.path).name for file in found.files] == ["0", "1", "2", "3", "4"]

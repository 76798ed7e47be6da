"""agent/processes.py: real processes and sockets of our own, and files as /proc has them where that cannot be had."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for
from quiesce.agent import processes
from quiesce.agent.processes import Process

OWN = os.getpid()
GONE = 2**22 + 1


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is below /proc instead of what really is, by path."""
    files: dict[str, str] = {}
    really = builtins.open

    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        return io.StringIO(files[path]) if path in files else really(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", opened)
    return files


class Sleepers:
    """Processes that do nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str = "", *arguments: str, **options: Any) -> int:
        program = Path("/bin/sleep")
        if name:
            program = self._directory / name
            program.symlink_to("/bin/sleep")
        self._started.append(subprocess.Popen([str(program), "60", *arguments], **options))
        pid = self._started[-1].pid
        wait_for(lambda: processes.command_line(pid)[1:2] == ["60"], 5)  # which it has a moment after Popen returns
        return pid

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[Sleepers]:
    made = Sleepers(tmp_path)
    yield made
    made.stop()


def test_processes_are_found_by_the_kernels_name(sleepers):
    """Broken: no application would be found; or each of those whose name is longer than 15 characters."""
    pid, other = sleepers.start("shop"), sleepers.start("a-name-that-is-too-long")
    assert list(processes.running("shop")) == [Process(pid, "shop", 0, container=False)]
    both = list(processes.running("shop", "a-name-that-is-"))
    assert [(found.pid, found.name) for found in both] == sorted([(pid, "shop"), (other, "a-name-that-is-")])
    assert {pid, other, OWN} <= {found.pid for found in processes.running()}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_a_process_is_its_users(sleepers):
    """Broken: a database would be asked as root, whom it does not let in."""
    pid = sleepers.start(user=65534)
    assert next(found for found in processes.running("sleep") if found.pid == pid).uid == 65534


def test_a_process_with_another_root_directory_is_in_a_container(monkeypatch):
    """Broken: the paths of what runs in a container would be taken for this machine's."""
    stat = os.stat

    def elsewhere(path: Any) -> os.stat_result:
        return stat("/proc" if path == f"/proc/{OWN}/root" else path)

    monkeypatch.setattr(os, "stat", elsewhere)
    [own] = [found for found in processes.running() if found.pid == OWN]
    assert own.container


def test_a_process_that_ends_meanwhile_is_passed_over(monkeypatch):
    """Broken: looking at a busy machine would fail at random."""
    monkeypatch.setattr(os, "listdir", lambda _: [str(GONE), str(OWN), "self", "net"])
    assert [found.pid for found in processes.running()] == [OWN]
    assert processes.command_line(GONE) == []
    assert processes.cgroup(GONE) == processes.unit(GONE) == ""
    monkeypatch.undo()
    assert list(processes.open_files(GONE)) == []
    assert processes.listening_ports(GONE) == []
    assert processes.listening_paths(GONE) == []


def test_a_command_line_is_split_where_the_kernel_splits_it(sleepers, tmp_path):
    """Broken: a configuration file with a space in its path would not be found."""
    pid = sleepers.start("a shop", "60s", " 60")
    assert processes.command_line(pid) == [str(tmp_path / "a shop"), "60", "60s", " 60"]


@pytest.mark.parametrize(
    ("lines", "group"),
    [
        ("0::/system.slice/nginx.service\n", "/system.slice/nginx.service"),
        ("12:cpu:/x\n1:name=systemd:/y\n0::/system.slice/a b.service\n", "/system.slice/a b.service"),
        ("0::/\n", "/"),
        ("1:name=systemd:/only/v1\n", ""),
        ("", ""),
    ],
)
def test_the_control_group_is_that_of_the_second_version(lines, group, proc):
    """Broken: another group would be frozen, or none."""
    proc["/proc/7/cgroup"] = lines
    assert processes.cgroup(7) == group


@pytest.mark.parametrize(
    ("group", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker", "nginx.service"),
        ("/system.slice/system-postgresql.slice/postgresql@17-main.service", "postgresql@17-main.service"),
        ("/system.slice/shop.service/payload/inner.service", "shop.service"),
        ("/system.slice/docker-0123.scope", ""),
        ("/system.slice/docker-0123.scope/system.slice/nginx.service", ""),
        ("/user.slice/user-0.slice/user@0.service/app.slice/shop.service", ""),
        ("/machine.slice/libpod-0123.scope", ""),
        ("/init.scope", ""),
        ("/", ""),
    ],
)
def test_the_unit_is_the_one_systemd_has_it_in(group, unit, proc):
    """Broken: a container's nginx would be taken for the machine's, and the machine's be frozen for it."""
    proc["/proc/7/cgroup"] = f"0::{group}\n"
    assert processes.unit(7) == unit


def test_open_files_are_paths(tmp_path):
    """Broken: no SQLite file would be found."""
    with (tmp_path / "a file").open("w"):
        assert str(tmp_path / "a file") in list(processes.open_files(OWN))
    assert str(tmp_path / "a file") not in list(processes.open_files(OWN))


def test_ports_are_those_this_machine_can_reach_itself_by():
    """Broken: Redis would be asked where it does not listen."""
    local, every, closed = socket.socket(), socket.socket(), socket.socket()
    with local, every, closed:
        local.bind(("127.0.0.1", 0))
        every.bind(("0.0.0.0", 0))  # noqa: S104
        closed.bind(("127.0.0.1", 0))
        local.listen()
        every.listen()
        ports = processes.listening_ports(OWN)
        assert {local.getsockname()[1], every.getsockname()[1]} <= set(ports)
        assert closed.getsockname()[1] not in ports
        assert ports == sorted(ports)


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1
   1: 0A00020F:18EC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1
   2: 0100007F:18ED 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 103 1
   3: 00000000:18EE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 999 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr uid timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 104 1
   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 105 1
   2: 000080FE00000000FF005450B6FE1234:0052 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 106 1
"""


def test_ports_are_read_as_the_kernel_writes_them(proc, monkeypatch):
    """Broken: a port of another process, of a client's connection, or of another address would be taken for it."""
    proc["/proc/7/net/tcp"], proc["/proc/7/net/tcp6"] = TCP, TCP6
    opened = [f"socket:[{inode}]" for inode in range(101, 107)]
    monkeypatch.setattr(processes, "open_files", lambda _: iter([*opened, "/dev/null", "anon_inode:[eventpoll]"]))
    assert processes.listening_ports(7) == [0x50, 0x51, 0x18EB]


def test_sockets_in_the_filesystem_are_found_if_somebody_listens(tmp_path):
    """Broken: PgBouncer and MariaDB could not be reached."""
    paths = [str(tmp_path / name) for name in ("b", "a b", "closed")]
    sockets = [socket.socket(socket.AF_UNIX) for _ in paths]
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0quiesce-test-{OWN}")
    abstract.listen()
    for each, path in zip(sockets, paths, strict=True):
        each.bind(path)
    for each in sockets[:2]:
        each.listen()
    found = processes.listening_paths(OWN)
    assert [path for path in found if path.startswith(str(tmp_path))] == sorted(paths[:2])
    assert all(path.startswith("/") for path in found)
    for each in (*sockets, abstract):
        each.close()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a process namespace of its own")
def test_a_process_has_another_number_in_its_own_namespace():
    """Broken: a database in a process namespace of its own (systemd's PrivatePIDs=) would not be found, and the guest be called
    application-consistent without it."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo $$; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stdout is not None
            inner = outer.stdout.readline().strip()
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            assert [processes.own_pid(int(pid)) for pid in children] == [inner] == ["1"]
        finally:
            outer.kill()
    assert processes.own_pid(os.getpid()) == Path("/proc/self/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1]
    assert processes.own_pid(2**22) == ""

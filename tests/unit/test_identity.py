"""agent/identity.py, agent/files.py and who is listed as a stranger: real processes, files, links, pipes and devices of a user
who wishes the agent ill."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.standstill import wait_for, within
from quiesce.agent import files, identity, looks, mounts, openfiles, processes, sockets, systemd
from quiesce.agent.mountinfo import Mount
from quiesce.agent.openfiles import WritingProcess, WrittenFile
from quiesce.agent.processes import Process
from quiesce.agent.writers import declared, postgresql_files, redis, sqlite, strangers, unsupported, wal, web
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.unaccounted import Unaccounted, judge_looks, summarise
from quiesce.model.grades import Grade
from tests.unit.hostile import NOBODY, start_named

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory in which everybody may do everything."""
    path = Path(f"/tmp/g3-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[Process]:
    """A process, once it has its own name."""
    try:
        wanted = Path(process.args[0]).name[:15]  # type: ignore[index]
        wait_for(lambda: processes.kernel_name(process.pid) == wanted, 10)
        uid = processes.owner(process.pid)
        yield Process(process.pid, processes.kernel_name(process.pid), uid, container=False)
    finally:
        process.kill()
        process.wait(10)


# -- who is who


@root_only
@pytest.mark.parametrize("name", ["mariadbd", "redis-server", "etcd", "nginx", "postgres", "slapd"])
def test_a_process_that_only_has_the_name_is_a_stranger(name, place):
    """Broken: any user could have a guest's backups refused for ever, or the agent ask him, by the name of a process."""
    with running(start_named(place, name)) as found:
        assert identity.why_stranger(found) == f"its executable {place}/{name} is not root's"
        assert found.pid not in {process.pid for process in identity.applications(name)}
        for module in (redis, unsupported, web):
            assert found.pid not in {pid for writer in module.discover() for pid in writer.pids}
        [listed] = [writer for writer in strangers.discover() if found.pid in writer.pids]
        listed.identify()
        report = listed.report()
        assert (report.required, report.matters_to_others, report.grade, report.last_error) == (False, False, Grade.CRASH, None)
        assert f"process {found.pid} of user nobody has the name of" in str(report.reason)


@root_only
def test_an_interpreter_that_calls_itself_a_database_is_a_stranger(place):
    """Broken: `python3`, which is root's, would pass for a MariaDB under that name."""
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'mariadbd'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], user=NOBODY)
    try:
        wait_for(lambda: processes.kernel_name(process.pid) == "mariadbd", 10)
        why = identity.why_stranger(Process(process.pid, "mariadbd", NOBODY, container=False))
        assert why.startswith("its executable is ")
    finally:
        process.kill()
        process.wait(10)


@root_only
def test_a_program_of_roots_is_an_application_whoever_runs_it(place):
    """Broken: a database that its own user runs from /usr/sbin, /opt or /usr/local would be passed over."""
    with running(start_named(place, "redis-server", user=0)) as found:
        assert identity.why_stranger(found) == ""
    os.chown(place / "redis-server", 0, 0)
    process = subprocess.Popen([place / "redis-server", "60"], user=NOBODY)
    with running(process) as found:
        assert identity.why_stranger(found) == ""
        (place / "redis-server").chmod(0o757)
        assert "anybody can write its executable" in identity.why_stranger(found)


CASES = [
    # uid, control group, owner of the executable, its parent's user, main process, whether it counts
    (112, "/system.slice/redis-server.service", 0, 0, False, True),
    (1001, "/system.slice/shop.service", 0, 1001, False, True),
    (112, "/system.slice/elasticsearch.service", 112, 1, True, True),
    (112, "/system.slice/supervisor.service", 112, 0, False, True),
    (33, "/system.slice/apache2.service", 33, 33, False, False),
    (1000, "/user.slice/user-1000.slice/session-3.scope", 0, 0, False, False),
    (1000, "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", 0, 0, False, False),
    (112, "/user.slice/user-0.slice/session-1.scope", 0, 0, False, True),
    (1000, "/system.slice/cron.service", 0, 0, False, False),
    (65534, "/system.slice/atd.service", 0, 0, False, False),
    (0, "/system.slice/cron.service", 0, 0, False, True),
    (112, "/redis", 0, 0, False, True),
    (0, "/", 0, 0, False, True),
    (112, "", 0, 0, False, True),
]


@pytest.mark.parametrize(("uid", "group", "owner", "parent", "main", "counts"), CASES)
def test_who_counts_by_user_executable_and_unit(uid, group, owner, parent, main, counts, monkeypatch):
    """Broken: a server of the system would be passed over, or a user's own be taken for one."""
    status = os.stat_result((0o100755, 1, 1, 1, owner, owner, 0, 0, 0, 0))
    monkeypatch.setattr(processes, "cgroup", lambda _: group)
    monkeypatch.setattr(processes, "executable", lambda _: "/opt/x/redis-server")
    monkeypatch.setattr(looks, "at_executable", lambda _: status)
    monkeypatch.setattr(processes, "parent", lambda _: 70)
    monkeypatch.setattr(processes, "owner", lambda _: parent)
    monkeypatch.setattr(systemd, "main_process", lambda _: 71 if main else 5)
    assert (identity.why_stranger(Process(71, "redis-server", uid, container=False)) == "") is counts


def test_a_web_server_that_cron_started_freezes_nothing(monkeypatch):
    """Broken: every job of cron, and cron itself, would stand still for a process named `nginx`."""
    monkeypatch.setattr(identity, "applications", lambda *_: iter([Process(7, "nginx", 0, container=False)]))
    monkeypatch.setattr(processes, "unit", lambda _: "cron.service")
    assert web.discover() == []
    monkeypatch.setattr(processes, "unit", lambda _: "nginx.service")
    assert [writer.id for writer in web.discover()] == ["nginx:nginx.service"]


def test_an_administrator_may_say_that_a_users_database_matters(tmp_path, monkeypatch):
    """Broken: the label could not be made to depend on a database that a person runs."""
    stranger = strangers.Stranger("unaccounted:redis@1000", "Redis", Process(1, "redis-server", 1000, container=False), "x")
    (tmp_path / "a.conf").write_text("[Match]\nWriter=unaccounted:redis@*\nRequired=yes\n")
    monkeypatch.setattr(declared, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(declared, "require_trusted", lambda _: None)
    [found] = declared.configured([stranger])
    found.identify()
    assert (found.required, found.grade.vouched, bool(found.error)) == (True, False, True)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=60))
def test_what_login_users_keep_open_lowers_no_label_and_hides_no_service(drawn):
    """Broken: `exec 3>>file; sleep` of any user would have every backup of the guest refused; or hide a database."""
    looked = []
    for number, (users, name) in enumerate(drawn):
        group = "" if users else "/system.slice/a.service"
        written = (WrittenFile(f"{number}", f"/srv/{name}"),)
        looked.append(WritingProcess(number, f"/x/{name}", group, False, written, users))
    found = [Unaccounted(id, each) for id, each in summarise(judge_looks([looked] * 3, []))]
    assert any(writer.required for writer in found) is any(not users for users, _ in drawn)


# -- files


@root_only
@pytest.mark.parametrize("kind", ["pipe", "link", "device", "zero", "socket", "directory"])
def test_nothing_but_a_regular_file_is_opened(kind, place):
    """Broken: the agent would hang at a pipe, read /dev/zero without end, or open a device, as root."""
    path = place / "pg_control"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "device":
        os.mknod(path, 0o20666, os.makedev(1, 5))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.mkdir()
    with within(5):
        for links in (False, True):
            if not (links and kind == "link"):
                with pytest.raises(OSError):
                    files.read_bytes(str(path), 100, links=links)
        with pytest.raises(OSError):
            files.read_bytes(str(path), 100, NOBODY, links=True)


@root_only
def test_a_pipe_as_a_segment_of_the_log_is_no_hang_in_the_window(place):
    """Broken: a database's user could have all the guest's applications stand still to the end of the window."""
    os.mkfifo(place / "000000010000000000000001")
    (place / "global").mkdir()
    os.mkfifo(place / "global" / "pg_control")
    with within(5):
        with pytest.raises(OSError, match="regular"):
            wal.tail(str(place), 1, 16 << 20, (16 << 20) + 40, NOBODY)
        with pytest.raises(OSError, match="regular"):
            postgresql_files.read_control_file(str(place), NOBODY)


@root_only
def test_roots_database_behind_a_link_is_not_opened_for_a_user(place):
    """Broken: a user would have root lock, and write to, a database of root's."""
    secret = place / "secret"
    secret.mkdir(mode=0o700)
    database = secret / "roots.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
    database.chmod(0o600)
    link = place / "shop.db"
    link.symlink_to(database)
    assert not sqlite.is_database(str(link), NOBODY)
    writer = Sqlite("shop.service", [str(link)], {str(link): NOBODY})
    writer.freezing = False
    writer.prepare(deadline_in_ns(5), 1000)
    assert writer.grade is Grade.REFUSED
    assert not list(secret.glob("*-wal"))
    writer.abort()


# -- sockets


@root_only
def test_a_socket_that_became_a_link_to_another_is_not_connected_to(place):
    """Broken: the agent, as root, would talk to a server that the user himself may not reach, and tell it a password."""
    with socket.socket(socket.AF_UNIX) as roots:
        roots.bind(str(place / "roots"))
        (place / "roots").chmod(0o600)
        roots.listen()
        (place / "s").symlink_to(place / "roots")
        os.lchown(place / "s", NOBODY, NOBODY)
        with pytest.raises(ConnectionError, match="a stranger's link"):
            sockets.connect(os.getpid(), str(place / "s"), 1, uid=0)
        with pytest.raises(ConnectionError, match="Permission denied"):
            sockets.connect(os.getpid(), str(place / "roots"), 1, uid=NOBODY)
        roots.setblocking(False)
        with pytest.raises(BlockingIOError):
            roots.accept()
        (place / "f").write_text("")
        with pytest.raises(ConnectionError, match="non-socket"):
            sockets.connect(os.getpid(), str(place / "f"), 1, uid=0)


def test_whoever_answers_at_a_port_is_told_from_the_server():
    """Broken: a password would be told to a stranger who listens at the server's port."""
    with socket.create_server(("127.0.0.1", 0)) as server, subprocess.Popen(["sleep", "60"]) as other:
        try:
            port = server.getsockname()[1]
            with sockets.connect_to_port(os.getpid(), port, 2) as connection, server.accept()[0]:
                sockets.require_answer_of(os.getpid(), connection)
                with pytest.raises(ConnectionError, match=f"another process than {other.pid} answers on port {port}"):
                    sockets.require_answer_of(other.pid, connection)
        finally:
            other.kill()


# -- mounts and processes without number


def test_mounts_of_users_have_an_end_and_disks_come_all_the_same(monkeypatch):
    """Broken: 100,000 mounts in a user's namespace would take minutes and hundreds of megabytes; or hide the disks."""
    many = [Mount(n, (0, 1000 + n), f"/m/{n}", "overlay", "overlay", super_read_only=False) for n in range(5000)]
    root = Mount(1, (254, 1), "/", "ext4", "/dev/vda1", super_read_only=False)
    monkeypatch.setattr(mounts, "_namespaces", lambda: (["1"], ["7"]))
    monkeypatch.setattr(mounts, "read_mounts", lambda pid, _: [root] if pid == "1" else [root, *many])
    found = mounts.find_filesystems()
    assert len(found) == mounts.MAX_USERS + 1
    assert [len(item.mounts) for item in found if item.mount.fstype == "ext4"] == [1]


def test_processes_of_users_without_number_do_not_keep_services_from_being_looked_at(monkeypatch):
    """Broken: whoever starts enough processes would have every checkpoint refused as not looked at in time."""
    monkeypatch.setattr(openfiles, "_is_users", lambda pid: pid != os.getppid())
    monkeypatch.setattr(openfiles, "USERS_NS", 0)
    hung: set[int] = set()
    openfiles.look(deadline_in_ns(20), hung)
    assert hung
    assert os.getppid() not in hung


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.integers(0, 2100), st.integers(0, 2100))
def test_a_read_has_the_bytes_that_were_asked_for(tmp_path, data, offset, limit):
    """Broken: the bounded read would lose, or add, bytes of a log."""
    path = tmp_path / "x"
    path.write_bytes(data)
    assert files.read_bytes(str(path), limit, offset=offset) == data[offset : offset + limit]

"""agent/writers/openldap.py: files as LMDB writes them; tests/vm has the server."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from quiesce.agent import cgroups, identity, processes, systemd
from quiesce.agent.processes import Process
from quiesce.agent.writers import openldap
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.openldap import Slapd, last_transaction
from quiesce.agent.writers.unsupported import Unreached
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from tests.unit.fake_systemd import Group, Systemctl, group_below

UNIT = "slapd.service"
MAGIC = 0xBEEFC0DE


def meta_page(transaction: int, *, magic: int = MAGIC, page_size: int = 4096) -> bytes:
    """As liblmdb's mdb.c has it on 64 bits: MDB_page's header, MDB_meta with its two MDB_db, of which the first one's md_pad
    is the page size."""
    header = struct.pack("=QHHI", 0, 0, 0x08, 0)
    free = struct.pack("=IHHQQQQQ", page_size, 0x08, 0, 0, 0, 0, 0, 2**64 - 1)
    main = struct.pack("=IHHQQQQQ", 0, 0, 1, 0, 1, 0, 5, 7)
    meta = struct.pack("=IIQQ", magic, 1, 0, 2**30) + free + main + struct.pack("=QQ", 9, transaction)
    return (header + meta).ljust(page_size, b"\0")


def database(directory: Path, *pages: bytes) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "data.mdb").write_bytes(b"".join(pages))
    return directory / "data.mdb"


@pytest.mark.parametrize(("first", "second"), [(6, 7), (8, 7), (0, 1), (2**40, 2**40 - 1)])
@pytest.mark.parametrize("page_size", [4096, 16384])
def test_the_later_of_the_two_meta_pages_counts(page_size, first, second, tmp_path):
    """Broken: a checkpoint would be known by the commit before its last."""
    pages = [meta_page(number, page_size=page_size) for number in (first, second)]
    assert last_transaction(str(database(tmp_path, *pages, b"\7" * page_size))) == max(first, second)


def test_a_page_that_is_no_meta_page_does_not_count(tmp_path):
    """Broken: a number from anywhere would be called a commit's."""
    assert last_transaction(str(database(tmp_path, meta_page(6), meta_page(99, magic=1)))) == 6
    assert last_transaction(str(database(tmp_path, meta_page(6)))) == 6


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\0" * 8192, b"\xff" * 8192, meta_page(5, magic=0) * 2, meta_page(5)[:151]]
)
def test_what_is_no_lmdb_file_says_so(content, tmp_path):
    """Broken: an attempt would end with an error of Python's."""
    with pytest.raises(ValueError, match="is no LMDB file"):
        last_transaction(str(database(tmp_path, content)))
    with pytest.raises(FileNotFoundError):
        last_transaction(str(tmp_path / "absent"))


# -- the writer


class Machine:
    def __init__(self, directory: Path, group: Group) -> None:
        self.group = group
        self.configuration = directory / "slapd.conf"
        self.configuration.write_text("database mdb\n")
        self.systemctl = Systemctl(directory)
        self.opened = [str(database(directory / "ldap", meta_page(6), meta_page(7))), "/dev/null", "socket:[5]"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "cgroup"))
    made = Machine(tmp_path, group_below(tmp_path / "cgroup", f"/system.slice/{UNIT}"))
    made.systemctl.has(UNIT)
    made.group.settles()
    monkeypatch.setattr(systemd, "SYSTEMCTL", made.systemctl.path)
    monkeypatch.setattr(processes, "cgroup", lambda _: "/system.slice/quiesce-agent.service")
    monkeypatch.setattr(processes, "open_files", lambda _: iter(made.opened))
    monkeypatch.setattr(openldap, "_configuration", lambda: [str(made.configuration)])
    return made


def prepared() -> Slapd:
    writer = Slapd(UNIT, Process(7, "slapd", 100, container=False))
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(5), 1000)
    return writer


def test_it_is_frozen_and_clean_wherever_it_stands(machine, tmp_path):
    """Broken: OpenLDAP would not be held; or its position be that of before the hold."""
    writer = prepared()
    report = writer.report()
    assert (report.id, report.application, report.level) == (f"openldap:{UNIT}", "openldap", Level.BACK_END)
    assert (report.grade, report.data_directory) == (Grade.CLEAN, str(tmp_path / "ldap"))
    assert report.position == {"last_txn_id": "7"}
    assert writer.paths() == [str(tmp_path / "ldap")]
    database(tmp_path / "ldap", meta_page(8), meta_page(7))
    writer.hold(deadline_in_ns(5))
    assert machine.group.asked == "1"
    assert writer.report().position == {"last_txn_id": "8"}
    writer.release()
    assert (machine.group.asked, writer.grade, writer.outcome) == ("0", Grade.CLEAN, Outcome.STABLE)
    writer.abort()


def test_each_of_several_databases_has_its_position(machine, tmp_path):
    """Broken: it would be unknown which database stands where."""
    machine.opened.append(str(database(tmp_path / "log", meta_page(1), meta_page(2))))
    writer = prepared()
    assert writer.position == {f"last_txn_id {tmp_path}/ldap": "7", f"last_txn_id {tmp_path}/log": "2"}
    assert writer.paths() == [f"{tmp_path}/ldap", f"{tmp_path}/log"]
    writer.abort()


SAFE = [
    "olcDbNoSync: FALSE\n",
    "olcDbDirectory: /var/lib/ldap/writemap\n",
    "# dbnosync\n",
    "database mdb\ndirectory /var/lib/nosync\n",
    "olcDbEnvFlags: nordahead\n",
    "envflags nordahead\n",
]
UNSAFE = [
    "olcDbNoSync: TRUE\n",
    "dn: x\nolcdbnosync:TRUE\n",
    "olcDbEnvFlags: writemap\n",
    "olcDbEnvFlags: {0}mapasync\n",
    "olcDbEnvFlags: nordahead nosync\n",
    "olcDbEnvFlags: nometasync\n",
    "database mdb\ndbnosync\nindex x eq\n",
    "DBNOSYNC\n",
    "envflags nordahead,writemap\n",
]


@pytest.mark.parametrize("text", SAFE)
def test_settings_that_keep_the_promise_are_no_obstacle(text, machine):
    """Broken: a directory that is safe could not be checkpointed."""
    machine.configuration.write_text(text)
    writer = prepared()
    assert writer.grade is Grade.CLEAN
    writer.abort()


@pytest.mark.parametrize("text", UNSAFE)
def test_settings_that_give_up_what_lmdb_promises_cost_the_grade(text, machine):
    """Broken: a database that a power failure can damage would be called clean."""
    machine.configuration.write_text(text)
    writer = prepared()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.NON_RETRYABLE)
    assert str(writer.reason).startswith("its databases are not safe at any instant: ")
    writer.hold(deadline_in_ns(5))
    assert machine.group.asked == "0"
    writer.abort()


def test_a_server_without_an_mdb_database_is_refused(machine):
    """Broken: another backend, of which nothing is known, would be called clean."""
    machine.opened[:] = ["/var/lib/ldap/id2entry.bdb"]
    writer = prepared()
    assert (writer.grade, writer.reason) == (Grade.REFUSED, "it has no open mdb database")


def test_a_file_that_cannot_be_read_under_the_hold_lets_the_server_go(machine, tmp_path):
    """Broken: it would stand still for a position that nobody gets."""
    writer = prepared()
    (tmp_path / "ldap" / "data.mdb").write_bytes(b"")
    with pytest.raises(WriterError, match="is no LMDB file"):
        writer.hold(deadline_in_ns(5))
    assert (machine.group.asked, writer.grade) == ("0", Grade.CRASH)


def test_the_real_places_of_the_configuration_are_looked_at():
    """Broken: unsafe settings would go unseen on every Debian."""
    assert openldap._configuration()[0] == "/etc/ldap/slapd.conf"
    assert openldap._read("/nowhere/slapd.conf") == ""


def test_every_server_is_found_also_where_it_cannot_be_held(machine, monkeypatch):
    """Broken: a directory in a container would be passed over in silence."""
    found = [Process(pid, "slapd", 0, container=False) for pid in (7, 8)]
    monkeypatch.setattr(identity, "applications", lambda _: iter(found))
    monkeypatch.setattr(processes, "unit", lambda pid: UNIT if pid == 7 else "")
    held, unreached = sorted(openldap.discover(), key=lambda writer: writer.id, reverse=True)
    assert (held.id, unreached.id) == (f"openldap:{UNIT}", "openldap:8")
    assert isinstance(unreached, Unreached)


def test_nothing_is_left_open(machine):
    """Broken: a long conversation would run out of descriptors."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    prepared().abort()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

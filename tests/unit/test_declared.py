"""agent/writers/declared.py: what an administrator's files say, and which of the writers that were found give way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quiesce.agent.writers import declared
from quiesce.agent.writers.declared import DeclaredCgroup, Misconfigured
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.stopped import StoppedService
from quiesce.agent.writers.web import WebServer
from quiesce.model.grades import Grade, Level
from tests.unit.declared_machine import UNIT, UNIT_WRITER, WRITER, Machine, make_machine, only, prepared, refused
from tests.unit.sample_writer import Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are heeded")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


def test_with_no_files_all_is_as_it_was_found(machine, monkeypatch):
    """Broken: a machine that nobody configured could not be checkpointed."""
    found = [Sample("a"), Sample("b")]
    assert declared.configured(list(found)) == found
    monkeypatch.setattr(declared, "DIRECTORY", str(machine.directory / "absent"))
    assert declared.configured(list(found)) == found


# -- [Writer]


def test_every_key_of_a_writer_is_heeded(machine):
    """Broken: what docs/writers.md promises."""
    machine.file(
        "# a comment\n[Writer]\nName=shop\nApplication=web shop\nLevel=front-end\nRequired=no\nHoldTimeoutSec=0.5\n"
        f"Unit={UNIT}\nCGroup=/shop.slice\nAction=freeze\nSTATELESS=yes\n; another\nPaths=/srv/a  /srv/b\n"
    )
    writer = only()
    assert isinstance(writer, DeclaredCgroup)
    assert (writer.id, writer.application, writer.unit) == ("declared:shop", "web shop", UNIT)
    assert (writer.level, writer.required, writer.stateless) == (Level.FRONT_END, False, True)
    assert (writer.hold_limit_ms, writer.outlives) == (500, True)
    assert (writer.paths(), writer.data_directory) == (["/srv/a", "/srv/b"], "/srv/a")
    assert writer._cgroup.path == "/shop.slice"


def test_what_is_not_said_is_as_the_docs_have_it(machine):
    """Broken: a short file would mean something else than docs/writers.md says."""
    machine.file(f"[Writer]\nName=shop\nUnit={UNIT}\n")
    writer = only()
    assert (writer.application, writer.level, writer.required, writer.stateless) == ("shop", Level.BACK_END, True, False)
    assert (writer.hold_limit_ms, writer.paths(), writer.data_directory) == (2000, [], None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{UNIT_WRITER}Colour=red\nHight=3\n", r"[Writer]: colour, hight is not known"),
        ("[Match]\nWriter=*\nStateless=yes\n", "[Match]: stateless is not known"),
        ("[Writers]\nName=shop\n", "section [Writers] is not known; there are [Writer] and [Match]"),
        ("[DEFAULT]\nRequired=no\n", "section [DEFAULT] is not known"),
        (f"{UNIT_WRITER}Stateless=perhaps\n", "Not a boolean: perhaps"),
        (f"{UNIT_WRITER}Required=\n", "Not a boolean"),
        (f"{UNIT_WRITER}CrashSafe=perhaps\n", "Not a boolean: perhaps"),
        (f"{UNIT_WRITER}CrashSafe=yes\n", "writer 'shop': CrashSafe= needs Paths="),
        (f"{UNIT_WRITER}CrashSafe=yes\nPaths=/srv\nStateless=yes\n", "needs no CrashSafe="),
        (f"{UNIT_WRITER}CrashSafe=yes\nPaths=/srv\nAction=stop\n", "CrashSafe= is for a unit or control group"),
        (
            f"{WRITER}Hold=/bin/true\nRelease=/bin/true\nCrashSafe=yes\nPaths=/srv\n",
            "CrashSafe= is for a unit or control group",
        ),
        ("[Match]\nWriter=*\nCrashSafe=yes\n", "[Match]: crashsafe is not known"),
        (f"{UNIT_WRITER}Level=Front-End\n", "'Front-End' is not a valid Level"),
        (f"{UNIT_WRITER}HoldTimeoutSec=2s\n", "2s"),
        (f"{UNIT_WRITER}HoldTimeoutSec=inf\n", "HoldTimeoutSec=inf is not more than 0"),
        (f"{UNIT_WRITER}HoldTimeoutSec=nan\n", "HoldTimeoutSec=nan is not more than 0"),
        (f"{UNIT_WRITER}HoldTimeoutSec=0\n", "HoldTimeoutSec=0 is not more than 0"),
        (f"{UNIT_WRITER}HoldTimeoutSec=-1\n", "HoldTimeoutSec=-1 is not more than 0"),
        (f"{UNIT_WRITER}Action=restart\n", "Action=restart is not known; there are freeze and stop"),
        (f"{WRITER}CGroup=/shop.slice\nAction=restart\n", "Action=restart is not known"),
        (f"{WRITER}CGroup=/shop.slice\nAction=stop\n", "Unit= is missing"),
        (f"[Writer]\nUnit={UNIT}\n", "Name= is missing"),
        (WRITER, "writer 'shop' has none of Unit, CGroup, Hold"),
        (f"{WRITER}Hold=/bin/true\n", "Release= is missing"),
        (f"{UNIT_WRITER}Release=/bin/true\n", "writer 'shop': Release= needs Hold="),
        (f"{UNIT_WRITER}Prepare=/bin/true\n", "writer 'shop': Prepare= needs Hold="),
        (f"{UNIT_WRITER}Position=/bin/true\n", "writer 'shop': Position= needs Hold="),
        (f"{WRITER}Hold='\nRelease=/bin/true\n", "No closing quotation"),
        ("[Match]\nRequired=no\n", "Writer= is missing"),
        ("[Match]\nWriter=*\nAction=restart\n", "Action=restart is not known"),
        ("[Match]\nWriter=*\nRequired=perhaps\n", "Not a boolean: perhaps"),
        ("[Match]\nWriter=*\nLevel=middle\n", "'middle' is not a valid Level"),
        ("[Match]\nWriter=*\nHoldTimeoutSec=1e9\n", "HoldTimeoutSec=1e9 is not more than 0 and at most 3600"),
        ("Name=shop\n", "no section headers"),
        (f"{UNIT_WRITER}[Writer]\nName=other\n", "section 'Writer' already exists"),
        (f"{UNIT_WRITER}Unit=other.service\n", "option 'unit'"),
        (f"{WRITER}Unit: {UNIT}\n", "parsing errors"),
        ("[Writer]\nName=\udcff\n", "utf-8"),
    ],
)
def test_what_makes_no_sense_is_refused_and_says_what(text, says, machine):
    """Broken: what an administrator asked for would be passed over in silence, and the label speak as if it had been done;
    or one slip of theirs would end every look at the machine with a traceback."""
    assert says in refused(machine, text, Sample("other"))


def test_a_file_that_others_can_write_is_refused(machine):
    """Broken: whoever can write it would be root."""
    machine.file(UNIT_WRITER).chmod(0o666)
    [writer] = declared.configured([])
    prepared(writer)
    assert (writer.id, writer.grade) == (f"configuration:{machine.writers_d}/one.conf", Grade.REFUSED)
    assert "chmod go-w" in str(writer.reason)


def test_a_directory_that_others_can_write_is_refused(machine):
    """Broken: as above."""
    machine.file(UNIT_WRITER)
    machine.writers_d.chmod(0o777)
    assert isinstance(only(), Misconfigured)


def test_one_bad_file_does_not_hide_a_good_one(machine):
    """Broken: a slip in one file would take the others' applications out of every checkpoint."""
    machine.file("[Writer]\n", "a.conf")
    machine.file(UNIT_WRITER, "b.conf")
    machine.file("[Writer]\nName=shop\nCGroup=/x\n", "c.conf")  # the name is taken
    machine.file("this is no configuration", "notes.txt")
    ids = [writer.id for writer in declared.configured([])]
    directory = machine.writers_d
    assert sorted(ids) == [f"configuration:{directory}/a.conf", f"configuration:{directory}/c.conf", "declared:shop"]


def test_a_name_that_is_taken_is_refused_and_said(machine):
    """Broken: two writers of one name would be one in every report."""
    machine.file(UNIT_WRITER, "a.conf")
    machine.file("[Writer]\nName=shop\nCGroup=/x\n", "b.conf")
    _, second = declared.configured([])
    prepared(second)
    assert second.reason == "there is another writer 'shop'"


# -- who gives way


def test_a_declared_unit_replaces_what_would_freeze_it_too(machine):
    """Broken: the second of two freezes of one unit would fail the checkpoint."""
    machine.file(UNIT_WRITER)
    nginx, other = WebServer(UNIT, "nginx"), WebServer("other.service", "nginx")
    result = declared.configured([nginx, other])
    assert result[0] is other
    assert [writer.id for writer in result] == ["nginx:other.service", "declared:shop"]


def test_sqlite_files_of_a_declared_unit_are_held_all_the_same_but_not_frozen_twice(machine):
    """Broken: the unit would stand still in the middle of a transaction, or be frozen twice, which fails."""
    machine.file(UNIT_WRITER)
    ours, other = Sqlite(UNIT, ["/srv/a.db"]), Sqlite("other.service", ["/srv/b.db"])
    assert declared.configured([ours, other])[:2] == [ours, other]
    assert (ours.freezing, other.freezing) == (False, True)
    assert ours.undo() is None


def test_sqlite_files_of_a_unit_that_is_stopped_need_nobody(machine):
    """Broken: their locks would keep the unit from writing what it has to write when it stops."""
    machine.file(f"{UNIT_WRITER}Action=stop\n")
    assert [writer.id for writer in declared.configured([Sqlite(UNIT, ["/srv/a.db"])])] == ["declared:shop"]


# -- [Match]


def test_matching_writers_are_treated_as_the_file_says(machine):
    """Broken: what docs/writers.md promises; or another writer would lose its place in the label."""
    machine.file("[Match]\nWriter=redis:*\nRequired=no\nLevel=system\nHoldTimeoutSec=2.5\n")
    redis, other = Sample("redis:6379"), Sample("xredis:6379")
    assert declared.configured([redis, other]) == [redis, other]
    assert (redis.required, redis.level, redis.hold_limit_ms) == (False, Level.SYSTEM, 2500)
    assert (other.required, other.level, other.hold_limit_ms) == (True, Level.BACK_END, None)


@pytest.mark.parametrize(("pattern", "matches"), [("*", True), ("a:[12]", True), ("a:?", True), ("A:1", False), ("a:", False)])
def test_a_pattern_is_a_shells(pattern, matches, machine):
    """Broken: a file would have its effect on others than it names."""
    machine.file(f"[Match]\nWriter={pattern}\nRequired=no\n")
    assert only(Sample("a:1")).required is not matches


def test_files_take_effect_in_the_order_of_their_names_writers_first(machine):
    """Broken: an administrator could not say what counts in the end."""
    machine.file("[Match]\nWriter=*\nRequired=no\nHoldTimeoutSec=1\n", "10.conf")
    machine.file(f"{UNIT_WRITER}Required=yes\nHoldTimeoutSec=9\n", "20.conf")
    machine.file("[Match]\nWriter=declared:*\nHoldTimeoutSec=3\n", "30.conf")
    writer = only()
    assert (writer.required, writer.hold_limit_ms) == (False, 3000)


def test_a_service_is_stopped_instead_if_the_file_says_so(machine):
    """Broken: RabbitMQ could have no application-consistent checkpoint; or what it was lost by being stopped."""
    machine.file("[Match]\nWriter=nginx:*\nAction=stop\nRequired=no\n")
    nginx, other = WebServer(UNIT, "nginx"), Sample("other")
    nginx.keeps(["/srv/shop"])
    stopped, same = declared.configured([nginx, other])
    assert same is other
    assert isinstance(stopped, StoppedService)
    assert (stopped.id, stopped.application, stopped.unit) == (f"nginx:{UNIT}", "nginx", UNIT)
    assert (stopped.level, stopped.required, stopped.paths()) == (Level.FRONT_END, False, ["/srv/shop"])


def test_sqlite_files_can_be_had_by_stopping_their_service(machine):
    """Broken: what docs/writers.md promises; or files on a filesystem that does not freeze would be vouched for."""
    machine.file(f"[Match]\nWriter=sqlite:{UNIT}\nAction=stop\n")
    stopped = only(Sqlite(UNIT, ["/srv/a/x.db"]))
    assert isinstance(stopped, StoppedService)
    assert stopped.paths() == ["/srv/a"]

"""agent/writers/unaccounted.py as a writer: its reports, what an administrator may answer, and names that are anybody's."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent import openfiles, processes
from quiesce.agent.openfiles import Disks, IncompleteError, WritingProcess, parse_fdinfo
from quiesce.agent.writers import declared, unaccounted
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.unaccounted import Unaccounted, judge_looks, summarise
from quiesce.agent.writers.unsupported import Unreached, Unsupported
from quiesce.model.grades import Consistency, Grade, judge
from quiesce.model.reports import OpenFiles, Outcome, required_grades
from quiesce.wire.framing import MAX_LINE, from_line, to_line
from quiesce.wire.messages import Inventory
from quiesce.wire.schema import from_wire, to_wire
from tests.unit.declared_machine import Machine, make_machine
from tests.unit.sample_writer import Sample
from tests.unit.writing_processes import process


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


# -- as a writer


KEPT = OpenFiles("/usr/sbin/shopd", "shop.service", ("/srv/a", "/srv/b", "/srv/c"), 9, kept=True)
ONCE = OpenFiles("/usr/bin/cp", "", ("/srv/a",), 1, kept=False)


def identified(found: OpenFiles) -> ApplicationWriter:
    [(id, _)] = summarise([found])
    writer = Unaccounted(id, found)
    writer.identify()
    return writer


def test_what_looks_like_a_database_is_no_application_checkpoint_through_all_steps():
    """Broken: the label would vouch for a database that nobody held."""
    writer = identified(KEPT)
    assert (writer.id, writer.outcome) == ("unaccounted:shop.service", Outcome.NON_RETRYABLE)
    for step in (lambda: writer.prepare(0, 0), lambda: writer.hold(0), writer.release, lambda: writer.forgo("no")):
        step()
        report = writer.report()
        assert (report.grade, report.required, report.not_accounted_for) == (Grade.CRASH, True, KEPT)
        assert judge(frozen_unbroken=True, writer_grades=required_grades([report])) is Consistency.FILESYSTEM
    assert report.reason == (
        "not accounted for: /usr/sbin/shopd of shop.service keeps open for writing, as a database does, /srv/a, /srv/b, /srv/c"
        " and 6 more; quiesce has no writer for it, so restored it starts as after a power failure. Say in"
        " /etc/quiesce/writers.d how it is held ([Writer], Unit=shop.service), or that it does not matter ([Match],"
        " Writer=unaccounted:shop.service, Required=no)"
    )


def test_what_only_wrote_a_file_is_listed_and_changes_no_label():
    """Broken: a copy under way would cost a checkpoint; or nobody could see what there is."""
    report = identified(ONCE).report()
    assert (report.id, report.grade, report.required, report.outcome) == (
        "unaccounted:/usr/bin/cp",
        Grade.CRASH,
        False,
        Outcome.STABLE,
    )
    assert report.reason == "not accounted for: /usr/bin/cp writes /srv/a; it does not look like a database"
    assert judge(frozen_unbroken=True, writer_grades=required_grades([report])) is Consistency.APPLICATION


def answered(
    machine: Machine, text: str, *found: OpenFiles, writers: tuple[ApplicationWriter, ...] = ()
) -> dict[str, ApplicationWriter]:
    """The writers, identified, if the administrator says this."""
    machine.file(text)
    result = declared.configured(list(writers), lambda _: [Unaccounted(id, each) for id, each in summarise(found)])
    for writer in result:
        writer.identify()
    return {writer.id: writer for writer in result}


def test_an_administrator_may_say_that_it_does_not_matter(machine):
    """Broken: a guest with a program that quiesce does not know could never be application-consistent."""
    [writer] = answered(machine, "[Match]\nWriter=unaccounted:shop.service\nRequired=no\n", KEPT).values()
    report = writer.report()
    assert (report.grade, report.required, report.outcome) == (Grade.CRASH, False, Outcome.STABLE)
    assert str(report.reason).endswith("restored, it starts as after a power failure")
    assert report.not_accounted_for == KEPT
    assert not report.matters_to_others


def test_an_administrator_may_say_that_it_matters(machine):
    """Broken: a program that opens its files only now and then could not be made to count."""
    [writer] = answered(machine, "[Match]\nWriter=unaccounted:*\nRequired=yes\n", ONCE).values()
    assert (writer.grade, writer.required, writer.outcome) == (Grade.CRASH, True, Outcome.NON_RETRYABLE)
    assert writer.report().matters_to_others


@pytest.mark.parametrize(
    "text",
    [
        "[Writer]\nName=shop\nUnit=shop.service\nStateless=yes\n",
        "[Writer]\nName=shop\nUnit=shop.service\nAction=stop\n",
        "[Writer]\nName=shop\nUnit=shop.service\nHold=/bin/true\nRelease=/bin/true\n",
        "[Writer]\nName=shop\nHold=/bin/true\nRelease=/bin/true\nPaths=/srv\n",
        "[Writer]\nName=shop\nCGroup=/system.slice/shop.service\n",
    ],
)
def test_an_administrator_may_say_how_it_is_held(text, machine, monkeypatch):
    """Broken: a program would be listed as unknown although its writer is declared."""
    monkeypatch.setattr(
        openfiles, "look", lambda *_: [process("/srv/a"), process("/var/lib/other/a", unit="other.service", pid=8)]
    )
    monkeypatch.setattr(unaccounted, "PAUSE_S", 0)
    machine.file(text)
    assert [writer.id for writer in declared.configured([], unaccounted.discover)] == [
        "declared:shop",
        "unaccounted:other.service",
    ]


@pytest.mark.parametrize(
    "known", [Unsupported("mongod", "MongoDB"), Unreached("openldap:7", "openldap", 7)], ids=["known", "unreached"]
)
def test_what_is_known_by_name_only_gives_way_to_a_declared_writer(known, machine, monkeypatch):
    """Broken: MongoDB, stopped for the checkpoint by its administrator's word, would still count as not held."""
    monkeypatch.setattr(processes, "cgroup", lambda _: "/system.slice/mongod.service")
    known.pids = (7,)
    stop = "[Writer]\nName=mine\nUnit={}\nAction=stop\n"
    assert set(answered(machine, stop.format("mongod.service"), writers=(known,))) == {"declared:mine"}
    assert set(answered(machine, stop.format("other.service"), writers=(known,))) == {"declared:mine", known.id}


def test_a_service_that_is_stopped_is_accounted_for(machine, monkeypatch):
    """Broken: a service that is shut down for the checkpoint would be listed for what it writes besides SQLite."""
    monkeypatch.setattr(openfiles, "look", lambda *_: [process("/srv/shop.db", "/srv/index.bin")])
    monkeypatch.setattr(unaccounted, "PAUSE_S", 0)
    writers = [Sqlite("shop.service", ["/srv/shop.db"])]
    assert [writer.id for writer in declared.configured(writers, unaccounted.discover)][1:] == ["unaccounted:shop.service"]
    machine.file("[Match]\nWriter=sqlite:*\nAction=stop\n")
    assert [writer.id for writer in declared.configured(writers, unaccounted.discover)] == ["sqlite:shop.service"]


@pytest.mark.parametrize("pattern", ["*", "unaccounted:*", "sample"])
def test_a_mistake_in_an_answer_is_told_once(pattern, machine):
    """Broken: an answer that makes no sense would be passed over, or two files be looked for."""
    found = answered(machine, f"[Match]\nWriter={pattern}\nRequired=perhaps\n", KEPT, writers=(Sample(),))
    assert {"sample", "unaccounted:shop.service"} < found.keys()
    [wrong] = [writer for id, writer in found.items() if id.startswith("configuration:")]
    assert "perhaps" in str(wrong.reason)


# -- names are anybody's


NAMES = st.text(st.characters(), max_size=300) | st.text(
    st.sampled_from("\x1b\n\udcff\u202e\U0001f600ä" + string.ascii_letters), max_size=4000
)


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=5), st.booleans()), max_size=40))
def test_no_name_breaks_a_report(programs):
    """Broken: anybody could make the agent's answer too long, so that no checkpoint is taken, or draw on a terminal."""
    looks = [[process(*files, pid=n, executable=name, unit="", log=log) for n, (name, files, log) in enumerate(programs)]] * 3
    found = [Unaccounted(id, each) for id, each in summarise(judge_looks(looks, []))]
    for writer in found:
        writer.identify()
    assert len(found) <= unaccounted.MAX_PROGRAMS + 1
    inventory = Inventory(tuple(writer.report() for writer in found), ())
    line = to_line(to_wire(inventory))
    assert len(line) < MAX_LINE / 3
    assert from_wire(Inventory, from_line(line)) == inventory
    assert all(text.isprintable() for writer in found for text in (writer.id, str(writer.reason)))


def test_many_programs_are_one_and_none_that_counts_is_lost():
    """Broken: behind many programs of no interest one could hide that spoils the label."""
    many = [process(f"/home/me/{n}", pid=n, executable=f"/home/me/{n:03}", unit="", log=True) for n in range(100)]
    server = process("/srv/a", pid=500, unit="zz.service")
    ordered = summarise(judge_looks([[*many, server]] * 3, []))
    assert len(ordered) == unaccounted.MAX_PROGRAMS + 1
    assert ordered[0] == ("unaccounted:zz.service", OpenFiles("/usr/sbin/shopd", "zz.service", ("/srv/a",), 1, kept=True))
    assert ordered[-1][0] == "unaccounted:others"
    assert (ordered[-1][1].number, ordered[-1][1].kept) == (101 - unaccounted.MAX_PROGRAMS, False)
    users = [process(f"/home/me/{n}", pid=n, executable=f"/home/me/{n:03}", unit="") for n in range(100)]
    ordered = summarise(judge_looks([[*users, server]] * 3, []))
    assert ordered[0][0] == "unaccounted:zz.service"
    assert ordered[-1][1].kept


# -- what cannot be looked at


def test_a_machine_that_cannot_be_looked_at_is_not_vouched_for(monkeypatch):
    """Broken: a guest too busy to be looked at would be called application-consistent."""

    def fail(*_: object) -> list[WritingProcess]:
        raise IncompleteError

    monkeypatch.setattr(openfiles, "look", fail)
    [writer] = unaccounted.discover([])
    writer.identify()
    assert (writer.id, writer.grade, writer.required) == ("unaccounted:processes", Grade.CRASH, True)
    assert writer.report().outcome is Outcome.TIMEOUT


def test_a_process_that_hangs_the_look_is_named(monkeypatch):
    """Broken: a process would be passed over in silence."""

    def look(_: int, hung: set[int]) -> list[WritingProcess]:
        hung.add(os.getpid())
        return []

    monkeypatch.setattr(openfiles, "look", look)
    monkeypatch.setattr(unaccounted, "PAUSE_S", 0)
    monkeypatch.setattr(processes, "kernel_name", lambda _: "shop\x1b")
    [writer] = unaccounted.discover([])
    writer.identify()
    assert (writer.id, writer.required) == ("unaccounted:processes", False)
    assert f"process {os.getpid()} (shop\N{REPLACEMENT CHARACTER}) hangs" in str(writer.report().reason)
    assert not writer.report().matters_to_others


# -- real


@pytest.fixture
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], subprocess.Popen[bytes]]:
    """Starts a program in the test's own directory, which is on a disk, and counts."""
    with (tmp_path / "probe").open("w") as file:
        _, mount = parse_fdinfo(Path(f"/proc/self/fdinfo/{file.fileno()}").read_text())
        device = os.fstat(file.fileno()).st_dev
    found = (os.major(device), os.minor(device))
    monkeypatch.setattr(Disks, "of", lambda _: Disks({mount: found}, frozenset({found})))
    here = os.path.realpath(tmp_path)
    monkeypatch.setattr(unaccounted, "is_data", lambda path: path.startswith(here))

    def start(code: str) -> subprocess.Popen[bytes]:
        program = f"import os, time\n{code}\nprint('ready', flush=True)\ntime.sleep(60)"
        started = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, stdout=subprocess.PIPE)
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        return started

    return start


def test_a_real_program_that_keeps_a_file_open(only_here, tmp_path):
    """Broken: all the tests here would be about a machine that there is not."""
    (tmp_path / "data").write_bytes(b"x")
    with only_here("f = os.open('data', os.O_RDWR)") as program:
        try:
            [writer] = unaccounted.discover([])
            assert writer.not_accounted_for is not None
            assert writer.not_accounted_for.files == (f"{os.path.realpath(tmp_path)}/data",)
            assert writer.not_accounted_for.kept
            owner = Sample("owner")
            owner.pids = (program.pid,)
            assert unaccounted.discover([owner]) == []
        finally:
            program.kill()


def test_a_real_program_that_only_reads(only_here, tmp_path):
    """Broken: every guest's label would be spoilt."""
    (tmp_path / "data").write_bytes(b"x")
    with only_here("f = os.open('data', os.O_RDONLY)") as program:
        try:
            assert unaccounted.discover([]) == []
        finally:
            program.kill()

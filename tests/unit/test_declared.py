"""agent/writers/declared.py: real files and commands; a script stands for systemctl, plain files for control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quiesce.agent import cgroups, processes, systemd
from quiesce.agent.deadman import Undo
from quiesce.agent.writers import declared
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.declared import Commands, DeclaredCgroup, Misconfigured
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.stopped import StoppedService
from quiesce.agent.writers.web import WebServer
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from tests.unit.fake_systemd import Group, Systemctl, group_below
from tests.unit.test_application_writer import Observer, Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are heeded")

UNIT = "shop.service"
CGROUP = f"/system.slice/{UNIT}"


class Machine:
    """Its directories are a test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.writers_d = directory, directory / "writers.d"
        self.writers_d.mkdir()
        self._seen = 0
        self.systemctl = Systemctl(directory)
        self.systemctl.can_be_stopped(UNIT)

    def file(self, text: str, name: str = "one.conf") -> Path:
        path = self.writers_d / name
        path.write_text(text, errors="surrogateescape")
        path.chmod(0o644)
        return path

    def command(self, name: str, then: str = "") -> str:
        """A program that notes how it was called."""
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.directory}/order\n{then}\n')
        path.chmod(0o755)
        return str(path)

    def order(self) -> list[str]:
        path = self.directory / "order"
        lines = path.read_text().splitlines()[self._seen :] if path.exists() else []
        self._seen += len(lines)
        return [line.rstrip() for line in lines]

    def group(self, path: str = CGROUP) -> Group:
        return group_below(self.directory / "cgroup", path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(declared, "DIRECTORY", str(made.writers_d))
    monkeypatch.setattr(systemd, "SYSTEMCTL", made.systemctl.path)
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "cgroup"))
    monkeypatch.setattr(processes, "cgroup", lambda _: "/system.slice/quiesce-agent.service")
    return made


def only(*found: ApplicationWriter) -> ApplicationWriter:
    [writer] = declared.configured(list(found))
    return writer


def prepared(writer: ApplicationWriter) -> ApplicationWriter:
    """As an attempt does it."""
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(10), 700)
    return writer


def refused(machine: Machine, text: str, *found: ApplicationWriter) -> str:
    """Why a file is, which is a writer then; those that were found are as they were."""
    path = machine.file(text)
    result = declared.configured(list(found))
    assert result[:-1] == list(found)
    writer = result[-1]
    assert isinstance(writer, Misconfigured)
    prepared(writer)
    assert (writer.id, writer.application) == (f"configuration:{path}", "configuration")
    assert (writer.grade, writer.outcome, writer.required) == (Grade.REFUSED, Outcome.NON_RETRYABLE, True)
    return str(writer.reason)


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


WRITER = "[Writer]\nName=shop\n"
UNIT_WRITER = f"{WRITER}Unit={UNIT}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{UNIT_WRITER}Colour=red\nHight=3\n", r"[Writer]: colour, hight is not known"),
        ("[Match]\nWriter=*\nStateless=yes\n", "[Match]: stateless is not known"),
        ("[Writers]\nName=shop\n", "section [Writers] is not known; there are [Writer] and [Match]"),
        ("[DEFAULT]\nRequired=no\n", "section [DEFAULT] is not known"),
        (f"{UNIT_WRITER}Stateless=perhaps\n", "Not a boolean: perhaps"),
        (f"{UNIT_WRITER}Required=\n", "Not a boolean"),
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


# -- frozen


@pytest.mark.parametrize(("stateless", "grade"), [("yes", Grade.CLEAN), ("no", Grade.CRASH)])
def test_a_declared_unit_is_frozen_and_let_go(stateless, grade, machine):
    """Broken: an application that keeps data would be called clean wherever it stood; or stand still for ever."""
    machine.file(f"{UNIT_WRITER}Stateless={stateless}\n")
    group = machine.group()
    group.settles()
    writer = prepared(only())
    assert writer.guarded
    assert writer.grade is grade
    assert ("Stateless=yes" in str(writer.reason)) is (grade is Grade.CRASH)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "1"
    writer.release()
    assert (group.asked, writer.grade, writer.outcome) == ("0", grade, Outcome.STABLE)
    writer.abort()
    writer.abort()


def test_a_unit_that_was_let_go_meanwhile_or_ended_is_not_vouched_for(machine):
    """Broken: an application that ran in the window would be called held."""
    machine.file(UNIT_WRITER)
    group = machine.group()
    group.settles()
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    group.settles(False)
    writer.release()
    assert writer.outcome is Outcome.INCONSISTENT
    assert writer.reason == f"{CGROUP} was thawed during the window, or ended"
    assert group.asked == "0"


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"WatchdogUSec": "30s"}, "has a watchdog"),
        ({"ActiveState": "failed"}, "is not running: it is failed"),
        ({"ControlGroup": "/other.slice/shop.service"}, "is in /other.slice/shop.service, not in /system.slice/shop.service"),
    ],
)
def test_a_unit_that_cannot_be_frozen_says_why(properties, says, machine):
    """Broken: systemd would kill it in the window; or nothing would be frozen, and called held."""
    machine.file(UNIT_WRITER)
    machine.systemctl.has(UNIT, **properties)
    group = machine.group()
    writer = prepared(only())
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert says in str(writer.reason)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "0"


def test_what_somebody_froze_already_stays_so(machine):
    """Broken: an administrator's freeze would be undone by the release."""
    machine.file(UNIT_WRITER)
    group = machine.group()
    group.set("1")
    writer = prepared(only())
    assert "frozen already, by somebody else" in str(writer.reason)
    assert writer.outcome is Outcome.RETRYABLE
    writer.abort()
    assert group.asked == "1"


# -- control groups by a pattern


@pytest.mark.parametrize("pattern", ["/machine.slice/libpod-*.scope", "machine.slice/libpod-[0-9]*.scope"])
def test_the_one_control_group_that_matches_is_meant(pattern, machine):
    """Broken: a container, whose group has a number in its name, could not be declared."""
    group = machine.group("/machine.slice/libpod-0123.scope")
    machine.group("/machine.slice/other.scope")
    group.settles()
    machine.file(f"{WRITER}CGroup={pattern}\nStateless=yes\n")
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    assert group.asked == "1"
    writer.release()
    assert (group.asked, writer.grade) == ("0", Grade.CLEAN)


def test_two_that_match_are_refused(machine):
    """Broken: one of two containers would be frozen, by chance."""
    machine.group("/machine.slice/libpod-0.scope")
    machine.group("/machine.slice/libpod-1.scope")
    said = refused(machine, f"{WRITER}CGroup=/machine.slice/libpod-*\n", Sample("other"))
    assert said == "CGroup=/machine.slice/libpod-* matches 2 control groups"


def test_none_that_matches_is_refused(machine):
    """Broken: a container that is not there would be called held."""
    machine.file(f"{WRITER}CGroup=/machine.slice/libpod-*\n")
    writer = prepared(only())
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert "/machine.slice/libpod-* cannot be frozen: No such file" in str(writer.reason)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/system.slice", "the agent itself is in /system.slice"),
        ("/system.slice/", "the agent itself is in /system.slice"),
        ("system.slice", "the agent itself is in /system.slice"),
        ("/system.slice/x/..", "the agent itself is in /system.slice"),
        ("/", "the agent itself is in /"),
        ("/system.slice/quiesce-agent.service", "never frozen"),
        ("/init.scope", "init.scope is never frozen"),
        ("/system.slice/sshd.service/", "sshd.service is never frozen"),
    ],
)
def test_a_group_that_the_machine_or_the_agent_needs_is_never_frozen(path, says, machine):
    """Broken: the agent and its dead-man would stand still with it, and nobody could ever let the machine go."""
    group = machine.group("/system.slice" if path == "/" else os.path.normpath(path))
    group.settles()
    machine.file(f"{WRITER}CGroup={path}\n")
    writer = prepared(only())
    assert writer.grade is Grade.REFUSED
    assert says in str(writer.reason)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "0"


# -- stopped


def test_a_declared_unit_can_be_stopped_for_the_checkpoint(machine):
    """Broken: an application that cannot hold could have no clean checkpoint."""
    machine.file(f"{UNIT_WRITER}Action=stop\nPaths=/srv/shop\n")
    writer = prepared(only())
    assert isinstance(writer, StoppedService)
    assert not isinstance(writer, FrozenCgroup)
    assert (writer.grade, writer.paths(), writer.hold_limit_ms) == (Grade.CLEAN, ["/srv/shop"], None)
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert machine.systemctl.calls == [f"stop {UNIT}", f"start --no-block {UNIT}"]
    assert writer.grade is Grade.CLEAN


# -- commands


def commands_file(machine: Machine, more: str = "", **then: str) -> ApplicationWriter:
    text = WRITER
    for name in ("Prepare", "Hold", "Release", "Position"):
        text += f'{name}={machine.command(name.lower(), then.get(name.lower(), ""))} "an argument"\n'
    machine.file(text + more)
    writer = only()
    assert isinstance(writer, Commands)
    return writer


def test_commands_are_run_in_their_phases(machine):
    """Broken: an application that its administrator knows how to hold would not be held, or never released."""
    note = f"echo $QUIESCE_WINDOW_MS >>{machine.directory}/window; "
    writer = commands_file(machine, "Paths=/srv/a /srv/b\n", prepare=note, position="echo 42; echo more")
    prepared(writer)
    assert machine.order() == ["position an argument", "prepare an argument"]
    assert (machine.directory / "window").read_text() == "700\n"
    writer.hold(deadline_in_ns(5))
    assert machine.order() == ["hold an argument", "position an argument"]
    writer.release()
    writer.abort()
    assert machine.order() == ["release an argument"]
    assert (writer.grade, writer.position) == (Grade.HELD, {"position": "42\nmore"})
    assert writer.paths() == ["/srv/a", "/srv/b"]
    assert writer.undo() == Undo(command=(str(machine.directory / "release"), "an argument"))


def test_the_attempt_is_told_of_every_command_that_runs(machine):
    """Broken: what a command started would outlive a killed agent, and hold what the dead-man had released."""
    writer = commands_file(machine)
    writer.command_observer = observer = Observer()
    prepared(writer)
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert observer.commands() == len(machine.order()) == 5


def test_prepare_and_position_need_not_be(machine):
    """Broken: the shortest file of docs/writers.md would be refused."""
    machine.file(f"{WRITER}Hold={machine.command('hold')}\nRelease={machine.command('release')}\n")
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert machine.order() == ["hold", "release"]
    assert (writer.grade, writer.position) == (Grade.HELD, {})


@pytest.mark.parametrize("which", ["hold", "position"])
def test_a_hold_that_fails_is_released(which, machine):
    """Broken: half of a hold would stay."""
    writer = commands_file(machine)
    prepared(writer)
    machine.order()
    machine.command(which, "echo 'no database' >&2; exit 4")
    with pytest.raises(WriterError, match="ended with 4: no database"):
        writer.hold(deadline_in_ns(5))
    assert machine.order()[-1] == "release an argument"
    assert (writer.grade, writer.let_go) == (Grade.CRASH, True)


def test_a_hold_that_takes_too_long_is_killed_and_released(machine):
    """Broken: one application would use up everybody's window."""
    writer = commands_file(machine, "HoldTimeoutSec=0.1\n", hold="sleep 60")
    prepared(writer)
    with pytest.raises(WriterError) as raised:
        writer.hold(deadline_in_ns(5))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert machine.order()[-1] == "release an argument"


def test_a_release_that_fails_is_tried_again_and_then_left_to_the_dead_man(machine):
    """Broken: an application would stay held, and its checkpoint be called good."""
    writer = commands_file(machine, release="exit 1")
    prepared(writer)
    writer.hold(deadline_in_ns(5))
    machine.order()
    writer.release()
    assert (writer.grade, writer.outcome, writer.let_go) == (Grade.CRASH, Outcome.INCONSISTENT, False)
    assert machine.order() == ["release an argument"] * 2
    machine.command("release")
    writer.abort()
    assert writer.let_go


@pytest.mark.parametrize("which", ["prepare", "hold", "release", "position"])
def test_a_command_that_others_can_write_is_never_run(which, machine):
    """Broken: whoever can write it would be root."""
    writer = commands_file(machine)
    (machine.directory / which).chmod(0o777)
    prepared(writer)
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert machine.order() == []
    writer.hold(deadline_in_ns(5))
    writer.abort()
    assert machine.order() == []


def test_a_prepare_that_fails_is_said_before_anything_waits(machine):
    """Broken: the application would be held unprepared."""
    writer = commands_file(machine, prepare="exit 1")
    prepared(writer)
    assert writer.grade is Grade.REFUSED
    writer.hold(deadline_in_ns(5))
    assert "hold an argument" not in machine.order()

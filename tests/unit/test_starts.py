"""agent/writers/*_start.py and `on_verify`: how servers say that they started, and what they find wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent import commands, logs
from quiesce.agent.commands import CommandError
from quiesce.agent.programs import Programs
from quiesce.agent.writers import mariadb_start, postgresql_start
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.down import Down
from quiesce.agent.writers.mariadb_start import mariadb_started
from quiesce.agent.writers.postgresql_files import Postmaster
from quiesce.agent.writers.postgresql_start import postgresql_did_not_start, postgresql_started
from quiesce.agent.writers.redis_start import redis_started
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start
from tests.unit.external_programs import only, program
from tests.unit.fake_programs import listening

PG = Start("postgresql:17/main", "postgresql")
POSTMASTER = Postmaster(1, 0, "/var/lib/postgresql/17/main", 5432, "/run/postgresql", False)
STARTING = "LOG:  starting PostgreSQL 17.5 on x86_64"
REDO = ["LOG:  database system was not properly shut down; automatic recovery in progress", "LOG:  redo starts at 0/1000028"]
OLD = f"{STARTING}\nLOG:  redo starts at 0/700028\nLOG:  invalid record length at 0/800000: wanted 24, got 0\n"


class Control:
    """Of PostgreSQL: answers every question with the same; of MariaDB: by the beginning of the statement."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def run(self, statement: str, _deadline_ns: int = 0) -> Any:
        return next((rows for begin, rows in self._answers.items() if statement.startswith(begin)), [])


NO_COLLECTOR = Control({"SELECT pg_current_logfile": [(None,)]})


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines of the server's log, after those of an earlier start. pg_amcheck finds nothing wrong."""
    lines: list[str] = []
    monkeypatch.setattr(logs, "of_process", lambda _: OLD + "\n".join(lines))
    monkeypatch.setattr(logs, "of_unit", lambda _: "")
    monkeypatch.setattr(postgresql_start, "_amcheck", lambda *_: (("pg_amcheck",), ()))
    return lines


def started() -> Start:
    return postgresql_started(PG, POSTMASTER, NO_COLLECTOR, deadline_in_ns(10))


@pytest.mark.parametrize(
    ("lines", "did", "begin", "end", "length"),
    [
        ([*REDO, "LOG:  invalid record length at 0/1001000: wanted 24, got 0"], Did.REDO, "0/1000028", "0/1001000", 0xFD8),
        ([*REDO, "LOG:  could not read from WAL segment 000000010000000000000001, LSN 0/1000800, offset 0: read 0 of 8192"],
         Did.REDO, "0/1000028", "0/1000800", 0x7D8),
        (["LOG:  database system was shut down at 2026-01-01"], Did.NOTHING, None, None, None),
        ([*REDO[:1], "LOG:  redo is not required"], Did.NOTHING, None, None, None),
        (["LOG:  das Datenbanksystem wurde nicht richtig heruntergefahren"], Did.UNKNOWN, None, None, None),
        ([*REDO, "LOG:  something new ends the log"], Did.REDO, "0/1000028", None, None),
    ],
)  # fmt: skip
def test_postgresql_tells_what_it_replayed(lines, did, begin, end, length, said):
    """Broken: a proof would be of an earlier start, or compare a claim with nothing."""
    said += [STARTING, *lines]
    found = started()
    assert (found.did, found.redo_from, found.redo_to, found.redo_bytes) == (did, begin, end, length)
    assert found.checks == ("pg_amcheck",)
    assert all("0/700028" not in line for line in found.evidence)


def test_log_that_could_not_be_read_is_told(said):
    """Broken: nobody would learn why the log of a copy ends early."""
    said += [STARTING, *REDO, "LOG:  could not read from WAL segment 0001, LSN 0/1000800, offset 0: read 0 of 8192"]
    assert "could not read" in started().notes[0]


def test_a_cluster_that_did_not_start_has_its_own_words(monkeypatch):
    """Broken: a person would be told that it is down, and not why."""
    monkeypatch.setattr(logs, "end_of", lambda *_: f"{OLD}\n{STARTING}\nPANIC:  could not locate a valid checkpoint record")
    monkeypatch.setattr(logs, "of_unit", lambda unit: "FATAL:  from the unit" if unit == "postgresql@17-main.service" else "")
    found = postgresql_did_not_start(PG, POSTMASTER.directory)
    assert not found.running
    assert found.evidence == ("PANIC:  could not locate a valid checkpoint record", "FATAL:  from the unit")


@pytest.mark.parametrize(
    ("error", "checks", "notes"),
    [
        (CommandError(["pg_amcheck"], 1, "no extension"), 0, "could not check it: no extension"),
        (WriterError("late", Outcome.TIMEOUT), 0, "did not end in time"),
        (None, 1, ""),
    ],
)
def test_amcheck_that_did_not_look_is_no_damage(error, checks, notes, monkeypatch):
    """Broken: a cluster without the extension, or a large one, would be called corrupt."""
    found, said = amcheck(error, monkeypatch)
    assert len(found) == checks
    assert notes in "".join(said)


def test_amcheck_names_the_damage(monkeypatch):
    """Broken: a corrupt table would pass."""
    with pytest.raises(WriterError, match=r"pg_amcheck: heap table \"shop.t\"") as raised:
        amcheck(CommandError(["pg_amcheck"], 2, 'heap table "shop.t", block 3: corrupt'), monkeypatch)
    assert raised.value.outcome is Outcome.INCONSISTENT


def amcheck(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def run(*_: object, **__: object) -> str:
        if error:
            raise error
        return ""

    monkeypatch.setattr(commands, "run_command", run)
    monkeypatch.setattr(postgresql_start.processes, "executable", lambda _: "/usr/bin/postgres")
    monkeypatch.setattr(postgresql_start.os, "access", lambda *_: True)
    return postgresql_start._amcheck(POSTMASTER, deadline_in_ns(10))


# -- MariaDB

BEGUN = "Starting MariaDB 11.8.3 server, as process 99"
READY = "mariadbd: ready for connections."
OK = [("shop.t", "check", "status", "OK")]


def mariadb(lines: list[str], monkeypatch: pytest.MonkeyPatch, check: list[tuple[str, ...]] = OK, seconds: float = 10) -> Start:
    monkeypatch.setattr(logs, "of_process", lambda _: "\n".join(["InnoDB: End of log at LSN=1", BEGUN, *lines, READY]))
    tables = {"SELECT table_schema": [("shop", "t"), ("shop", "odd`name")], "CHECK TABLE": check, "SHOW GLOBAL VARIABLES": []}
    return mariadb_started(Start("mariadb:main", "mariadb"), 1, Control(tables), time.monotonic_ns() + int(seconds * 1e9))


def test_mariadb_tells_what_it_recovered(monkeypatch):
    """Broken: a recovery would be called none, or its length be that of an earlier start."""
    crash = ["InnoDB: Starting crash recovery from checkpoint LSN=4096", "InnoDB: End of log at LSN=5376"]
    found = mariadb(crash, monkeypatch)
    assert (found.did, found.redo_from, found.redo_to, found.redo_bytes) == (Did.REDO, "4096", "5376", 1280)
    found = mariadb(["InnoDB: End of log at LSN=4096"], monkeypatch)
    assert (found.did, found.redo_to, found.checks) == (Did.NOTHING, "4096", ("CHECK TABLE: 2 tables are OK",))


@pytest.mark.parametrize(
    "check",
    [
        [
            ("shop.t", "check", "Error", "Table doesn't exist in engine"),
            ("shop.t", "check", "status", "Operation failed"),
        ],
        [("shop.t", "check", "Warning", "InnoDB: Index PRIMARY is corrupted"), ("shop.t", "check", "error", "Corrupt")],
        [("shop.t", "check", "Warning", "Tablespace is missing for table 'shop/t'"), ("shop.t", "check", "error", "Corrupt")],
        [("shop.t", "check", "status", "Operation failed")],
    ],
)
def test_a_damaged_table_is_named(check, monkeypatch):
    """Broken: a removed or damaged file of InnoDB would pass."""
    with pytest.raises(WriterError, match=r"CHECK TABLE shop\.t: "):
        mariadb([], monkeypatch, check)


NOT_FOUND = "[ERROR] InnoDB: Could not find a valid tablespace file for shop/t."


def test_a_lost_file_is_named_in_innodbs_words(monkeypatch):
    """Broken: nobody would learn which tablespace has lost its file, or a lost one pass if there is no time for CHECK TABLE."""
    lines: list[str] = []
    monkeypatch.setattr(mariadb_start, "_log", lambda *_: "\n".join([NOT_FOUND, BEGUN, *lines, READY]))
    assert mariadb([], monkeypatch).failure is None  # an earlier start's

    def check(_control: object, _deadline_ns: int) -> tuple[int, None]:
        lines.append(NOT_FOUND)  # the server opens a table's file when it is asked for the table
        raise WriterError("CHECK TABLE shop.t: Error: no", Outcome.INCONSISTENT)

    with monkeypatch.context() as patch, pytest.raises(WriterError) as raised:
        patch.setattr(mariadb_start, "_check_tables", check)
        mariadb([], monkeypatch)
    assert str(raised.value) == f"CHECK TABLE shop.t: Error: no; {NOT_FOUND}"
    with pytest.raises(WriterError, match="Could not find") as raised:
        mariadb([], monkeypatch, seconds=-1)
    assert raised.value.outcome is Outcome.INCONSISTENT


def test_a_server_that_does_not_start_names_the_file_that_it_lacks(monkeypatch):
    """Broken: the proof would have the last lines alone, which only say that the server gives up."""
    end = [
        "[ERROR] Plugin 'InnoDB' registration failed.",
        "[ERROR] Unknown/unsupported storage engine: InnoDB",
        "[ERROR] Aborting",
    ]
    lines = ["[ERROR] InnoDB: Tablespace 7 was not found at ./shop/t.ibd.", *end]
    monkeypatch.setattr(logs, "of_unit", lambda _: "\n".join(lines))
    down = Down("mariadb.service", "mariadb", {})
    found = down.on_verify(Start("mariadb:mariadb.service", "mariadb"), 0)
    assert (found.running, found.failure) == (False, f"did not start: {lines.pop(0)}")
    assert down.on_verify(Start("mariadb:mariadb.service", "mariadb"), 0).failure is None


def test_a_table_that_cannot_be_checked_is_no_damage(monkeypatch):
    """Broken: a server with a CSV or MEMORY table would be called corrupt."""
    assert mariadb(
        [], monkeypatch, [("shop.t", "check", "note", "The storage engine for the table doesn't support check")]
    ).checks


def test_tables_marked_as_crashed_are_damage(monkeypatch):
    """Broken: MyISAM's tables would be repaired in the copy, and nobody hear of it."""
    with pytest.raises(WriterError, match="marked as crashed"):
        mariadb(["[ERROR] mariadbd: Table './shop/t' is marked as crashed and should be repaired"], monkeypatch)


def test_tables_that_there_was_no_time_for_are_noted(monkeypatch):
    """Broken: a server whose tables nobody read would be called proven without a word."""
    monkeypatch.setattr(mariadb_start, "_log", lambda *_: f"{BEGUN}\n{READY}")
    found = mariadb([], monkeypatch, seconds=-1)
    assert (found.checks, found.notes) == ((), ("the time was over after 0 of 2 tables",))


# -- Redis, programs


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("lines", "did"),
    [
        (["* Redis is starting", "* DB loaded from disk: 0.01 seconds"], Did.NOTHING),
        (["* Redis is starting", "* DB loaded from append only file: 0.1 seconds"], Did.NOTHING),
        (
            ["* Redis is starting", "# !!! Warning: short read while loading the AOF", "# AOF loaded anyway because"],
            Did.REDO,
        ),
        (["# Short read", "* Redis is starting", "* DB loaded from disk"], Did.NOTHING),
        ([], Did.UNKNOWN),
    ],
)
def test_redis_tells_whether_its_file_was_whole(lines, did, monkeypatch):
    """Broken: a truncated append-only file would be called clean, or that of an earlier start count."""
    monkeypatch.setattr(logs, "of_process", lambda _: "\n".join(lines))
    assert redis_started(Start("redis:6379", "redis"), 1, {"loading": "0", "db0": "keys=3,expires=0"}, "", "/").did is did


def test_redis_that_still_loads_is_asked_again():
    """Broken: a large Redis would be called empty."""
    with pytest.raises(WriterError) as raised:
        redis_started(Start("redis:6379", "redis"), 1, {"loading": "1"}, "", "/")
    assert raised.value.outcome is Outcome.TIMEOUT


@pytest.mark.parametrize(
    ("answer", "did", "checks"),
    [
        ({"outcome": "stable", "position": {"order": "7"}}, Did.UNKNOWN, 1),
        ({"outcome": "stable", "grade": "clean"}, Did.NOTHING, 1),
        ({"outcome": "stable", "grade": "crash", "reason": "replayed 3 orders"}, Did.REDO, 1),
        ({"outcome": "stable"}, Did.UNKNOWN, 0),
    ],
)
def test_a_program_tells_what_it_found(answer, did, checks, agent):
    """Broken: a program could not tell of a recovery, or one that says nothing would count as checked."""
    with program(agent, {"verify": answer}) as heard:
        found = only(agent).verify(deadline_in_ns(10))
    assert (found.failure, found.did, len(found.checks)) == (None, did, checks)
    assert found.position == answer.get("position", {})
    assert any(request != "the end" and request["do"] == "verify" for request in heard)


def test_a_program_that_finds_damage_says_so(agent):
    """Broken: an application's own word for its damage would be lost."""
    with program(agent, {"verify": {"outcome": "inconsistent", "reason": "order 7 is torn"}}):
        assert only(agent).verify(deadline_in_ns(10)).failure == "order 7 is torn"


def test_the_grade_of_a_program_is_its_own_word_only(agent):
    """Broken: `crash` in answer to any other request would still be a hold."""
    with program(agent, {"identify": {"outcome": "stable", "grade": "crash"}}):
        writer = only(agent)
        writer.identify()
        assert writer.grade is Grade.CRASH
        assert writer.error

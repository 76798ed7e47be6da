"""applications/: an application without a file of its own, Redis, SQLite; the registry; and what holds for all of them."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent import writers
from quiesce.agent.writers import down, unsupported, web
from quiesce.applications.application import Application
from quiesce.applications.registry import APPLICATIONS, application_of
from quiesce.cli import render
from quiesce.model.divergence import Agreement
from tests.unit.reports import NOT_MOVED, NOT_NOW, NOT_THEN, compared, postgresql, redis, writer

UNSUPPORTED = (*unsupported.KNOWN.values(), *unsupported.JAVA.values(), *unsupported.ERLANG.values())
WITHOUT_FILE = {
    *(
        "rabbitmq",
        "pgbouncer",
        "nginx",
        "haproxy",
    ),  # compared by all that their writers report, which may be nothing
    *(*UNSUPPORTED, "an Erlang server"),  # no writer can hold them
    *("script", "service", "configuration", "systemd", "not accounted for"),  # not one application
}
"""Applications of which the host knows nothing of its own. Programs and declared writers have any name."""
NAMED_ELSEWHERE = {
    "redis": {"redis", "valkey"},
    "web": set(web.KNOWN.values()),
    "down": set(down.UNITS.values()),
    "stopped": {"service"},
    "declared": set(),
    "external": set(),
}
"""Writers' modules whose applications are not written in an assignment: by a process, by a table, by an administrator."""


@pytest.mark.parametrize(
    ("changed", "verdict", "text"),
    [
        ({}, Agreement.AGREES, NOT_MOVED),
        (
            {"rdb_changes_since_last_save": "3"},
            Agreement.MOVED,
            "has moved since the checkpoint (rdb_changes_since_last_save 0 -> 3)",
        ),
        ({"run_id": "s", "keys": "8"}, Agreement.MOVED, "has moved since the checkpoint (run_id r -> s, keys 7 -> 8)"),
        ({"new": "1"}, Agreement.AGREES, NOT_MOVED),
    ],
    ids=["unmoved", "a key set again", "restarted", "names more"],
)
def test_others_stand_where_all_that_they_named_is_the_same(changed, verdict, text):
    """Broken: a Redis whose keys are as many, and have other values, would agree."""
    assert compared(redis(), redis(**changed)) == (verdict, f"Redis 6379 {text}")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"files": "3", "/srv/a.db": "change 5 pages 9"}, {"files": "3"}),
        ({"files": "3"}, {"files": "3"}),
        ({"files": "3"}, {"files": "3", "/srv/a.db": "change 5 pages 9"}),
        ({}, {}),
        ({}, {"files": "3"}),
    ],
    ids=["now only how many", "only how many", "then only how many", "nothing", "nothing then"],
)
def test_a_writer_that_names_less_than_its_state_is_unknown(before, now):
    """Broken: a service would agree because nobody looked into its files."""
    verdict, text = compared(writer("sqlite:shop.service", before), writer("sqlite:shop.service", now))
    assert verdict is Agreement.UNKNOWN
    assert text == f"sqlite:shop.service {NOT_NOW if before else NOT_THEN}"


def test_sqlite_files_that_were_looked_into_are_compared():
    """Broken: files whose change counters are known on both sides would be unknown."""
    first, second = ({"files": "1", "/srv/a.db": f"change {n} pages 9"} for n in (5, 6))
    assert compared(writer("sqlite:shop.service", first), writer("sqlite:shop.service", first))[0] is Agreement.AGREES
    assert compared(writer("sqlite:shop.service", first), writer("sqlite:shop.service", second))[0] is Agreement.MOVED


def test_it_is_said_which_side_is_silent_and_why():
    """Broken: an administrator would mend the server of today for what was not known then."""
    refused = replace(redis(), position={}, reason="it wants a password")
    assert compared(refused, redis()) == (Agreement.UNKNOWN, f"Redis 6379 {NOT_THEN}: it wants a password")
    assert compared(redis(), refused) == (Agreement.UNKNOWN, f"Redis 6379 {NOT_NOW}: it wants a password")


# -- what is known of which application


def names_in(module: str, value: ast.expr) -> set[str]:
    """The names that an assignment to `application` in a writer's module can give."""
    match value:
        case ast.Constant(value=str(name)):
            return {name} - {""}
        case ast.IfExp():
            return names_in(module, value.body) | names_in(module, value.orelse)
        case ast.Subscript(value=ast.Name(id=table)):
            return set(getattr(import_module(f"{writers.__name__}.{module}"), table).values())
        case ast.Name(id="application") if (
            module == "unsupported"
        ):  # or given by the modules whose applications it cannot reach
            return set(UNSUPPORTED)
        case _:
            return NAMED_ELSEWHERE[module]


def built_in_applications() -> set[str]:
    found: set[str] = set()
    for path in Path(writers.__path__[0]).glob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Assign):
                (target,) = statement.targets[:1]
                if "application" in (getattr(target, "id", ""), getattr(target, "attr", "")):
                    found |= names_in(path.stem, statement.value)
    return found


def test_every_application_of_a_built_in_writer_is_known_or_listed():
    """Broken: a new writer would be compared key by key, because nobody asked what the host knows of its application."""
    found = built_in_applications()
    assert {"postgresql", "mariadb", "mysql", "valkey", "nginx", *UNSUPPORTED} <= found
    assert found == APPLICATIONS.keys() | WITHOUT_FILE
    assert not APPLICATIONS.keys() & WITHOUT_FILE


def test_an_application_without_a_file_has_the_default():
    """Broken: a program that is a writer would end a diff with a traceback, or be taken for a database."""
    program = writer("external:shop", {"order": "4711"})
    assert application_of(program) == Application()
    assert application_of(program).name(program) == "external:shop"
    assert application_of(postgresql()) is APPLICATIONS["postgresql"]


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            postgresql(checkpoint_lsn="0/90", redo_lsn="0/80", redo_records="x", redo_bytes="128"),
            "timeline 1 checkpoint 0/90 redo 0/80 insert 0/100",
        ),
        (writer("openldap:slapd.service", {"dc=a": "5", "dc=b": "7"}), "dc=a 5 dc=b 7"),
        (writer("nginx:nginx.service", {}), "-"),
    ],
    ids=["PostgreSQL", "one without a file", "no position"],
)
def test_a_position_in_one_line(report, line):
    """Broken: a cluster's position would fill the terminal, or others' be cut."""
    assert render.position(report) == line


KEYS = (
    *("system_identifier", "timeline", "next_xid", "insert_lsn", "replay_lsn", "receive_lsn"),
    *("server_id", "gtid_binlog_pos", "gtid_slave_pos", "lsn_current", "files"),
)
TEXTS = st.one_of(st.sampled_from(["1", "0:5", "0/10", "0-1-9", "9-1-1,0-1-3", "²", "١-١-١"]), st.text(max_size=12))
POSITIONS = st.dictionaries(st.sampled_from(KEYS), TEXTS)


@given(before=POSITIONS, now=POSITIONS, name=st.sampled_from([*APPLICATIONS, "shop"]))
def test_no_position_of_a_guest_is_an_error_of_ours(before, now, name):
    """Broken: a guest that lies would end a restore or a diff with a traceback, or agree without a position."""
    first, second = writer(f"{name}:a", before), writer(f"{name}:a", now)
    known = application_of(first)
    if known.compare(first, second).verdict is Agreement.AGREES:
        assert before
        assert now
    known.replica_ahead(second, first)
    known.log_bytes(before, now)

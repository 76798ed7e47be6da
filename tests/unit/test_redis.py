"""agent/writers/redis.py: what it says of a server before it holds it, and how it gets in. tests/vm has real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from quiesce.agent import identity, linux, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import redis
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.redis import RedisServer
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire
from tests.unit.fake_redis import Fake, prepared, server, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


def test_it_says_what_it_is_and_what_can_be_expected(fake):
    """Broken: no Redis would be held, or its position not be known."""
    writer = server()
    writer.identify()
    found = writer.report()
    assert (found.id, found.application, found.version, found.level) == ("redis:6379", "redis", "7.0.15", Level.BACK_END)
    assert (found.grade, found.reason, found.role, found.warnings) == (Grade.CLEAN, None, "primary", ())
    assert found.position == {
        "run_id": "r1",
        "master_replid": "m1",
        "master_repl_offset": "100",
        "rdb_last_save_time": "1700000000",
        "rdb_changes_since_last_save": "0",
        "keys": "7",
    }
    assert found.data_directory == str(Path(fake.path).parent)
    assert writer.paths() == [found.data_directory]
    assert from_wire(WriterReport, to_wire(found)) == found
    writer.abort()
    assert not fake.count("CLIENT")


def test_valkey_is_called_so_and_by_its_own_version(fake):
    """Broken: Valkey would pass for the old Redis that it says it is compatible with."""
    fake.info.update(redis_version="6.0.0", valkey_version="8.0.1")
    writer = server("valkey-server")
    writer.identify()
    assert (writer.id, writer.application, writer.version, writer.grade) == ("valkey:6379", "valkey", "8.0.1", Grade.CLEAN)
    writer.abort()


@pytest.mark.parametrize(("ports", "expected"), [([6380, 16380], "redis:6380"), ([], "redis:/run/r.sock")])
def test_a_server_is_called_by_where_it_listens(ports, expected, monkeypatch):
    """Broken: a writer's id would change, and with it what later checkpoints are compared by."""
    monkeypatch.setattr(processes, "listening_ports", lambda _: ports)
    monkeypatch.setattr(processes, "listening_paths", lambda _: ["/run/r.sock"])
    assert server().id == expected


def test_who_only_watches_and_who_only_saves_is_no_server(monkeypatch):
    """Broken: a Sentinel would be asked for data that it does not have, or a server be found twice while it saves."""
    titles = [
        "/usr/bin/redis-server 127.0.0.1:6379",
        "/usr/bin/redis-server *:26379 [sentinel]",
        "redis-rdb-bgsave 127.0.0.1:6379",
        "redis-aof-rewrite 127.0.0.1:6379",
        "/usr/bin/redis-server 127.0.0.1:7000 [cluster]",
    ]
    found = [Process(pid, "redis-server", 0, container=False) for pid in range(len(titles))]
    monkeypatch.setattr(identity, "applications", lambda *names: iter(found if "redis-server" in names else []))
    monkeypatch.setattr(processes, "command_line", lambda pid: titles[pid].split("\0"))
    monkeypatch.setattr(processes, "listening_ports", lambda pid: [6379 + pid])
    monkeypatch.setattr(processes, "listening_paths", lambda _: [])
    assert [writer.id for writer in redis.discover()] == ["redis:6379", "redis:6383"]


def _info(**values: str) -> Callable[[Fake], None]:
    return lambda fake: fake.info.update(values)


@pytest.mark.parametrize(
    ("change", "why", "grade", "outcome"),
    [
        (_info(role="slave"), "a replica", Grade.CRASH, Outcome.NON_RETRYABLE),
        (_info(redis_version="6.0.16"), "older than 6.2", Grade.CRASH, Outcome.NON_RETRYABLE),
        (_info(loading="1"), "still loading", Grade.REFUSED, Outcome.RETRYABLE),
        (_info(paused_actions="write", paused_reason="client_pause"), "client_pause", Grade.REFUSED, Outcome.RETRYABLE),
        (lambda fake: fake.errors.update(CONFIG="ERR unknown command"), "configuration", Grade.REFUSED, Outcome.NON_RETRYABLE),
        (lambda fake: setattr(fake, "wants", "secret"), "`requirepass`", Grade.REFUSED, Outcome.NON_RETRYABLE),
    ],
)
def test_what_cannot_be_held_is_said_before_the_attempt(change, why, grade, outcome, fake):
    """Broken: clients would be made to wait for a hold that is worth nothing, or somebody else's pause be ended."""
    change(fake)
    writer = prepared()
    assert (writer.grade, writer.outcome) == (grade, outcome)
    assert why in str(writer.reason)
    writer.abort()
    assert not fake.count("CLIENT")


def test_a_server_in_a_container_is_refused_and_says_why(fake):
    """Broken: a server that nobody holds would pass for held."""
    writer = server(container=True)
    writer.identify()
    assert (writer.grade, "container" in str(writer.reason)) == (Grade.REFUSED, True)


def test_a_server_that_cannot_be_reached_is_refused_and_says_why(monkeypatch):
    """Broken: one that listens at an address of the network alone would be passed over in silence."""
    monkeypatch.setattr(processes, "listening_ports", lambda _: [])
    monkeypatch.setattr(processes, "listening_paths", lambda _: [])
    writer = server()
    writer.identify()
    assert (writer.grade, "listens neither" in str(writer.reason)) == (Grade.REFUSED, True)


def test_a_node_of_a_cluster_is_warned_of(fake):
    """Broken: a node held alone would pass for a cluster held."""
    fake.info["cluster_enabled"] = "1"
    writer = server()
    writer.identify()
    assert "cluster" in writer.warnings[0]
    writer.abort()


def test_the_password_of_its_own_configuration_lets_us_in(fake, tmp_path, monkeypatch):
    """Broken: a server with a password could not be held, or be told the password of another."""
    fake.wants = "se cret"
    (tmp_path / "0.conf").write_text("requirepass old\n")
    (tmp_path / "a.conf").write_text("port 7000\nrequirepass another\n")
    (tmp_path / "b.conf").write_text('# requirepass no\nbind 127.0.0.1 ::1\nport 1\nPORT 6379\nrequirepass "se cret"\n')
    (tmp_path / "c.conf").write_text('requirepass "unclosed\n')
    readers: list[int] = []
    monkeypatch.setattr(linux, "as_user", lambda uid: nullcontext(readers.append(uid)))
    writer = RedisServer(Process(1, "redis-server", 107, container=False))
    writer.guarded = True
    writer.prepare(deadline_in_ns(2), 8000)
    writer.hold(deadline_in_ns(2))
    writer.release()
    assert writer.grade is Grade.CLEAN
    assert set(readers) == {107, os.geteuid()}  # who reads what is included is who reads the file
    assert [said for said in fake.said if said.startswith("AUTH")] == ["AUTH old", "AUTH se cret", "AUTH se cret"]
    writer.abort()


def test_a_configuration_named_on_the_command_line_needs_no_port(fake, tmp_path, monkeypatch):
    """Broken: a server whose port is said elsewhere could not be held."""
    fake.wants = "secret"
    (tmp_path / "x").write_text("port 1\nrequirepass secret\n")
    monkeypatch.setattr(processes, "command_line", lambda _: ["redis-server", str(tmp_path / "x"), "--port", "6379"])
    writer = server()
    writer.identify()
    assert writer.grade is Grade.CLEAN
    writer.abort()

"""agent/writers/redis.py and resp.py against a small server of our own at a real Unix socket; tests/vm has the real ones."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import within
from quiesce.agent import linux, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import redis, resp
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.redis import RedisServer
from quiesce.agent.writers.resp import Client, RespError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire

INFO = {
    "redis_version": "7.0.15",
    "process_id": "1",
    "run_id": "r1",
    "loading": "0",
    "role": "master",
    "master_replid": "m1",
    "master_repl_offset": "100",
    "connected_slaves": "0",
    "rdb_changes_since_last_save": "0",
    "rdb_last_save_time": "1700000000",
    "rdb_bgsave_in_progress": "0",
    "rdb_last_bgsave_status": "ok",
    "aof_enabled": "0",
    "cluster_enabled": "0",
    "db0": "keys=5,expires=0,avg_ttl=0",
    "db3": "keys=2,expires=1,avg_ttl=9",
}
APPEND_ONLY = {
    "aof_enabled": "1",
    "aof_rewrite_in_progress": "0",
    "aof_rewrite_scheduled": "0",
    "aof_last_write_status": "ok",
    "aof_buffer_length": "0",
    "aof_pending_bio_fsync": "0",
}


class Fake:
    """A server that says of itself what a test wants."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "s")
        self.info = dict(INFO)
        self.settings = {"dir": str(directory), "save": "3600 1", "appenddirname": "aof", "dbfilename": "dump.rdb"}
        self.wants = ""
        """Its password."""
        self.errors: dict[str, str] = {}
        """By the command's first words."""
        self.later: list[dict[str, str]] = []
        """What becomes of INFO at each asking."""
        self.saves: list[dict[str, str]] = [
            {"rdb_bgsave_in_progress": "1"},
            {"rdb_bgsave_in_progress": "0", "rdb_changes_since_last_save": "0"},
        ]
        """What becomes of INFO after a BGSAVE."""
        self.busy_saves = 0
        """How many more BGSAVE come when another has just begun by itself."""
        self.silent = False
        self.said: list[str] = []
        self.connections = 0

    def answer(self, words: list[str], known: list[str]) -> bytes:
        said = " ".join(words)
        self.said.append(said)
        if words[0] == "AUTH":
            known[:] = words[1:]
            return b"+OK\r\n" if words[1] == self.wants else b"-WRONGPASS invalid username-password pair\r\n"
        if self.wants and known != [self.wants]:
            return b"-NOAUTH Authentication required.\r\n"
        for start, error in self.errors.items():
            if said.startswith(start):
                return f"-{error}\r\n".encode()
        if words[0] == "INFO":
            if self.later:
                self.info.update(self.later.pop(0))
            text = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in self.info.items())
            return f"${len(text)}\r\n{text}\r\n".encode()
        if words[:2] == ["CONFIG", "GET"]:
            found = [words[2], self.settings[words[2]]] if words[2] in self.settings else []
            return f"*{len(found)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in found)
        if words[0] == "BGSAVE" and self.busy_saves:
            self.busy_saves -= 1
            return b"-ERR Background save already in progress\r\n"
        if words[0] == "BGSAVE":
            self.later += [dict(step) for step in self.saves]
        return b"+OK\r\n"

    def configured(self, directory: Path, *lines: str) -> None:
        """It was started with a configuration file of these lines."""
        self.info["config_file"] = str(directory / "own.config")
        (directory / "own.config").write_text("\n".join(lines) + "\n")

    def count(self, start: str) -> int:
        return sum(said.startswith(start) for said in self.said)


class Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        fake: Fake = self.server.fake  # type: ignore[attr-defined]
        fake.connections += 1
        known: list[str] = []
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2].decode())
            if not fake.silent:
                self.wfile.write(fake.answer(words, known))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = Fake(tmp_path)
    with socketserver.ThreadingUnixStreamServer(fake.path, Talk) as server:
        server.daemon_threads = True
        server.fake = fake  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        monkeypatch.setattr(processes, "listening_ports", lambda _: [6379])
        monkeypatch.setattr(processes, "listening_paths", lambda _: [fake.path])
        monkeypatch.setattr(processes, "command_line", lambda _: ["/usr/bin/redis-server 127.0.0.1:6379"])
        monkeypatch.setattr(redis, "CONFIGURATIONS", (str(tmp_path / "*.conf"),))
        monkeypatch.setattr(linux, "as_user", lambda _: nullcontext())
        yield fake
        server.shutdown()
        thread.join()


def server(name: str = "redis-server", container: bool = False) -> RedisServer:
    return RedisServer(Process(1, name, 0, container))


def prepared(window_ms: int = 8000) -> RedisServer:
    writer = server()
    writer.prepare(deadline_in_ns(2), window_ms)
    return writer


@pytest.fixture
def held(fake: Fake) -> Iterator[RedisServer]:
    writer = prepared()
    writer.hold(deadline_in_ns(2))
    yield writer
    writer.abort()


# -- how it starts: by what is on disk


def test_an_append_only_file_of_the_run_time_alone_is_no_substitute_for_a_save(fake, tmp_path):
    """Broken: `CONFIG SET appendonly yes` would make a checkpoint clean from which a start, which reads the last save, brings
    back nothing or little."""
    fake.configured(tmp_path, "appendonly no", "save 3600 1")
    fake.info.update(APPEND_ONLY, rdb_changes_since_last_save="9")
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "6"
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 2
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


@pytest.mark.parametrize(
    ("lines", "settings", "reason"),
    [
        (["appendonly yes"], {}, "would read an old one"),
        (["include {}/more.config"], {}, "would read an old one"),
        (["dir /srv/other"], {}, "says dir /srv/other"),
        (["dbfilename old.rdb"], {}, "says dbfilename old.rdb"),
        (["dbfilename dump.rdb"], {"dbfilename": "new.rdb"}, "saves to new.rdb"),
    ],
)
def test_what_a_start_would_not_read_is_no_better_than_a_crash(lines, settings, reason, fake, tmp_path):
    """Broken: a server whose settings were changed while it ran would be called clean, and start with other data."""
    (tmp_path / "more.config").write_text("appendonly yes\ninclude own.config\n")
    fake.configured(tmp_path, *(line.format(tmp_path) for line in lines))
    fake.settings.update(settings)
    writer = server()
    writer.identify()
    writer.abort()
    assert writer.grade is Grade.CRASH
    assert reason in str(writer.reason)


def test_another_server_that_answers_is_not_taken_for_this_one(fake):
    """Broken: a server with a network of its own would be called clean by the word of the one whose port it shares."""
    fake.info["process_id"] = "4711"
    writer = server()
    writer.identify()
    writer.abort()
    assert writer.grade is Grade.REFUSED
    assert "answers process 4711, and not this server, process 1" in str(writer.reason)


# -- what it says of itself


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
    monkeypatch.setattr(processes, "running", lambda *names: iter(found if "redis-server" in names else []))
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
    writer.prepare(deadline_in_ns(2), 8000)
    writer.hold(deadline_in_ns(2))
    writer.release()
    assert writer.grade is Grade.CLEAN
    assert set(readers) == {107}
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


# -- the attempt


def test_nothing_unsaved_needs_only_the_pause(fake, held):
    """Broken: writers would go on in the window, or a save be waited for in vain."""
    assert fake.count("CLIENT PAUSE 8500 WRITE") == 1
    assert not fake.count("BGSAVE")
    held.release()
    assert (held.grade, held.outcome, held.let_go) == (Grade.CLEAN, Outcome.STABLE, True)
    assert fake.said[-1] == "CLIENT UNPAUSE"


def test_what_is_unsaved_is_saved_before_and_again_under_the_hold(fake):
    """Broken: the dump in the image would lack what was acknowledged, or all of it be saved while writers wait."""
    fake.info["rdb_changes_since_last_save"] = "4"
    writer = prepared()
    assert fake.count("BGSAVE") == 1
    fake.info["rdb_changes_since_last_save"] = "1"
    writer.hold(deadline_in_ns(2))
    assert fake.said.index("CLIENT PAUSE 8500 WRITE") < len(fake.said) - fake.said[::-1].index("BGSAVE")
    assert fake.count("BGSAVE") == 2
    assert fake.info["rdb_changes_since_last_save"] == "0"
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


def test_a_save_that_was_under_way_is_not_enough(fake):
    """Broken: what was written while it ran would not be in the dump."""
    writer = prepared()
    fake.info.update(rdb_bgsave_in_progress="1", rdb_changes_since_last_save="9")
    fake.later = [{}, {}, {"rdb_bgsave_in_progress": "0", "rdb_changes_since_last_save": "3"}]
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 1
    writer.abort()


def test_a_save_that_began_by_itself_meanwhile_is_waited_for(fake):
    """Broken: an automatic save at the wrong moment would fail the hold, or pass for one of everything."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.busy_saves = 1
    ended = {"rdb_bgsave_in_progress": "0", "rdb_changes_since_last_save": "3"}
    fake.later = [{}, {}, {}, {"rdb_bgsave_in_progress": "1"}, ended]
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 2
    assert (writer.error, fake.info["rdb_changes_since_last_save"]) == (None, "0")
    writer.abort()


def test_a_save_that_fails_is_said_and_writers_go_on(fake):
    """Broken: an old dump would be vouched for, or writers wait for nothing."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_last_bgsave_status": "err"}]
    with pytest.raises(WriterError, match="save failed"):
        writer.hold(deadline_in_ns(2))
    assert (writer.grade, fake.said[-1]) == (Grade.CRASH, "CLIENT UNPAUSE")


def test_a_save_that_takes_too_long_is_given_up(fake):
    """Broken: writers would wait beyond the window."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_bgsave_in_progress": "1"}]
    with within(1.3), pytest.raises(WriterError, match="BGSAVE") as raised:
        writer.hold(deadline_in_ns(0.3))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert (writer.grade, fake.said[-1]) == (Grade.CRASH, "CLIENT UNPAUSE")


def test_a_server_that_answers_no_more_while_it_saves_is_said_to_save(fake, monkeypatch):
    """Broken: the user would read of an answer that did not come, and not of the save that took too long."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_bgsave_in_progress": "1"}]
    answer = fake.answer

    def stalling(words: list[str], known: list[str]) -> bytes:
        stalls = words[0] == "INFO" and fake.info["rdb_bgsave_in_progress"] == "1"
        return b"" if stalls else answer(words, known)

    monkeypatch.setattr(fake, "answer", stalling)
    with pytest.raises(WriterError, match="BGSAVE") as raised:
        writer.hold(deadline_in_ns(0.3))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert fake.said[-1] == "CLIENT UNPAUSE"


@pytest.mark.parametrize(
    "unfinished",
    [
        {"aof_buffer_length": "7"},
        {"aof_pending_bio_fsync": "1"},
        {"aof_rewrite_in_progress": "1"},
        {"aof_rewrite_scheduled": "1"},
        {"aof_last_write_status": "err"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_an_append_only_file_is_held_when_all_of_it_is_written(unfinished, fake, tmp_path):
    """Broken: the file that is loaded at the start would lack what was acknowledged."""
    fake.configured(tmp_path, "appendonly yes")
    fake.info.update(APPEND_ONLY, rdb_changes_since_last_save="9")
    writer = prepared()
    fake.info.update(unfinished)
    fake.later = [{}, {}, {}, {name: APPEND_ONLY[name] for name in unfinished}]
    writer.hold(deadline_in_ns(2))
    assert not fake.later
    assert not fake.count("BGSAVE")
    fake.info["rdb_changes_since_last_save"] = "0"  # an automatic save ended
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


def test_a_rewrite_that_does_not_end_makes_nobody_wait(fake):
    """Broken: writers would wait for the rewrite of the whole file."""
    fake.info.update(APPEND_ONLY, aof_rewrite_in_progress="1")
    writer = server()
    writer.prepare(deadline_in_ns(0.5), 8000)
    assert (writer.outcome, "rewriting" in str(writer.reason)) == (Outcome.TIMEOUT, True)
    writer.abort()
    assert not fake.count("CLIENT")


@pytest.mark.parametrize("old", [False, True])
def test_a_server_that_keeps_nothing_is_not_held(old, fake, tmp_path):
    """Broken: a mere cache would be made to wait, or an old dump that it starts with be kept quiet."""
    fake.settings["save"] = ""
    if old:
        (tmp_path / "dump.rdb").touch()
    writer = prepared()
    writer.hold(deadline_in_ns(2))
    writer.release()
    assert writer.grade is Grade.CLEAN
    assert ("old dump.rdb" if old else "starts empty") in str(writer.reason)
    assert not fake.count("CLIENT")
    writer.abort()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"run_id": "r2"}, "run_id from r1 to r2"),
        ({"master_replid": "m2"}, "master_replid"),
        ({"master_repl_offset": "140"}, "master_repl_offset from 100 to 140"),
        ({"db3": "keys=1,expires=0,avg_ttl=0"}, "keys from 7 to 6"),
        ({"rdb_changes_since_last_save": "1"}, "was written to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changed_during_the_window_loses_the_grade(change, what, fake, held):
    """Broken: a write that slipped through the hold would not show in the label."""
    fake.info.update(change)
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert what in str(held.reason)
    assert fake.count("CLIENT UNPAUSE") == 1


def test_what_it_says_to_its_replicas_is_no_change(fake, held):
    """Broken: every server with replicas would lose its grade now and then."""
    fake.info.update(connected_slaves="1", master_repl_offset="114")
    held.release()
    assert held.grade is Grade.CLEAN


def test_a_pause_that_ended_by_itself_loses_the_grade_and_is_not_ended_again(fake):
    """Broken: writes of the window would be vouched for, or somebody else's pause be ended."""
    writer = prepared(window_ms=1 - redis.PAUSE_MARGIN_MS)
    writer.hold(deadline_in_ns(2))
    time.sleep(0.002)
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert "ended by itself" in str(writer.reason)
    writer.abort()
    writer = prepared(window_ms=1 - redis.PAUSE_MARGIN_MS)
    writer.hold(deadline_in_ns(2))
    time.sleep(0.002)
    writer.abort()
    assert not fake.count("CLIENT UNPAUSE")


def test_somebody_elses_pause_since_prepare_is_left_alone(fake):
    """Broken: an administrator's pause would end with our window."""
    writer = prepared()
    fake.info.update(paused_actions="all", paused_reason="client_pause")
    with pytest.raises(WriterError, match="somebody else"):
        writer.hold(deadline_in_ns(2))
    assert not fake.count("CLIENT")


def test_writers_go_on_after_an_abort_also_when_the_connection_is_lost(fake, held):
    """Broken: an attempt that failed would leave the application waiting for the rest of the pause."""
    held._client.close()
    held.abort()
    held.abort()
    assert fake.count("CLIENT UNPAUSE") == 1
    assert (held.warnings, held.let_go) == ([], True)


def test_a_pause_that_cannot_be_ended_is_said_and_tried_again(fake, held):
    """Broken: an application that still waits would be reported as let go."""
    fake.errors["CLIENT UNPAUSE"] = "NOPERM no"
    held.abort()
    assert (held.let_go, held.warnings) == (False, ["it could not be let go: NOPERM no"])
    fake.errors.clear()
    held.abort()
    assert (held.let_go, fake.said[-1]) == (True, "CLIENT UNPAUSE")


def test_a_server_that_is_gone_at_release_loses_the_grade(fake, held):
    """Broken: a server killed in the window would be vouched for."""
    held._client._socket.shutdown(socket.SHUT_RDWR)
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


def test_an_idle_connection_is_not_relied_on(fake):
    """Broken: a server that closes idle connections could not be held after a long preparation of others."""
    writer = prepared()
    writer._client._socket.shutdown(socket.SHUT_RDWR)
    writer.hold(deadline_in_ns(2))
    assert writer.error is None
    writer.abort()


# -- the protocol


def _client(fake: Fake) -> Client:
    return Client(fake.path, deadline_in_ns(2))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"+OK\r\n", "OK"),
        (b":42\r\n", 42),
        (b"$5\r\na\r\nb\n\r\n", "a\r\nb\n"),
        (b"$0\r\n\r\n", ""),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*3\r\n$1\r\na\r\n*1\r\n:1\r\n$-1\r\n", ["a", [1], None]),
        (b"$1\r\n\xff\r\n", "\udcff"),
    ],
)
def test_every_kind_of_answer_is_understood_however_it_arrives(sent, expected, fake, monkeypatch):
    """Broken: an answer would be taken for another's, or wait for what never comes."""
    monkeypatch.setattr(fake, "answer", lambda *_: sent)
    client = _client(fake)
    assert client.call("X", deadline_ns=deadline_in_ns(2)) == expected
    monkeypatch.setattr(socket.socket, "recv", lambda self, _size, _recv=socket.socket.recv: _recv(self, 1))
    assert client.call("X", deadline_ns=deadline_in_ns(2)) == expected
    client.close()


def test_an_error_leaves_the_connection_usable(fake):
    """Broken: one refused command would end the conversation."""
    fake.errors["BAD"] = "NOPERM this user has no permissions"
    client = _client(fake)
    with pytest.raises(RespError) as raised:
        client.call("BAD", deadline_ns=deadline_in_ns(2))
    assert raised.value.code == "NOPERM"
    assert client.call("PING", deadline_ns=deadline_in_ns(2)) == "OK"
    client.close()


@pytest.mark.parametrize("sent", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"\r\n", b"$99999999999\r\n", b"*99999999999\r\n", b"~0\r\n"])
def test_what_is_no_redis_is_no_answer(sent, fake, monkeypatch):
    """Broken: whatever else listens there could fill the agent's memory, or hang it."""
    monkeypatch.setattr(fake, "answer", lambda *_: sent)
    client = _client(fake)
    with pytest.raises(ConnectionError):
        client.call("X", deadline_ns=deadline_in_ns(2))
    assert client._socket.fileno() == -1


def test_a_silent_server_is_not_waited_for_beyond_the_deadline(fake):
    """Broken: a hanging server would hold the whole guest; a late answer would be taken for the next command's."""
    client = _client(fake)
    fake.silent = True
    with pytest.raises(TimeoutError, match="PING"):
        client.call("PING", deadline_ns=deadline_in_ns(0.05))
    assert client._socket.fileno() == -1
    with pytest.raises(TimeoutError):
        Client(fake.path, time.monotonic_ns())


def test_a_server_that_ends_in_the_middle_of_an_answer_is_noticed(fake, monkeypatch):
    """Broken: half an answer would be waited for until the deadline."""
    client = _client(fake)
    ours, theirs = socket.socketpair()
    client._socket.close()
    client._socket = ours
    theirs.sendall(b"$10\r\nhalf")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        client.call("X", deadline_ns=deadline_in_ns(2))
    theirs.close()


def test_an_answer_without_an_end_is_given_up(fake, monkeypatch):
    """Broken: whatever else listens there could fill the agent's memory."""
    monkeypatch.setattr(resp, "MAX_ANSWER", 100)
    monkeypatch.setattr(fake, "answer", lambda *_: b"+" + b"a" * 300)
    with pytest.raises(ConnectionError, match="without an end"):
        _client(fake).call("X", deadline_ns=deadline_in_ns(2))


def test_words_are_sent_as_they_are(fake):
    """Broken: a password with a space or of two bytes a letter would not work."""
    words: list[Any] = []
    fake.answer = lambda said, _: words.extend(said) or b"+OK\r\n"  # type: ignore[method-assign,func-returns-value]
    client = _client(fake)
    client.call("AUTH", 'ä "b', deadline_ns=deadline_in_ns(2))
    assert words == ["AUTH", 'ä "b']
    client.close()

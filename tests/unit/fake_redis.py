"""A small Redis at a real Unix socket, which says of itself what a test wants, and writers that hold it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from quiesce.agent import linux, processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.writers import redis
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.redis import RedisServer

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
        self.recovers_after = 1_000_000
        """How many more errors it gives before it answers as ever."""
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
                self.recovers_after -= 1
                if self.recovers_after < 0:
                    continue
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


def _connect(_pid: int, path: str, timeout_s: float, *, uid: int) -> socket.socket:
    assert uid in (0, 107)
    connection = sockets.Connection(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    connection.connect(path)
    return connection


@contextlib.contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """It runs, and is the one that the writer finds."""
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
        monkeypatch.setattr(sockets, "connect", _connect)
        yield fake
        server.shutdown()
        thread.join()


def server(name: str = "redis-server", container: bool = False) -> RedisServer:
    return RedisServer(Process(1, name, 0, container))


def prepared(window_ms: int = 8000) -> RedisServer:
    writer = server()
    writer.guarded = True
    writer.prepare(deadline_in_ns(2), window_ms)
    return writer

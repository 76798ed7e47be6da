"""Redis 6.2 and later, and Valkey: writers held, and the files that the server loads at its start complete.

How: `CLIENT PAUSE … WRITE` makes writers wait; reads go on. Commands are atomic in Redis, so any moment is a boundary, and only
the way to the disk remains. A server with an append-only file loads that file at its start: everything acknowledged has to be
written to it, and the freeze flushes it. A server without one makes a save (BGSAVE) under the hold; another save just before
keeps that one short.

The pause is in memory only, and ends by itself a little after the window. The server counts its end by the wall clock
(pauseClients of networking.c): a clock that is set forward ends it early, which loses the grade; one that is set back prolongs
it. So nobody relies on that end: the dead-man, or the next agent, has the server let its clients go on.
"""

from __future__ import annotations

import glob
import os
import re
import socket
import time
from contextlib import suppress
from typing import Any, Callable, Optional

from quiesce.agent import identity, looks, processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.redis_configuration import differs_at_start, read_settings
from quiesce.agent.writers.redis_info import Info, moved_between, not_written, position_in, rewriting, saving
from quiesce.agent.writers.redis_room import why_no_room
from quiesce.agent.writers.redis_start import redis_started
from quiesce.agent.writers.resp import Client, RespError
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

OLDEST = (6, 2)
"""The first version that can pause writers alone. An older one pauses every client, the agent among them."""
PAUSE_MARGIN_MS = 500
"""How long the pause lasts beyond the window, in milliseconds."""
POLL_S = 0.005
RELEASE_TIMEOUT_S = 2.0
TAKE_BACK_TIMEOUT_S = 10.0
CONFIGURATIONS = ("/etc/redis/*.conf", "/etc/valkey/*.conf")

_CHILD = re.compile(r"(redis|valkey)-(rdb|aof)-")
"""The process title of a server's child while it saves."""


def discover() -> list[ApplicationWriter]:
    """Every server of this machine, but for sentinels, which only watch others."""
    found: list[ApplicationWriter] = []
    for process in identity.applications("redis-server", "valkey-server"):
        title = " ".join(processes.command_line(process.pid))
        if "[sentinel]" not in title and not _CHILD.match(title):
            found.append(RedisServer(process))
    return found


def take_back(pid: int) -> None:
    """Ends the pause that an earlier agent left in the server of this process id. If it is gone, so is the pause. Raises
    WriterError, RespError, OSError."""
    for writer in discover():
        if isinstance(writer, RedisServer) and writer.pid == pid:
            writer.take_back(deadline_in_ns(TAKE_BACK_TIMEOUT_S))


def wall_clock_ns() -> int:
    """The clock by which a server ends a pause."""
    return time.time_ns()


class RedisServer(ApplicationWriter):
    """A running server."""

    outlives = True

    def __init__(self, process: Process) -> None:
        self.application = process.name.partition("-")[0]
        ports, paths = processes.listening_ports(process.pid), processes.listening_paths(process.pid)
        self.pid = process.pid
        self._process = process
        self._port = ports[0] if ports else 0
        self._path = paths[0] if paths else ""
        super().__init__(f"{self.application}:{self._port or self._path or process.pid}")
        self.pids = (process.pid,)
        self._client: Any = None
        self._password: Optional[str] = None
        self._append_only = False
        self._starts_append_only = False
        """Started again, it reads its append-only file, and not its last save."""
        self._keeps_nothing = False
        self._append_directory = ""
        self._pause_ms = 0
        self._paused_until_ns = 0
        """When the agent's pause ends by itself, by `wall_clock_ns`; 0 if there is none."""
        self._held: Info = {}

    def undo(self) -> Optional[Undo]:
        return Undo(call=("redis", self.pid))

    def take_back(self, deadline_ns: int) -> None:
        """For a new object of a server that an earlier agent may have paused."""
        client = self._log_in(deadline_ns)
        try:
            client.call("CLIENT", "UNPAUSE", deadline_ns=deadline_ns)
        finally:
            client.close()

    # -- identify

    def on_identify(self, deadline_ns: int) -> None:
        if self._process.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._client = self._log_in(deadline_ns)
        info = self._info(deadline_ns)
        self._require_same_process(info)
        self.version = info.get("valkey_version") or info.get("redis_version", "unknown")
        if tuple(map(int, re.findall(r"\d+", self.version)[:2])) < OLDEST:
            raise WriterError(
                f"version {self.version} is older than {'.'.join(map(str, OLDEST))} and cannot pause its writers alone",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )
        if info.get("loading") == "1":
            raise WriterError("it is still loading its data")
        self.position = position_in(info)
        self._see_replica(info)
        _refuse_foreign_pause(info)
        self._read_configuration(info, deadline_ns)
        if info.get("cluster_enabled") == "1":
            self.warnings.append("a node of a cluster: its other nodes are not held at the same moment")
        self.grade = Grade.CLEAN

    def _require_same_process(self, info: Info) -> None:
        """Raises WriterError if another server answers: in a network namespace of its own, this one's port is not ours."""
        expected, found = processes.own_pid(self._process.pid), info.get("process_id", "")
        if found != expected:
            raise WriterError(
                f"at {self._path or self._port} answers process {found or '?'}, and not this server, process {expected};"
                " it cannot be reached (perhaps it has a network of its own)",
                Outcome.NON_RETRYABLE,
            )

    def _see_replica(self, info: Info) -> None:
        self.role = "primary" if info.get("role") == "master" else "replica"
        if self.role == "replica":
            raise WriterError(
                "a replica: it starts from its own last save and follows its primary again;"
                " checkpoint the primary for an application-consistent image",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )

    def _read_configuration(self, info: Info, deadline_ns: int) -> None:
        directory = self._setting("dir", deadline_ns)
        self.data_directory = directory
        self._append_only = info.get("aof_enabled") == "1"
        settings = self._settings_at_start(info.get("config_file", ""))
        self._starts_append_only = settings.get("appendonly", "no").lower() == "yes"
        self._append_directory = os.path.join(directory, self._setting("appenddirname", deadline_ns))
        self._keeps_nothing = not self._append_only and not self._setting("save", deadline_ns)
        if self._starts_append_only and not self._append_only:
            raise WriterError(
                "its configuration file says appendonly yes, and the running server writes no append-only file: started again,"
                " it would read an old one (CONFIG SET appendonly yes, or CONFIG REWRITE)",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )
        differs = differs_at_start(settings, directory, self._setting("dbfilename", deadline_ns))
        if differs and not self._keeps_nothing:
            raise WriterError(
                f"{differs}: started again, it would not read them (CONFIG REWRITE)", Outcome.NON_RETRYABLE, Grade.CRASH
            )
        if not self._keeps_nothing:
            self.reason = None
        elif looks.exists(os.path.join(directory, dump := self._setting("dbfilename", deadline_ns))):
            self.reason = f"keeps nothing on disk by its configuration: it starts with the old {dump} in {directory}"
        else:
            self.reason = "keeps nothing on disk: by its configuration it starts empty"

    def _settings_at_start(self, path: str) -> dict[str, str]:
        """Of the configuration file that the server names; empty where there is none, or only root could read it."""
        if not path:
            return {}
        try:
            return read_settings(path, self._process.uid)
        except OSError:
            return {}

    def _setting(self, name: str, deadline_ns: int) -> str:
        """A value of its configuration; empty if this version has none of that name."""
        try:
            answer = self._client.call("CONFIG", "GET", name, deadline_ns=deadline_ns)
        except RespError as error:
            raise WriterError(
                f"it does not let its configuration be read ({error}); quiesce has to know where it keeps its data:"
                " allow CONFIG GET to the default user",
                Outcome.NON_RETRYABLE,
            ) from None
        return str(answer[1]) if answer else ""

    # -- the attempt

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._pause_ms = window_ms + PAUSE_MARGIN_MS
        started = time.monotonic_ns()
        if self._append_only:
            self._until(rewriting, deadline_ns)
        if self._saves and self._info(deadline_ns).get("rdb_changes_since_last_save") != "0":
            self._save(deadline_ns)
        self.time("prepare_save", started)

    def on_hold(self, deadline_ns: int) -> None:
        if self._keeps_nothing:
            return
        # A new connection: the server closes an idle one in its own time (its setting `timeout`).
        self._client.close()
        self._client = self._connect(deadline_ns)
        _refuse_foreign_pause(self._info(deadline_ns))
        started = time.monotonic_ns()
        # Its end is counted from before the command is sent, so that the pause never ends earlier than noted. It lasts to the
        # end of the window, of which other writers may have used up most.
        pause_ms = self._pause_ms
        if self.window_ends_ns is not None:
            pause_ms = max(1, (self.window_ends_ns - started) // 1_000_000) + PAUSE_MARGIN_MS
        self._paused_until_ns = wall_clock_ns() + pause_ms * 1_000_000
        self._client.call("CLIENT", "PAUSE", str(pause_ms), "WRITE", deadline_ns=deadline_ns)
        info = self._until(not_written, deadline_ns) if self._append_only else self._info(deadline_ns)
        while self._saves and info.get("rdb_changes_since_last_save") != "0":
            info = self._save(deadline_ns)
        self._held, self.position = info, position_in(info)
        self.time("save", started)

    @property
    def _saves(self) -> bool:
        """A start reads its last save, which therefore has to be complete: also with an append-only file that was switched on
        at run time only (CONFIG SET), as the next start does not read that."""
        return not self._keeps_nothing and not self._starts_append_only

    def _save(self, deadline_ns: int) -> Info:
        """Saves what is there now. Returns the server's INFO from after the save. Raises WriterError."""
        info = self._until(saving, deadline_ns)  # a save that is under way lacks the latest changes
        if why := why_no_room(info, self.data_directory or "/", self.pid):
            raise WriterError(f"{why}; after a save that fails, the server refuses writes", Outcome.OUT_OF_RESOURCES)
        try:
            self._client.call("BGSAVE", deadline_ns=deadline_ns)
        except RespError as error:
            if "in progress" not in str(error):  # a save that the server began by itself just now will do
                raise WriterError(f"it cannot save: {error}") from None
        info = self._until(saving, deadline_ns)
        if info.get("rdb_last_bgsave_status") != "ok":
            raise WriterError("its save failed (rdb_last_bgsave_status); its log says why")
        return info

    def _until(self, obstacle: Callable[[Info], str], deadline_ns: int) -> Info:
        """Waits until `obstacle` names none any more, and returns the server's INFO of that moment. Raises WriterError."""
        found = ""
        while True:
            try:
                info = self._info(deadline_ns)
            except TimeoutError:
                if not found:
                    raise
                break  # the last obstacle tells more than a missing answer
            found = obstacle(info)
            if not found:
                return info
            if time.monotonic_ns() + POLL_S * 1e9 >= deadline_ns:
                break
            time.sleep(POLL_S)
        raise WriterError(f"it did not come to rest in time: {found}", Outcome.TIMEOUT)

    def on_release(self) -> None:
        if self._keeps_nothing:
            return
        deadline_ns = deadline_in_ns(RELEASE_TIMEOUT_S)
        info = self._info(deadline_ns)
        moved = moved_between(self._held, info)
        if wall_clock_ns() >= self._paused_until_ns or info.get("paused_actions") == "none":
            self._paused_until_ns = 0
            raise WriterError(
                "its pause ended by itself before it was released, after the window or by a clock that was set forward",
                Outcome.INCONSISTENT,
            )
        self._client.call("CLIENT", "UNPAUSE", deadline_ns=deadline_ns)
        self._paused_until_ns = 0
        if moved:
            raise WriterError(f"it changed during the window: {moved}", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        if self._client:
            self._client.close()
            self._client = None
        # A pause that should have ended by now is not ended here: it may be somebody else's.
        if wall_clock_ns() < self._paused_until_ns:
            deadline_ns = deadline_in_ns(RELEASE_TIMEOUT_S)
            client = self._connect(deadline_ns)
            try:
                client.call("CLIENT", "UNPAUSE", deadline_ns=deadline_ns)
            finally:
                client.close()
        self._paused_until_ns = 0

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        self._client = self._log_in(deadline_ns)
        info, log, directory = self._info(deadline_ns), self._setting("logfile", deadline_ns), self._setting("dir", deadline_ns)
        self.version = info.get("valkey_version") or info.get("redis_version", "unknown")
        return redis_started(start, self.pid, info, log, directory)

    def paths(self) -> list[str]:
        directories = [self.data_directory or "", self._append_directory]
        return sorted({looks.real(path) for path in directories if path and looks.is_directory(path)})

    def say(self, error: Exception) -> str:
        return str(error) if isinstance(error, RespError) else super().say(error)

    def _info(self, deadline_ns: int) -> Info:
        lines = self._client.call("INFO", deadline_ns=deadline_ns).splitlines()
        return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}

    # -- connections

    def _connect(self, deadline_ns: int) -> Client:
        """A connection that is let in, if a password is needed with the one that was found."""
        connection = self._reach(max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9))
        client = Client(connection)
        try:
            with suppress(RespError):
                client.call("PING", deadline_ns=deadline_ns)
            sockets.require_answer_of(self.pid, connection)  # before it is told the password
            if self._password is not None:
                client.call("AUTH", self._password, deadline_ns=deadline_ns)
        except BaseException:
            client.close()
            raise
        return client

    def _reach(self, timeout_s: float) -> socket.socket:
        """Raises OSError."""
        if self._path:
            return sockets.connect(self.pid, self._path, timeout_s, uid=self._process.uid)
        return sockets.connect_to_port(self.pid, self._port, timeout_s)

    def _log_in(self, deadline_ns: int) -> Client:
        """A connection that may run commands. Finds the password if one is needed. Raises WriterError."""
        if not self._path and not self._port:
            raise WriterError("it listens neither at a Unix socket nor at 127.0.0.1", Outcome.NON_RETRYABLE)
        client = self._connect(deadline_ns)
        if _let_in(client, deadline_ns, "PING"):
            return client
        for password in self._passwords():
            if _let_in(client, deadline_ns, "AUTH", password):
                self._password = password
                return client
        client.close()
        raise WriterError(
            "it wants a password, and none that works is in its configuration: quiesce looks for `requirepass` in the file"
            f" it was started with, {' and '.join(CONFIGURATIONS)}",
            Outcome.NON_RETRYABLE,
        )

    def _passwords(self) -> list[str]:
        """Passwords in its own configuration files, read as the server's own user: a process that only pretends to be a server
        is not told a password that it could not read itself."""
        found = []
        named = [word for word in processes.command_line(self._process.pid)[1:2] if word.startswith("/")]
        for path in [*named, *sorted(path for pattern in CONFIGURATIONS for path in glob.glob(pattern))]:
            try:
                settings = read_settings(path, self._process.uid)
            except OSError:
                continue
            same = settings.get("port", "6379") == str(self._port) or settings.get("unixsocket") == self._path
            if "requirepass" in settings and (path in named or same):
                found.append(settings["requirepass"])
        return found


def _let_in(client: Client, deadline_ns: int, *words: str) -> bool:
    try:
        client.call(*words, deadline_ns=deadline_ns)
    except RespError as error:
        return error.code not in ("NOAUTH", "WRONGPASS")  # any other objection will show in the commands that matter
    return True


def _refuse_foreign_pause(info: Info) -> None:
    """A second pause would prolong the first, and UNPAUSE end both. INFO tells of pauses from Redis 7.4 and Valkey 8 on."""
    if info.get("paused_actions", "none") != "none":
        raise WriterError(f"its clients are already paused by somebody else ({info.get('paused_reason', 'unknown')})")

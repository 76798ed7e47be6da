"""A server in a box: started, given clients, and started again from a copy of its disks."""

from __future__ import annotations

import glob
import os
import pwd
import select
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from quiesce.agent import processes

NOTES = "/run/notes"
CLIENT = """
import os, sys, time
name = sys.argv[1]
notes = os.open("/run/notes/" + name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
%s
connection = connect()
number = 0
while not os.path.exists("/run/notes/stop"):
    number += 1
    key = "%%s-%%d" %% (name, number)
    started = time.monotonic_ns()
    write(connection, key)
    os.write(notes, b"%%s %%d %%d\\n" %% (key.encode(), started, time.monotonic_ns()))
    time.sleep(0.005)
"""
WAIT_S = 30.0
STATEMENTS_S = 120.0


def wait_for(condition: Callable[[], bool], what: Callable[[], str], within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what())
        time.sleep(0.02)


class Server:
    """One server. `configuration`: as tests/servers/configurations.py draws it."""

    user = "root"
    environment: ClassVar[dict[str, str]] = {}
    """Of the commands that this program itself runs."""
    client = ""
    """Python: `connect()` and `write(connection, key)`."""

    def __init__(self, name: str, configuration: dict[str, Any]) -> None:
        self.name = name
        self.configuration = configuration
        self.directory = f"{configuration['place']}/{name}"
        self.socket_directory = f"/tmp/{name}" if configuration.get("private_tmp") else f"/run/{name}"
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[subprocess.Popen[bytes] | Session] = []
        self.log = f"/run/{name}.log"
        self._hidden = ""

    # -- what an application does

    def make(self) -> None:
        """An empty store."""

    def command(self) -> Sequence[str]:
        """Starts the server, as its service does."""
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def fill(self) -> None:
        """Makes what the clients write to."""

    def change(self) -> None:
        """What is changed while its clients are connected, and sessions that stay."""

    def stored(self) -> list[str]:
        """The keys that it has."""
        raise NotImplementedError

    def after_start(self) -> dict[str, Any]:
        """What its own log says of its last start."""
        return {}

    # -- the same for all

    def _make_socket_directory(self) -> None:
        self.make_directory(self.socket_directory)
        os.chmod(self.socket_directory, 0o755)

    def make_directory(self, path: str) -> str:
        os.makedirs(path, exist_ok=True)
        account = pwd.getpwnam(self.user)
        os.chown(path, account.pw_uid, account.pw_gid)
        os.chmod(path, 0o700)
        return path

    def start(self) -> None:
        self.launch()
        self.wait_until_it_answers()

    def hide(self) -> None:
        """Moves its files to where nobody looks. The server has them at the old place, in a mount of its own."""
        if self.configuration.get("hidden"):
            self._hidden = f"{self.configuration['hidden']}/{self.name}-hidden"
            shutil.copytree(self.directory, self._hidden, symlinks=True)
            subprocess.run(["chown", "-R", f"{self.user}:", self._hidden], check=True)
            os.chmod(self._hidden, 0o700)

    def launch(self) -> None:
        self._make_socket_directory()
        group = f"/sys/fs/cgroup/{self.configuration.get('group') or self.name}"
        os.makedirs(group, exist_ok=True)
        enter = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]
        account = pwd.getpwnam(self.user)
        own = []
        if self.configuration.get("private_tmp"):
            own.append(f"mount -t tmpfs tmpfs /tmp; install -d -o {account.pw_uid} {self.socket_directory}")
        if self._hidden:
            own.append(f"mount --bind {self._hidden} {self.directory}")
        mounts = ["sh", "-c", f'{"; ".join(own)}; exec "$@"', "sh"] if own else []
        words = [*enter, *self._namespaces(), *mounts, *self._unprivileged(), *self.command()]
        if self.configuration.get("neighbour"):
            self.clients.append(subprocess.Popen([*enter, "sleep", "1000"]))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def wait_until_it_answers(self) -> None:
        wait_for(self._answers, lambda: f"{self.name} does not answer:\n{self.said()[-3000:]}")

    def _answers(self) -> bool:
        if self.process and self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.said()[-3000:]}")
        return self.answers()

    def _namespaces(self) -> list[str]:
        wanted = set(self.configuration.get("namespaces", []))
        if self.configuration.get("private_tmp") or self._hidden:
            wanted.add("mount")
        if not wanted:
            return []
        words = ["unshare", *(f"--{name}" for name in sorted(wanted))]
        return [*words, "--fork", "--kill-child"] if "pid" in wanted else words

    def start_clients(self) -> None:
        os.makedirs(NOTES, exist_ok=True)
        os.chmod(NOTES, 0o1777)
        with open(f"/run/{self.name}.py", "w") as file:
            file.write(CLIENT % textwrap.dedent(self.client % vars(self)))
        for number in range(2):
            words = [*self.as_user(), "python3", f"/run/{self.name}.py", f"{self.name}.{number}"]
            errors = open(f"{NOTES}/{self.name}.{number}.errors", "wb")
            self.clients.append(subprocess.Popen(words, stderr=errors))
            errors.close()

    def wait_for_writes(self, count: int, within_s: float = WAIT_S) -> None:
        wanted = len(self.acknowledged()) + count
        said = f"the clients of {self.name} stand still"
        wait_for(lambda: len(self.acknowledged()) >= wanted, lambda: f"{said}: {self.errors()}", within_s)

    def acknowledged(self) -> list[tuple[str, int, int]]:
        """Key, and CLOCK_MONOTONIC before and after each write, in nanoseconds."""
        found = []
        for number in range(2):
            try:
                with open(f"{NOTES}/{self.name}.{number}") as file:
                    lines = [line.split() for line in file if line.endswith("\n")]
            except FileNotFoundError:
                continue
            found += [(key, int(started), int(ended)) for key, started, ended in lines]
        return found

    def errors(self) -> str:
        said = ""
        for path in sorted(glob.glob(f"{NOTES}/{self.name}.*.errors")):
            with open(path) as file:
                said += "".join(line for line in file if not line.startswith(("pgbench (", "NOTICE:")))
        return said

    def kill(self) -> None:
        """Ends the server, as a power failure does."""
        group = f"/sys/fs/cgroup/{self.configuration.get('group') or self.name}"
        with open(f"{group}/cgroup.kill", "w") as file:
            file.write("1")
        assert self.process
        self.process.wait(20)
        wait_for(lambda: "populated 0" in open(f"{group}/cgroup.events").read(), lambda: f"{self.name} does not end")
        for client in self.clients:
            client.kill()
            client.wait(20)
        self.clients = []

    def writers_among(self, processes_of: dict[str, tuple[int, ...]]) -> list[str]:
        """Of the writers with these processes, those that are this server's."""
        own = self.process.pid if self.process else 0
        return [id for id, pids in processes_of.items() if any(own in (pid, *processes.ancestors(pid)) for pid in pids)]

    def start_again(self) -> dict[str, Any]:
        """Starts on the copy, in no namespace of its own. Returns what it has, and what its log says."""
        self.configuration = self.configuration | {"group": "", "neighbour": False}
        self._hidden = ""
        os.truncate(self.log, 0)
        try:
            self.start()
            return {"started": True, "stored": self.stored(), **self.after_start()}
        except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
            return {"started": False, "stored": [], "why": str(error)[-3000:]}

    def said(self) -> str:
        with open(self.log, errors="replace") as file:
            return file.read()

    def as_user(self) -> list[str]:
        """Puts a command before whose program the socket is there."""
        inside = ["nsenter", f"--target={self.process.pid}", "--mount"] if self.process and self.process.poll() is None else []
        return [*inside, *self._unprivileged()]

    def _unprivileged(self) -> list[str]:
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]

    def run(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """Runs a command as the server's user."""
        done = subprocess.run(
            [*self.as_user(), *words],
            input=stdin, capture_output=True, text=True, timeout=30, check=False, env=os.environ | self.environment,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()


class Session:
    """A client that stays connected after it has run its statements."""

    def __init__(self, words: Sequence[str], statements: str, done: str) -> None:
        """`done`: a statement that prints a line."""
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{statements}\n{done}\n".encode())
        ready, _, _ = select.select([self._process.stdout], [], [], STATEMENTS_S)
        if not ready:
            raise TimeoutError(f"a session waits: {statements}")
        self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> None:
        self._process.wait(timeout)

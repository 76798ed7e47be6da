"""What an unprivileged user of a guest can do to the agent, done at once. It needs Python's standard library alone.

    python3 worst.py [--processes N] [--servers N] [--mounts N] [--seconds S] [DIRECTORY]

It starts servers under the names of databases, which answer slowly, without end, or nonsense; processes of such names; files
that are kept open; pipes and links where a database has its files; and namespaces with many mounts. It prints `at work` when
all is there, and ends, with all it started, after S seconds, or at SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAMES = ("mariadbd", "mysqld", "redis-server", "valkey-server", "postgres", "pgbouncer", "slapd", "etcd", "mongod", "nginx")
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
OPEN_FILES = 200
LINE = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I"

_libc = ctypes.CDLL(None, use_errno=True)


def start(work: Callable[..., None], *arguments: object) -> int:
    """In a process of its own, which dies with this one."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work(*arguments)
    except OSError as error:  # what the guest does not allow is no failure
        print(f"{work.__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(0)


def call_itself(name: str) -> None:
    _libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def sleep_for_ever() -> None:
    while True:
        time.sleep(3600)


def as_server(name: str, directory: Path, number: int) -> None:
    """Listens, and treats each who connects in one of four ways."""
    call_itself(name)
    home = directory / f"{name}-{number}"
    (home / "global").mkdir(parents=True, exist_ok=True)
    os.chdir(home)
    path = home / (".s.PGSQL.5432" if name == "postgres" else "s")
    (home / "postmaster.pid").write_text(f"{os.getpid()}\n{home}\n0\n5432\n{home}\n*\n")
    with contextlib.suppress(FileExistsError):
        os.mkfifo(home / "global" / "pg_control")
        os.mkfifo(home / "ib_logfile0")
        (home / "PG_VERSION").symlink_to("/dev/zero")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o777)
    listener.listen(1)
    while True:
        connection, _ = listener.accept()
        start(answer, connection, number)
        connection.close()


def answer(connection: socket.socket, number: int) -> None:
    for piece, pause_s in _pieces(number):
        connection.sendall(piece)
        time.sleep(pause_s)


def _pieces(number: int) -> Iterator[tuple[bytes, float]]:
    while True:
        if number % 4 == 0:
            yield b"\0", 3.0
        elif number % 4 == 1:
            yield LINE + b"D\0\0\0\x0b\0\1\0\0\0\1a" * 5000, 0.0
        elif number % 4 == 2:
            yield b"$300000\r\n" + b"x" * 300000 + b"\r\n", 0.0
        else:
            yield os.urandom(100), 0.1


def as_process(name: str, directory: Path) -> None:
    """Keeps many files open for writing, of which one is locked."""
    call_itself(name)
    files = []
    for number in range(OPEN_FILES):
        with contextlib.suppress(OSError):
            files.append((directory / f"kept.{number}").open("a"))
            files[-1].write("x")
            files[-1].flush()
    if files:
        with contextlib.suppress(OSError):
            os.lockf(files[0].fileno(), os.F_TLOCK, 0)
    sleep_for_ever()


def as_program(name: str, directory: Path) -> None:
    """From an executable that is the user's own."""
    program = directory / name
    if not program.exists():
        shutil.copy("/bin/sleep", program)
    os.execv(program, [name, "86400"])  # noqa: S606


def as_mounts(directory: Path, count: int) -> None:
    """In user and mount namespaces of its own, with a chroot of its own: a container to whoever looks."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    call_itself("mariadbd")
    for number in range(count):
        place = directory / f"mount.{number}"
        place.mkdir(exist_ok=True)
        options = f"lowerdir={directory}:/usr".encode() if number % 2 else None
        kind = b"overlay" if number % 2 else b"tmpfs"
        if _libc.mount(b"worst", os.fsencode(place), kind, 0, options):
            break
    sleep_for_ever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", nargs="?", type=Path, default=Path(f"/tmp/worst-{os.getuid()}"))  # noqa: S108
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--mounts", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    started = [start(as_mounts, directory, options.mounts)]
    for number in range(options.servers):
        started.append(start(as_server, NAMES[number % len(NAMES)], directory, number))
    for number in range(options.processes):
        name = NAMES[number % len(NAMES)]
        started.append(start(as_process if number % 2 else as_program, name, directory))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("at work", flush=True)
    try:
        time.sleep(options.seconds)
    finally:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in started:
            os.waitpid(pid, 0)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

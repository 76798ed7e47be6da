"""Which processes are the system's own applications, and which only have the name of one.

Anybody may start a process and call it `mariadbd`. A process counts as an application of the machine if all of this holds:

    its executable is a program of that name, which root owns and nobody else can write. Where a service's user owns it, as of a
        program that was unpacked below /opt: if systemd, or a supervisor that runs as root, started it in a service
    it runs in no session of a login user (`user@1000.service`, `session-3.scope`). Root's own session counts as the system
    it is no user's job in a service that runs such jobs (cron, at, mail, SSH without sessions)

All others are listed (writers/strangers.py): nobody talks to them, and no label depends on them unless the administrator says
so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from quiesce.agent import looks, processes, systemd
from quiesce.agent.processes import Process

FIRST_LOGIN_USER = 1000
"""Lowest number of a user who is a person (login.defs(5), UID_MIN), or nobody."""
_SESSION = re.compile(r"/user\.slice/user-(?!0\.slice)\d+\.slice(/|$)")
_RUNS_JOBS = re.compile(
    r"(cron|crond|cronie|anacron|fcron|atd|batch|incron|incrond|ssh|sshd|sshd@.*|ssh@.*|postfix|postfix@.*|exim4?|sendmail|dovecot"
    r"|opensmtpd|xinetd|getty@.*|serial-getty@.*|display-manager|gdm3?|lightdm|sddm|xrdp|xrdp-sesman|slurmd)\.service"
)
"""Services whose processes are, in part, what users have them start."""
EXECUTABLES = {
    "mysqld": ("mysqld", "mariadbd"),
    "mariadbd": ("mariadbd", "mysqld"),
    "postmaster": ("postgres", "postmaster"),
    "postgres": ("postgres", "postmaster"),
    "redis-server": ("redis-server", "redis-check", "valkey-server", "valkey-check"),
    "valkey-server": ("valkey-server", "valkey-check", "redis-server", "redis-check"),
    "clickhouse-serv": ("clickhouse",),
}
"""How the names of executables begin, by the kernel's name of the process, where that is another."""


def applications(*names: str) -> Iterator[Process]:
    """The processes of these names that are the system's own applications."""
    return (process for process in processes.running(*names) if not why_stranger(process))


def why_stranger(process: Process) -> str:
    """Why the process is not an application of the system; the empty string if it is. Also if it ended."""
    group = processes.cgroup(process.pid)
    if job := why_users(process.uid, group):
        return job
    try:
        name = processes.executable(process.pid)
        wanted = EXECUTABLES.get(process.name, (process.name.partition(":")[0],))
        if not os.path.basename(name).startswith(wanted):
            return f"its executable is {name}"
        status = looks.at_executable(process.pid)
    except OSError:
        return "its executable cannot be looked at"
    if status.st_uid == 0 and not status.st_mode & 0o022:
        return ""
    if status.st_mode & 0o002:
        return f"anybody can write its executable {name}"
    return "" if _started_by_root(process, group) else f"its executable {name} is not root's"


def why_users(uid: int, group: str) -> str:
    """Why a process of this user, in this control group, is what a login user started; the empty string if it is not."""
    if _SESSION.match(group):
        return "it runs in a login user's session"
    unit = processes.unit_of(group)
    if uid >= FIRST_LOGIN_USER and _RUNS_JOBS.fullmatch(unit):
        return f"it is a user's job in {unit}"
    return ""


def own_unit(pid: int) -> str:
    """The system service that can be frozen with the process; empty if it is in none, or in one that runs users' jobs."""
    unit = processes.unit(pid)
    return "" if _RUNS_JOBS.fullmatch(unit) else unit


def _started_by_root(process: Process, group: str) -> bool:
    """Whether root, by systemd or a supervisor, started the process in a service, or in a container."""
    unit = processes.unit_of(group)
    if not unit:
        return process.container and group.endswith(".scope")
    if _RUNS_JOBS.fullmatch(unit):
        return False
    parent = processes.parent(process.pid)
    if parent > 1 and processes.unit(parent) == unit and processes.owner(parent) == 0:
        return True
    return systemd.main_process(unit) == process.pid


def who_is(pid: int) -> str:
    """Process, user and executable, for a person. Asks no directory of users; to be used outside the window."""
    try:
        executable = processes.executable(pid)
        user = processes.user_name(processes.owner(pid))
    except OSError:
        return f"process {pid}, which ended"
    return f"process {pid} of user {user}, {executable[:200]}"

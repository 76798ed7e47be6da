"""Proof from a restored PostgreSQL or MariaDB itself: its log, and its own checks."""

from __future__ import annotations

from lab.machine import GuestCommandError, Machine
from quiesce.agent.writers.start_log import InnodbRecovery, Recovery, innodb_recovery_in, recovery_in

LOG = "/var/log/postgresql/postgresql-*-main.log"


def recovery(machine: Machine) -> Recovery:
    return recovery_in(machine.run(f"cat {LOG}").stdout)


def innodb_recovery(machine: Machine) -> InnodbRecovery:
    return innodb_recovery_in(machine.run("journalctl -b -u mariadb -o cat --no-pager").stdout)


def amcheck_errors(machine: Machine, timeout: float = 300) -> int:
    """The number of complaints of pg_amcheck about all tables and indexes of all databases."""
    command = "runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_amcheck --all --install-missing --heapallindexed"
    finished = machine.run(command, check=False, timeout=timeout)
    if finished.returncode not in (0, 2):  # 2: it found corruption
        raise GuestCommandError(command, finished)
    return len([line for line in finished.stdout.splitlines() if line.strip()]) if finished.returncode else 0

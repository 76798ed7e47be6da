"""OpenLDAP's slapd with its mdb backend: frozen, and clean wherever in its work it stops.

LMDB never overwrites a page that the last commit refers to, and a commit is one page, written last and synchronously. So an
image taken at any instant has the last commit whole, and a start recovers nothing. The hold keeps all databases of the server
at one instant, and lets clients wait. Databases that give up LMDB's promise for speed (olcDbNoSync, the environment flags
nosync, writemap, mapasync) are not vouched for.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from dataclasses import replace

from quiesce.agent import commands, files, identity, looks, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.unsupported import Unreached
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

SLAPTEST, SLAPCAT = "/usr/sbin/slaptest", "/usr/sbin/slapcat"
_META = struct.Struct("=16xII8xQ")
"""An LMDB meta page: magic, version, map size (liblmdb's mdb.c: MDB_page, MDB_meta)."""
_MAGIC = 0xBEEFC0DE
_UNSAFE = re.compile(
    r"^(olcDbNoSync:\s*TRUE|dbnosync\b|(olcDbEnvFlags:|envflags\b).*\b(nosync|nometasync|writemap|mapasync)\b)",
    re.IGNORECASE | re.MULTILINE,
)
"""Unsafe settings, as slapd.d and slapd.conf write them."""


MAX_CONFIGURATION = 4 * 1024 * 1024


def discover() -> list[ApplicationWriter]:
    """One writer for each system service."""
    found: dict[str, ApplicationWriter] = {}
    for process in identity.applications("slapd"):
        unit = identity.own_unit(process.pid)
        writer = Slapd(unit, process) if unit else Unreached(f"openldap:{process.pid}", "openldap", process.pid)
        found[writer.id] = writer
    return [found[id] for id in sorted(found)]


class Slapd(FrozenCgroup):
    """A directory server."""

    application = "openldap"
    worth = Grade.CLEAN

    def __init__(self, unit: str, process: Process) -> None:
        super().__init__(f"openldap:{unit}", unit=unit)
        self._process = process
        self._databases = sorted({path for path in processes.open_files(process.pid) if path.endswith("/data.mdb")})
        if self._databases:
            self.data_directory = os.path.dirname(self._databases[0])

    def on_identify(self, deadline_ns: int) -> None:
        if not self._databases:
            raise WriterError("it has no open mdb database", Outcome.NON_RETRYABLE)
        if not any(map(_read, _configuration())):
            raise WriterError(
                "its configuration is not in /etc/ldap, so nobody knows whether its databases are safe at any instant",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )
        if unsafe := next(filter(_UNSAFE.search, map(_read, _configuration())), None):
            setting = _UNSAFE.search(unsafe)
            reason = f"its databases are not safe at any instant: {setting.group(0) if setting else ''}"
            raise WriterError(reason, Outcome.NON_RETRYABLE, Grade.CRASH)
        super().on_identify(deadline_ns)
        self._note_position()

    def on_hold(self, deadline_ns: int) -> None:
        super().on_hold(deadline_ns)
        self._note_position()

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        """Whether its configuration and every entry can be read, and its last commit. LMDB has no recovery to tell of."""
        self._note_position()
        read = 0
        for command in ((SLAPTEST, "-u", "-Q"), *((SLAPCAT, "-n", str(number)) for number in self._numbers())):
            if os.access(command[0], os.X_OK):
                commands.run_command(command, left_s(deadline_ns), None, limit=0)
                read += 1
        checks = (f"slaptest, and slapcat of {read - 1} databases: every entry can be read",) if read > 1 else ()
        return replace(start, did=Did.NOTHING, position=dict(self.position), checks=checks)

    def _numbers(self) -> list[int]:
        """Of its databases, as slapcat counts them: 0 is the configuration, 1 the first other one."""
        return list(range(1, len(self._databases) + 1))

    def paths(self) -> list[str]:
        return [os.path.dirname(path) for path in self._databases]

    def _note_position(self) -> None:
        for path in self._databases:
            name = "last_txn_id" if len(self._databases) == 1 else f"last_txn_id {os.path.dirname(path)}"
            self.position[name] = str(last_transaction(path))


def last_transaction(path: str) -> int:
    """The number of the last commit in an LMDB file. Raises OSError, as NotAnsweringError, and ValueError."""
    return looks.at(path, _last_transaction, path)


def _last_transaction(path: str) -> int:
    database = files.open_regular(path)
    try:
        first = second = os.pread(database, 152, 0)
        if len(first) == 152:
            second = os.pread(database, 152, struct.unpack_from("=I", first, 40)[0])
    finally:
        os.close(database)
    numbers = [
        struct.unpack_from("=Q", page, 144)[0]
        for page in (first, second)
        if len(page) == 152 and _META.unpack_from(page)[0] == _MAGIC
    ]
    if not numbers:
        raise ValueError(f"{path} is no LMDB file")
    return int(max(numbers))


def _configuration() -> list[str]:
    return ["/etc/ldap/slapd.conf", *glob.glob("/etc/ldap/slapd.d/**/*.ldif", recursive=True)]


def _read(path: str) -> str:
    try:
        return files.read_text(path, MAX_CONFIGURATION, links=True)
    except OSError:
        return ""

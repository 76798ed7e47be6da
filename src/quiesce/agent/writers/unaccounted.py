"""Programs that write files on this machine's disks, and that no writer accounts for: found by what they do, not by name.

A program that keeps a file open for writing, or mapped shared and writable, at every one of several looks may be a database in
the middle of its work, so a checkpoint with it is not application-consistent. One that only had a file open for writing is
listed, and changes no label. The administrator answers in /etc/quiesce/writers.d (docs/writers.md, "Not accounted for").
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quiesce.agent import openfiles, processes
from quiesce.agent.openfiles import IncompleteError, WritingProcess
from quiesce.agent.writers.account import Account
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.model.grades import Grade
from quiesce.model.reports import OpenFiles, Outcome
from quiesce.wire.schema import printable

LOOKS = 3
PAUSE_S = 0.1
"""Time between two looks, in seconds."""
LIMIT_S = 15.0
"""Longest that all looks may take, in seconds."""
MAX_PROGRAMS, MAX_FILES = 16, 3
"""Most programs reported one by one, and most files named of each: anybody may start many programs with odd names."""
MAX_TEXT = 160
"""Longest name in a report, in bytes of JSON."""
ID = "unaccounted:"

NOT_DATA = {
    **dict.fromkeys(("/var/log", "/var/spool/rsyslog"), "logs"),
    **dict.fromkeys(("/tmp", "/var/tmp", "/run", "/var/run"), "temporary files"),  # noqa: S108
    **dict.fromkeys(("/var/cache", "/var/lib/sss"), "caches, made anew when they are missing"),
    **dict.fromkeys(
        ("/var/lib/apt", "/var/lib/dpkg", "/var/lib/rpm", "/var/lib/dnf", "/var/lib/snapd", "/var/lib/PackageKit"),
        "a package manager's own, which it mends after any interruption",
    ),
    **dict.fromkeys(("/var/lib/plocate", "/var/lib/mlocate"), "lists of files, made anew every day"),
    **dict.fromkeys(
        ("/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/dhcpcd", "/var/lib/NetworkManager"),
        "leases of addresses, which are asked for again",
    ),
    **dict.fromkeys(("/var/lib/chrony", "/var/lib/ntp", "/var/lib/ntpsec"), "how far the clock is off, measured again"),
    **dict.fromkeys(("/var/lib/systemd", "/var/lib/private/systemd", "/var/lib/udisks2"), "the system's bookkeeping"),
    **dict.fromkeys(("/var/lib/lastlog", "/var/lib/wtmpdb"), "who logged in when"),
    **dict.fromkeys(("/var/spool/cron", "/var/spool/anacron"), "when jobs ran, and what they printed"),
    **dict.fromkeys(
        ("/var/spool/exim4", "/var/spool/postfix", "/var/lib/postfix"),
        "a queue of mail: each message is a file of its own, complete before its sender is told so",
    ),
    **dict.fromkeys(
        (
            "/var/lib/docker/buildkit",
            "/var/lib/docker/containers",
            "/var/lib/docker/network",
            "/var/lib/docker/volumes/metadata.db",
            "/var/lib/containerd/io.containerd.metadata.v1.bolt",
            "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/metadata.db",
        ),
        "a container engine's records, in bbolt, which no power failure harms, and its containers' output",
    ),
}
"""Files and directories that are not looked at, with the reason."""
_SWAP_FILE = re.compile(r"/\.[^/]*\.sw[a-p]$")
"""An editor's: the file that is edited is written as a whole when it is saved (vim, ":help swap-file")."""


def discover(writers: Sequence[ApplicationWriter]) -> list[ApplicationWriter]:
    """One writer for each program that none of these accounts for. Takes some 0.3 s."""
    deadline_ns = deadline_in_ns(LIMIT_S)
    hung: set[int] = set()
    looks = []
    try:
        for number in range(LOOKS):
            if number:
                time.sleep(PAUSE_S)
            looks.append(openfiles.look(deadline_ns, hung))
    except IncompleteError:
        return [Unlooked(f"not all processes could be looked at within {LIMIT_S:.0f} s; try again", required=True)]
    accounts = [writer.account() for writer in writers]
    found: list[ApplicationWriter] = [Unaccounted(id, each) for id, each in summarise(judge_looks(looks, accounts))]
    if hung:
        names = ", ".join(f"{pid} ({brief_name(processes.kernel_name(pid))})" for pid in sorted(hung)[:MAX_FILES])
        names += f" and {len(hung) - MAX_FILES} more" if len(hung) > MAX_FILES else ""
        reason = (
            f"process {names} hangs whoever looks at it, perhaps at a mount that does not answer, or is one of very many of a"
            " login user, and was passed over"
        )
        found.append(Unlooked(reason, required=False))
    return found


@dataclass
class Candidate:
    """What was seen of one system service, or of one executable outside of any."""

    unit: str
    users: bool = False
    """A login user started it: no label depends on it."""
    paths: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path of each file and the executable that writes it, by the file's id."""
    seen: dict[str, int] = field(default_factory=dict)
    """At how many looks each file was written as data is, by the file's id."""

    def report(self, looks: int) -> OpenFiles:
        kept = sorted(self.paths[id] for id, count in self.seen.items() if count >= looks)
        named = kept or sorted(self.paths.values())
        return (UsersFiles if self.users else OpenFiles)(
            brief_name(named[0][1]),
            brief_name(self.unit),
            tuple(brief_name(path) for path, _ in named[:MAX_FILES]),
            len(kept) or len(self.paths),
            bool(kept),
        )


class UsersFiles(OpenFiles):
    """Of a program that a login user started: no label depends on it."""


def judge_looks(looks: Sequence[Sequence[WritingProcess]], accounts: Sequence[Account]) -> list[OpenFiles]:
    """What was seen at these looks that none of the accounts has, by service or executable."""
    found: dict[tuple[str, bool], Candidate] = {}
    owned: dict[int, bool] = {}
    paths = {os.path.realpath(path) for account in accounts for path in account.paths}
    for look in looks:
        seen: set[tuple[tuple[str, bool], str]] = set()
        for process in look:
            if process.pid not in owned:
                owned[process.pid] = any(account.has(process.pid, process.cgroup) for account in accounts)
            if owned[process.pid]:
                continue
            unit = "" if process.users else processes.unit_of(process.cgroup)
            for file in process.files:
                if is_data(file.path) and not (not process.container and _is_below(file.path, paths)):
                    key = unit or process.executable, process.users
                    candidate = found.setdefault(key, Candidate(unit, process.users))
                    candidate.paths[file.id] = file.path, process.executable
                    candidate.seen.setdefault(file.id, 0)
                    if not file.log and (key, file.id) not in seen:
                        seen.add((key, file.id))
                        candidate.seen[file.id] += 1
    return [candidate.report(len(looks)) for candidate in found.values()]


def is_data(path: str) -> bool:
    return not _is_below(path, NOT_DATA) and not _SWAP_FILE.search(path)


def _is_below(path: str, directories: Iterable[str]) -> bool:
    """Whether it is one of them, or in one of them."""
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in directories)


def summarise(found: Iterable[OpenFiles]) -> list[tuple[str, OpenFiles]]:
    """With the id of each: at most MAX_PROGRAMS and one for all others together. Programs on which a label depends come first,
    and among them services, which no ordinary user can start."""
    ordered = sorted(found, key=lambda each: (not _required(each), not each.kept, not each.unit, each.unit, each.executable))
    named = [(_id_of(each), each) for each in ordered[:MAX_PROGRAMS]]
    rest = ordered[MAX_PROGRAMS:]
    if not rest:
        return named
    files = [file for each in rest for file in each.files][:MAX_FILES]
    number, kept = sum(each.number for each in rest), any(each.kept for each in rest)
    kind = OpenFiles if any(map(_required, rest)) or not kept else UsersFiles
    return [*named, (f"{ID}others", kind(f"{len(rest)} more programs", "", tuple(files), number, kept))]


def _required(found: OpenFiles) -> bool:
    return found.kept and not isinstance(found, UsersFiles)


def _id_of(found: OpenFiles) -> str:
    return f"{ID}{'user:' if isinstance(found, UsersFiles) else ''}{found.unit or found.executable}"


def brief_name(text: str) -> str:
    """The text without what a terminal obeys, and cut: anybody gives a file its name."""
    text = printable(text)
    cut = text[:MAX_TEXT]
    while len(json.dumps(cut)) > MAX_TEXT + 2:
        cut = cut[: len(cut) * 9 // 10]
    return text if cut == text else cut + "…"


class Unaccounted(ApplicationWriter):
    """A program of which only its open files are known."""

    application = "not accounted for"

    def __init__(self, id: str, found: OpenFiles) -> None:
        super().__init__(id)
        self.not_accounted_for = found
        self._found = found
        self.required = _required(found)

    def on_identify(self, deadline_ns: int) -> None:
        found = self._found
        rest = found.number - len(found.files)
        files = ", ".join(found.files) + (f" and {rest} more" if rest > 0 else "")
        who = found.executable + (f" of {found.unit}" if found.unit else "")
        does = "keeps open for writing, as a database does," if found.kept else "writes"
        what = f"not accounted for: {who} {does} {files}"
        if not self.required:
            then = "restored, it starts as after a power failure" if found.kept else "it does not look like a database"
            then += "; a login user started it, so no label depends on it" if isinstance(found, UsersFiles) else ""
            self.grade, self.reason = Grade.CRASH, f"{what}; {then}"
        else:
            how = f"how it is held ([Writer], Unit={found.unit})" if found.unit else "how it is held ([Writer])"
            raise WriterError(
                f"{what}; quiesce has no writer for it, so restored it starts as after a power failure. Say in"
                f" /etc/quiesce/writers.d {how}, or that it does not matter ([Match], Writer={self.id}, Required=no)",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )


class Unlooked(ApplicationWriter):
    """Stands for processes that were not looked at, so that nobody knows what they write."""

    application = "not accounted for"

    def __init__(self, reason: str, *, required: bool) -> None:
        super().__init__(f"{ID}processes")
        self.not_accounted_for = OpenFiles("", "", (), 0, kept=False)
        self.required = required
        self._reason = reason

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(f"not accounted for: {self._reason}", Outcome.TIMEOUT, Grade.CRASH)

"""What this machine tells of its start, if it is a copy of a checkpoint: each application by its own log and checks, the
administrator's checks, the filesystems by the kernel's log, and the units that failed."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Callable, Optional

from quiesce.agent import bounds, commands, inodes, linux, logs, processes, systemd, trial
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s, share_of
from quiesce.model.starts import CHECK, FILESYSTEMS, Did, FailedUnit, Start
from quiesce.wire.framing import MAX_LINE
from quiesce.wire.messages import Verified
from quiesce.wire.schema import to_wire

MAX_UNITS, MAX_LINES, MAX_STARTS = 20, 12, 200
FILESYSTEMS_SHARE = 10
"""Of the time that is left when everything has started, one part in so many is kept for the filesystems. They are read last: so
the applications' checks need not wait for it, and the kernel's log has what they met, too."""
_TROUBLE = re.compile(
    r"EXT4-fs error|EXT4-fs .*(?:corrupt|errors? count|checksum)|XFS .*(?:corrupt|metadata I/O error|Unmount and run)"
    r"|BTRFS.*(?:error|corrupt)|I/O error, dev|Buffer I/O error",
    re.IGNORECASE,
)
_RECOVERED = re.compile(r"EXT4-fs .*(?:recovery complete|orphan cleanup)|EXT3-fs .*recovery complete")
"""XFS goes through its log after every freeze, also if there is nothing to do, so its lines tell nothing."""
_INODE = re.compile(r"EXT4-fs error \(device ([^)]+)\).*? inode #(\d+)")


def ask_all(discover: Callable[[], Sequence[ApplicationWriter]], until_ns: int) -> Verified:
    """Waits until systemd has started everything, then asks each application. Ends by `until_ns`: what has no time left by then
    is not checked, and says so."""
    boot_ms = _wait_for_boot(until_ns)
    found = discover()
    starts = []
    checks = sorted(path for path in glob.glob(f"{trial.CHECKS}/*") if not path.endswith((".md", "~", ".disabled")))
    waiting = len(found) + len(checks)
    applications_ns = until_ns - max(0, until_ns - time.monotonic_ns()) // FILESYSTEMS_SHARE
    for writer in found:
        if writer.not_accounted_for is None:
            starts.append(_start_of(writer, share_of(applications_ns, waiting)))
        waiting -= 1
    for path in checks:
        starts.append(_check(path, share_of(applications_ns, waiting)))
        waiting -= 1
    return Verified(_fitting([_filesystems(until_ns), *starts]), _failed_units(), boot_ms)


def _start_of(writer: ApplicationWriter, until_ns: int) -> Start:
    try:
        start = writer.verify(until_ns)
    finally:
        writer.abort()
    unit = getattr(writer, "unit", "") or (processes.unit(writer.pids[0]) if writer.pids else "")
    if unit and start.running:
        start = _with_unit(start, unit)
    if writer.check and not start.failure:
        start = _checked(start, writer.check, until_ns)
    return start


def _with_unit(start: Start, unit: str) -> Start:
    """When the application's service was up; whether it is."""
    try:
        found = systemd.properties_of(unit)
    except systemd.UnitError:
        return start
    if found.get("LoadState") == "loaded" and found.get("ActiveState") not in ("active", "reloading", "activating"):
        lines = tuple(logs.of_unit(unit).splitlines()[-MAX_LINES:])
        return replace(start, running=False, evidence=(*start.evidence, *lines)[-MAX_LINES:])
    since = found.get("ActiveEnterTimestampMonotonic", "0")
    return replace(start, answered_ms=int(since) // 1000) if since.isdecimal() and since != "0" else start


def _check(path: str, until_ns: int) -> Start:
    return _checked(Start(CHECK + os.path.basename(path), "check"), (path,), until_ns)


def _checked(start: Start, command: Sequence[str], until_ns: int) -> Start:
    """After a command of the administrator's."""
    try:
        commands.require_runnable(command[0])
        said = commands.run_command(command, left_s(until_ns), None)
    except WriterError as error:
        return replace(start, failure=str(error))
    lines = tuple(said.splitlines()[-3:])
    return replace(start, checks=(*start.checks, " ".join(command)), evidence=(*start.evidence, *lines))


def _filesystems(until_ns: int) -> Start:
    """Whether every inode and every directory can be read, and what the kernel said since it started, of these and others."""
    read = inodes.read_inodes(until_ns)
    lines = _kernel_log()
    trouble, recovered = ([line for line in lines if pattern.search(line)] for pattern in (_TROUBLE, _RECOVERED))
    if wanted := frozenset((match[1], int(match[2])) for match in map(_INODE.search, trouble) if match):
        read = replace(read, named=inodes.read_inodes(until_ns, wanted=wanted).named)
    known = {text.rpartition(": ")[0] for text in read.damaged}
    damaged = [*read.damaged, *(text for text in read.named if text.rpartition(" is inode ")[0] not in known)]
    check = f"{read.inodes:,} inodes and their directories, of {read.filesystems} filesystem{'s'[: read.filesystems != 1]}"
    return Start(
        FILESYSTEMS,
        "filesystem",
        did=Did.REDO if recovered else Did.NOTHING,
        failure="; ".join([*damaged[:3], *trouble[:3]]) or None,
        checks=() if damaged or not read.inodes else (check,),
        notes=read.unread,
        evidence=(*damaged[: MAX_LINES // 2], *(trouble or recovered))[:MAX_LINES],
    )


def _kernel_log() -> list[str]:
    lines = []
    with suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    record = os.read(descriptor, 8192).decode(errors="replace")
                except BrokenPipeError:
                    continue  # records were overwritten meanwhile
                lines.append(record.partition(";")[2].partition("\n")[0])
        finally:
            os.close(descriptor)
    return lines


def _wait_for_boot(until_ns: int) -> Optional[int]:
    """Milliseconds from the kernel's start until systemd had started everything; None: it had not by then."""
    left = (until_ns - time.monotonic_ns()) / 1e9 * 0.7
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [systemd.SYSTEMCTL, "is-system-running", "--wait"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=max(1.0, left),
            check=False,
            preexec_fn=linux.prepare_program,
        )
        said = subprocess.run(
            [systemd.SYSTEMCTL, "show", "--property", "FinishTimestampMonotonic", "--value"],
            capture_output=True,
            timeout=systemd.TIMEOUT_S,
            check=False,
            preexec_fn=linux.prepare_program,
        ).stdout.decode(errors="replace")
        return int(said) // 1000 if said.strip().isdecimal() and int(said) else None
    return None


def _failed_units() -> tuple[FailedUnit, ...]:
    command = [systemd.SYSTEMCTL, "list-units", "--state=failed", "--plain", "--no-legend", "--full", "--no-pager"]
    try:
        said = commands.run_command(command, systemd.TIMEOUT_S, None, limit=1 << 16)
    except WriterError:
        return ()
    names = [line.split()[0] for line in said.splitlines() if line.split()]
    return tuple(
        FailedUnit(bounds.cut(name, bounds.NAME), _cut(logs.of_unit(name).splitlines()[-MAX_LINES:]))
        for name in names[:MAX_UNITS]
    )


def _fitting(starts: Sequence[Start]) -> tuple[Start, ...]:
    """Cut so that a reply has room for all: whatever an application says, what is wrong with another one arrives."""
    listed = starts[:MAX_STARTS]
    if len(starts) > MAX_STARTS:
        text = f"the copy has {len(starts) - MAX_STARTS} more applications than a reply has room for"
        listed = [*listed, Start("more", "more applications", failure=text)]
    for lines, positions, text_size in ((MAX_LINES, bounds.MAX_POSITIONS, bounds.TEXT), (3, 8, bounds.NAME), (0, 0, 100)):
        found = tuple(_bounded(each, lines, positions, text_size) for each in listed)
        if sum(len(json.dumps(to_wire(each))) for each in found) <= MAX_LINE // 2:
            break
    return found


def _bounded(start: Start, lines: int, positions: int, size: int) -> Start:
    position = list(start.position.items())[:positions]
    return replace(
        start,
        id=bounds.cut(start.id, bounds.NAME),
        application=bounds.cut(start.application, bounds.NAME),
        version=bounds.cut(start.version, bounds.NAME),
        failure=None if start.failure is None else bounds.cut(start.failure, size),
        redo_from=None if start.redo_from is None else bounds.cut(start.redo_from, bounds.NAME),
        redo_to=None if start.redo_to is None else bounds.cut(start.redo_to, bounds.NAME),
        position={bounds.cut(name, bounds.NAME): bounds.cut(value, bounds.NAME) for name, value in position},
        checks=_cut(start.checks[:4], bounds.NAME // 2),
        notes=_cut(start.notes[: min(4, lines)], bounds.NAME),
        evidence=_cut(start.evidence[:lines]),
    )


def _cut(lines: Sequence[str], size: int = bounds.TEXT // 2) -> tuple[str, ...]:
    return tuple(bounds.cut(line, size) for line in lines)

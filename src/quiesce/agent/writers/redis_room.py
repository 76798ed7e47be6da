"""Whether a Redis has room for a save. One that fails makes the server refuse every write until another one succeeds
(stop-writes-on-bgsave-error), which may take until an administrator comes."""

from __future__ import annotations

import os
import re

from quiesce.agent import looks, processes
from quiesce.agent.cgroups import ROOT
from quiesce.agent.writers.redis_info import Info

MIB = 1024 * 1024
COPIED = 4
"""While it saves, the server copies each page that a client writes to: at most one page of so many, it is expected."""


def why_no_room(info: Info, directory: str, pid: int) -> str:
    """What is too little for a save; the empty string if nothing is known to be."""
    data = int(info.get("used_memory_dataset") or info.get("used_memory") or 0)
    free = looks.room(directory)
    if free < data + MIB:
        return f"{directory} has {free // MIB} MiB free, and a save may need {_up(data + MIB)} MiB"
    left = memory_left(pid)
    if left < data // COPIED + MIB:
        return f"{left // MIB} MiB of memory are left, and a save may need {_up(data // COPIED + MIB)} MiB"
    return ""


def memory_left(pid: int) -> int:
    """Bytes of memory that this process's group and the machine can still give."""
    with open("/proc/meminfo") as file:
        left = [1024 * int(found) for found in re.findall(r"^MemAvailable: *(\d+) kB$", file.read(), re.MULTILINE)]
    group = processes.cgroup(pid)
    while group not in ("", "/"):
        try:
            with open(f"{ROOT}{group}/memory.max") as most, open(f"{ROOT}{group}/memory.current") as used:
                left.append(int(most.read()) - int(used.read()))
        except (OSError, ValueError):
            pass  # no such controller, or `max`
        group = os.path.dirname(group)
    return min(left, default=0)


def _up(size: int) -> int:
    return -(-size // MIB)

"""A process that has files open for writing, as a look at it tells."""

from __future__ import annotations

from quiesce.agent.openfiles import WritingProcess, WrittenFile


def process(
    *paths: str,
    pid: int = 7,
    executable: str = "/usr/sbin/shopd",
    unit: str = "shop.service",
    container: bool = False,
    log: bool = False,
) -> WritingProcess:
    files = tuple(WrittenFile(f"8:1:{path}", path, log) for path in paths)
    return WritingProcess(pid, executable, f"/system.slice/{unit}" if unit else "/user.slice/x.scope", container, files)

"""Writes the guest agent to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quiesce.context import Context
from quiesce.guests import archive


@dataclass(frozen=True)
class AgentFile:
    path: str
    bytes: int


def guest_agent_file(_: Context, path: Path) -> AgentFile:
    """Writes the agent of this quiesce to `path` on this machine. Raises QuiesceError if the file cannot be written."""
    return AgentFile(str(path), archive.write_archive(path))

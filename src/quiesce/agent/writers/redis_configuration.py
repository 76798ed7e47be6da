"""What a Redis or Valkey will read when it is started again: its configuration file, and not what was set at run time."""

from __future__ import annotations

import glob
import os
import shlex
from typing import Optional

from quiesce.agent import files, linux, looks

MAX_INCLUDES = 20
DUMP = "dump.rdb"
"""The name of a save where no setting says another; redis.conf, dbfilename."""


def read_settings(path: str, uid: Optional[int] = None) -> dict[str, str]:
    """A configuration file's settings of one value; where one occurs twice the last counts. `uid`: as whom
    to read it and what it includes. Raises OSError."""
    settings: dict[str, str] = {}
    with linux.as_user(os.geteuid() if uid is None else uid):
        _read(path, settings, [])
    return settings


def _read(path: str, settings: dict[str, str], seen: list[str]) -> None:
    seen.append(path)
    for line in files.read_text(path, 1024 * 1024, os.geteuid(), links=True).splitlines():
        try:
            words = shlex.split(line)
        except ValueError:  # a quotation mark in a comment
            continue
        if len(words) == 2 and words[0].lower() == "include" and "\0" not in words[1]:
            for included in sorted(looks.at(words[1], glob.glob, words[1])):
                if included not in seen and len(seen) < MAX_INCLUDES:
                    _read(included, settings, seen)
        elif len(words) == 2:
            settings[words[0].lower()] = words[1]


def differs_at_start(settings: dict[str, str], directory: str, dump: str) -> str:
    """Why the server, started with these settings, would not read the files it keeps now, which are in `directory`; the empty
    string if it would. Example: after `CONFIG SET dir /elsewhere` the next start reads the old directory."""
    if "dir" in settings and looks.real(settings["dir"]) != looks.real(directory):
        return f"its configuration file says dir {settings['dir']}, and it keeps its files in {directory} (CONFIG SET dir)"
    at_start = settings.get("dbfilename", DUMP)
    if at_start != dump:
        return f"by its configuration file it reads {at_start}, and it saves to {dump} (CONFIG SET dbfilename)"
    return ""

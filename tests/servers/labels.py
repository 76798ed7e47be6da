"""Runs configurations of servers in boxes, and compares what the agent claims of a checkpoint with a start from it."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from lab import box, boxed
from quiesce.applications.postgresql import same_end
from quiesce.guests import archive
from quiesce.model.grades import Consistency, Grade, judge
from quiesce.model.reports import WriterReport, required_grades
from quiesce.wire.schema import from_wire

AGENT = "quiesce-agent.pyz"
INSIDE = Path(boxed.__file__).parent
WORDS_OF_LIBRARIES = re.compile(r"InterfaceError|OperationalError|ProgrammingError|Errno|Traceback|pymysql|pg8000|\(\d{4}, ")


@cache
def files() -> dict[str, bytes]:
    given = {AGENT: archive.build(), "lab/__init__.py": b""}
    return given | {f"lab/boxed/{path.name}": path.read_bytes() for path in INSIDE.glob("*.py")}


def run(configuration: dict[str, Any]) -> dict[str, Any]:
    words = ["/usr/bin/env", "-C", "/quiesce", f"PYTHONPATH={AGENT}", "python3", "-m", "lab.boxed"]
    try:
        return json.loads(box.run(words, json.dumps(configuration), files(), debian=configuration.get("debian", 13)))
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr[-4000:]) from None


def label_of(claimed: dict[str, Any]) -> str:
    """Of a checkpoint with these reports; empty if there is none."""
    if "refused" in claimed:
        return ""
    writers = [from_wire(WriterReport, writer) for writer in claimed["writers"]]
    return judge(frozen_unbroken=claimed["unbroken"], writer_grades=required_grades(writers)).value


def lies(configuration: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """What is wrong with the result; empty if all that was claimed holds."""
    wrong = [f"a client was told: {said[-300:]}" for said in result["errors"].values() if said]
    claimed = result["claimed"]
    if "refused" in claimed:
        if not configuration["nil_redo"] or WORDS_OF_LIBRARIES.search(claimed["refused"]):
            wrong.append(f"refused: {claimed['refused']}")
        return wrong
    writers = [from_wire(WriterReport, writer) for writer in claimed["writers"]]
    for writer in writers:
        if not writer.grade.vouched and (not writer.reason or WORDS_OF_LIBRARIES.search(writer.reason)):
            wrong.append(f"{writer.id} is {writer.grade.value}: {writer.reason}")
    application = label_of(claimed) == Consistency.APPLICATION.value
    for number, server in enumerate(configuration["servers"]):
        name = f"server{number}"
        mine = [writer for writer in writers if writer.id in result["writers_of"][name]]
        if application and len(mine) != 1:
            wrong.append(f"application, and {name} has {len(mine)} writers: {[writer.id for writer in writers]}")
        elif len(mine) == 1 and mine[0].grade.vouched:
            wrong += _not_as_claimed(name, server, result, mine[0])
    return wrong


def _not_as_claimed(name: str, server: dict[str, Any], result: dict[str, Any], writer: WriterReport) -> list[str]:
    found = result["found"][name]
    if not found["started"]:
        return [f"{name} is {writer.grade.value}, and does not start: {found['why']}"]
    held_ns, released_ns = result["claimed"]["held_ns"], result["claimed"]["released_ns"]
    stored, notes = set(found["stored"]), result["written"][name]
    wrong = []
    if writer.reason and "keeps nothing on disk" in writer.reason:
        return [f"{name} keeps nothing, and has {len(stored)} keys"] if stored and "old" not in writer.reason else []
    missing = {key for key, _, acknowledged_ns in notes if acknowledged_ns < held_ns} - stored
    later = {key for key, started_ns, _ in notes if started_ns > released_ns} & stored
    if missing and "may be missing" not in str(writer.reason):
        wrong.append(f"{name}: {len(missing)} acknowledged keys are missing, as {min(missing)}")
    if later:
        wrong.append(f"{name}: {len(later)} keys of after the checkpoint, as {min(later)}")
    wrong += [f"{name} is {writer.grade.value} ({writer.reason}), and {text}" for text in LOGS[server["kind"]](writer, found)]
    return wrong


def _postgresql(writer: WriterReport, found: dict[str, Any]) -> list[str]:
    if writer.grade is Grade.CLEAN:
        return ["it recovered"] if found["recovered"] else []
    claimed = writer.position["redo_lsn"], writer.position["insert_lsn"]
    if writer.grade is Grade.STANDS_STILL and found["redo_starts"]:
        is_so = found["redo_starts"], found["log_ends"]
        same = is_so[0] == claimed[0] and same_end(is_so[1], claimed[1])
        return [] if same else [f"its log says {is_so}, not {claimed}: {found['log']}"]
    return [] if not found["redo_starts"] or found["redo_starts"] == claimed[0] else [f"redo starts at {found['redo_starts']}"]


def _mariadb(writer: WriterReport, found: dict[str, Any]) -> list[str]:
    if writer.grade is Grade.CLEAN and found["recovers"]:
        return [f"its log says {found['recovers']}"]
    if writer.grade is Grade.STANDS_STILL and found["log_ends"] and "lsn_current" in writer.position:
        claimed = writer.position["lsn_current"]
        if found["log_ends"] != claimed and "somewhat later" not in str(writer.reason):
            return [f"its log ends at {found['log_ends']}, not {claimed}"]
    return []


def _redis(writer: WriterReport, found: dict[str, Any]) -> list[str]:
    return [f"its log says {found['recovers']}"] if found["recovers"] else []


LOGS = {"postgresql": _postgresql, "mariadb": _mariadb, "redis": _redis}

"""What MariaDB or MySQL tells of itself: variables, counters, and its position."""

from __future__ import annotations

import json
import re

from quiesce.agent.writers.mariadb_session import Session
from quiesce.agent.writers.mariadb_still import GTIDS

_PREPARED = re.compile(r"ACTIVE \(PREPARED\) (\d+) sec")
_THREAD = re.compile(r"thread id (\d+), .* query id \d+ (?:\S+ )?(\S+) *$", re.MULTILINE)


def named(session: Session, what: str, names: tuple[str, ...], deadline_ns: int) -> dict[str, str]:
    """The server's VARIABLES or STATUS values of these names, as far as it has them."""
    wanted = ", ".join(f"'{name}'" for name in names)
    return dict(session.run(f"SHOW GLOBAL {what} WHERE variable_name IN ({wanted})", deadline_ns))


def read_position(session: Session, variables: dict[str, str], *, mariadb: bool, deadline_ns: int) -> dict[str, str]:
    """Where the server is now. MySQL's LSN has another name than MariaDB's, because it grows by itself."""
    names = ("server_id", "server_uid", "server_uuid")
    position = {name: variables[name] for name in names if name in variables}
    if not mariadb:
        rows = session.run("SELECT `LOCAL`, `STORAGE_ENGINES` FROM performance_schema.log_status", deadline_ns)
        local, engines = (json.loads(text) for text in rows[0])
        return {
            **position,
            "gtid_executed": local.get("gtid_executed", ""),
            "binlog_file": local.get("binary_log_file", ""),
            "binlog_position": str(local.get("binary_log_position", "")),
            "innodb_lsn": str(engines["InnoDB"]["LSN"]),
            "innodb_lsn_checkpoint": str(engines["InnoDB"]["LSN_checkpoint"]),
        }
    status = named(session, "STATUS", ("Innodb_lsn_current", "Innodb_lsn_last_checkpoint"), deadline_ns)
    position["lsn_current"] = status["Innodb_lsn_current"]
    position["lsn_checkpoint"] = status["Innodb_lsn_last_checkpoint"]
    if variables.get("log_bin") == "ON":
        position.update(named(session, "VARIABLES", GTIDS, deadline_ns))
        for row in session.run("SHOW BINLOG STATUS", deadline_ns):
            position["binlog_file"], position["binlog_position"] = row[0], str(row[1])
    return position


def prepared_transactions(session: Session, deadline_ns: int) -> str:
    """The XA transactions that are prepared, whose, and for how long; empty if none is. Example: X
    'app') and 1 more`."""
    prepared = session.run("XA RECOVER", deadline_ns)
    if not prepared:
        return ""
    data = prepared[0][3]
    name = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    more = f" and {len(prepared) - 1} more" if len(prepared) > 1 else ""
    oldest = max(_prepared_in_status(session, deadline_ns), default=None)
    return f"{name!r}{more}" + (f" ({'the oldest ' if more else ''}for {oldest[0]} s{oldest[1]})" if oldest else "")


def _prepared_in_status(session: Session, deadline_ns: int) -> list[tuple[int, str]]:
    """Seconds of each prepared transaction, and whose it is. One whose session ended is nobody's."""
    found = []
    for row in session.run("SHOW ENGINE INNODB STATUS", deadline_ns):
        for transaction in str(row[2]).split("---TRANSACTION ")[1:]:
            if age := _PREPARED.search(transaction):
                thread = _THREAD.search(transaction)
                found.append((int(age[1]), f", thread {thread[1]} of user {thread[2]!r}" if thread else ""))
    return found

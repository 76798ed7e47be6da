"""Reports of writers, and what a server is judged by them, for tests of what the host knows of applications."""

from __future__ import annotations

from quiesce.applications.divergence import judge_server
from quiesce.model.divergence import Agreement
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import WriterReport

NOT_MOVED = "has not moved since the checkpoint"
NOT_THEN = "reported no position at the checkpoint"
NOT_NOW = "reports no position now that can be compared with the checkpoint's"


def writer(id: str, position: dict[str, str], **others: object) -> WriterReport:
    values = {"version": "1", "level": Level.BACK_END, "grade": Grade.CLEAN, "position": position}
    return WriterReport(id, id.partition(":")[0], **{**values, **others})


def postgresql(xid: str = "0:800", lsn: str = "0/100", **others: str) -> WriterReport:
    position = {"system_identifier": "7", "timeline": "1", "next_xid": xid, "insert_lsn": lsn, **others}
    return writer("postgresql:17/main", position, role="primary")


def standby(replay_lsn: str, **others: str) -> WriterReport:
    position = {"system_identifier": "7", "timeline": "1", "replay_lsn": replay_lsn, **others}
    return writer("postgresql:17/main", position, role="standby")


def mariadb(gtid: str = "0-1-5501", **others: str) -> WriterReport:
    position = {"server_id": "1", "server_uid": "u", "lsn_current": "900", "gtid_binlog_pos": gtid, **others}
    return writer("mariadb:main", position, role="primary")


def mariadb_without_log(lsn: str) -> WriterReport:
    return writer(
        "mariadb:main", {"server_id": "1", "server_uid": "u", "lsn_current": lsn, "lsn_checkpoint": lsn}, role="primary"
    )


def replica(gtid: str) -> WriterReport:
    return writer("mariadb:main", {"gtid_slave_pos": gtid}, role="replica", grade=Grade.CRASH)


def redis(**others: str) -> WriterReport:
    position = {"run_id": "r", "rdb_last_save_time": "1700000000", "rdb_changes_since_last_save": "0", "keys": "7", **others}
    return writer("redis:6379", position, role="primary")


NGINX = writer("nginx:nginx.service", {}, stateless=True)


def found(
    then: list[WriterReport] | None, now: list[WriterReport], going: list[WriterReport] | None = None
) -> tuple[Agreement, list[str]]:
    judged = judge_server("db", then, now, going or [])
    return judged.verdict, [finding.text for finding in judged.findings]


def compared(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    verdict, (text,) = found([before], [now])
    return verdict, text

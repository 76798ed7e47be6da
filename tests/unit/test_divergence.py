"""applications/divergence.py, model/divergence.py: what is said of a server that stays as it is, when others go back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.applications.divergence import judge_server
from quiesce.model.divergence import Agreement, Finding, ServerFindings, describe
from quiesce.model.reports import OpenFiles
from tests.unit.reports import NGINX, NOT_MOVED, found, mariadb, postgresql, redis, writer


def test_writers_that_keep_nothing_count_for_nothing():
    """Broken: restoring a database would be refused because of a web server that was restarted, replaced or is gone."""
    later = replace(NGINX, position={"connections": "3"})
    for then in (None, [], [NGINX], [replace(NGINX, id="haproxy:haproxy.service")]):
        assert found(then, [later]) == (Agreement.SILENT, [])
    assert found([NGINX], []) == (Agreement.SILENT, [])
    assert found([NGINX, redis()], [NGINX, redis()]) == (Agreement.AGREES, [f"Redis 6379 {NOT_MOVED}"])


def test_a_program_that_quiesce_does_not_know_counts_as_its_label_does():
    """Broken: a restore would be refused because somebody copied a file there; or pass over a database."""
    copying = writer(
        "unaccounted:/usr/bin/cp", {}, required=False, not_accounted_for=OpenFiles("/usr/bin/cp", "", (), 1, False)
    )
    for then, now in ([], [copying]), ([copying], []), ([copying], [copying]):
        assert found(then, now) == (Agreement.SILENT, [])
    kept = replace(copying, required=True)
    assert found([], [kept])[0] is Agreement.MOVED
    assert found([kept], [kept])[0] is Agreement.UNKNOWN


def test_a_server_that_keeps_nothing_is_silent_and_agrees():
    """Broken: every restore of a database with a front end would be refused."""
    judged = judge_server("web", [NGINX], [NGINX], [postgresql()])
    assert (judged.verdict, judged.agrees) == (Agreement.SILENT, True)
    assert str(judged) == "web: keeps nothing that a writer knows of"


def test_an_application_that_is_gone_is_unknown():
    """Broken: a database that was stopped, and started again after the restore, would come up with what nobody compared."""
    assert found([redis(), mariadb()], [mariadb()]) == (
        Agreement.UNKNOWN,
        [f"MariaDB main {NOT_MOVED}", "Redis 6379 is not there now, or is not running"],
    )


def test_an_application_that_is_stopped_goes_by_another_id_and_is_unknown():
    """Broken: a MariaDB that was shut down would be said to be a new one."""
    down = writer("mariadb:mariadb.service", {}, role="down")
    assert found([mariadb()], [down]) == (
        Agreement.UNKNOWN,
        [
            "the position of MariaDB mariadb.service at the checkpoint is not known",
            "MariaDB main is not there now, or is not running",
        ],
    )


def test_an_application_that_is_new_has_moved():
    """Broken: data that came after the checkpoint would be passed over."""
    assert found([], [redis()]) == (Agreement.MOVED, ["Redis 6379 was not there at the checkpoint"])


def test_a_server_that_was_not_asked_then_is_unknown():
    """Broken: a server that joined the group later would agree, or be said to have moved."""
    assert found(None, [NGINX, redis()]) == (Agreement.UNKNOWN, ["the position of Redis 6379 at the checkpoint is not known"])


BEST_FIRST = (Agreement.AGREES, Agreement.SILENT, Agreement.UNKNOWN, Agreement.MOVED)


@pytest.mark.parametrize("worst", BEST_FIRST)
def test_the_verdict_is_the_worst(worst):
    """Broken: a database that moved would hide behind one that did not."""
    verdicts = BEST_FIRST[: BEST_FIRST.index(worst) + 1]
    judged = ServerFindings("db", tuple(Finding(verdict.value, verdict, f"is {verdict.value}") for verdict in verdicts))
    assert judged.verdict is worst
    assert judged.agrees is (worst in (Agreement.AGREES, Agreement.SILENT))
    assert str(judged) == f"db: is {worst.value}"


def test_what_a_program_is_told():
    """Broken: a script could not tell which application of which server moved."""
    judged = judge_server("db", [redis(), mariadb()], [redis(), mariadb("0-1-5502")], [])
    assert describe(
        [judged, ServerFindings.whole("web", Agreement.UNKNOWN, "it cannot be asked"), ServerFindings("proxy", ())]
    ) == [
        {
            "vm": "db",
            "verdict": "moved",
            "findings": [
                {"writer": "redis:6379", "verdict": "agrees", "text": f"Redis 6379 {NOT_MOVED}"},
                {
                    "writer": "mariadb:main",
                    "verdict": "moved",
                    "text": "MariaDB main has moved 1 transaction since the checkpoint (GTID 0-1-5501 -> 0-1-5502)",
                },
            ],
        },
        {"vm": "web", "verdict": "unknown", "findings": [{"writer": None, "verdict": "unknown", "text": "it cannot be asked"}]},
        {"vm": "proxy", "verdict": "silent", "findings": []},
    ]

"""Whatever a server's settings, places, namespaces and run-time changes: the grade that is claimed of it is what a start from
the frozen files shows. Without a guest: real servers, and the agent's code, in a box of this host (lab/box.py)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.servers import labels
from tests.servers.configurations import can_run, mariadb, mariadb_with, postgresql, postgresql_with, redis, redis_with

FEW, MANY = 4, 67
"""Configurations of each kind of server: in the short form, and with --long."""


def holds(servers: list[dict[str, Any]], *, nil_redo: bool = False, debian: int = 13) -> None:
    configuration = {"servers": servers, "nil_redo": nil_redo, "debian": debian}
    result = labels.run(configuration)
    for writer in result["claimed"].get("writers", []):
        print(f"{writer['id']}: {writer['grade']}: {writer.get('reason')}")
    assert labels.lies(configuration, result) == []


WERE_WRONG = {
    "a cluster in a process namespace of its own": [postgresql_with(place="/data2"), postgresql_with(namespaces=["pid"])],
    "a cluster with its socket in a private /tmp": [postgresql_with(private_tmp=True)],
    "a tablespace in memory": [postgresql_with(tablespace="/mem")],
    "its log in memory": [postgresql_with(wal="/mem")],
    "a cluster in a mount that only it sees": [postgresql_with(hidden="/mem")],
    "MariaDB in a mount that only it sees": [mariadb_with(hidden="/mem")],
    "an append-only file in a mount that only its server sees": [redis_with(hidden="/mem", settings=["appendonly yes"])],
    "MariaDB with its socket in a private /tmp": [mariadb_with(private_tmp=True)],
    "Redis with its socket in a private /tmp": [redis_with(private_tmp=True)],
    "two servers with the same port": [redis_with(), redis_with(place="/data2", namespaces=["net"])],
    "an append-only file since it runs": [redis_with(changes=[("config", "set", "appendonly", "yes")])],
    "a directory in memory since it runs": [redis_with(changes=[("config", "set", "dir", "/mem")])],
    "a table in memory": [mariadb_with(table_place="/mem")],
    "no binary log": [mariadb_with(group="shared"), redis_with(group="shared")],
    "a written Aria table": [mariadb_with(engines=["Aria"])],
    "a written Aria table, and another engine": [mariadb_with(engines=["Aria", "MyISAM"])],
    "its binary log in memory": [mariadb_with(places={"log_bin": "/mem"})],
    "commits that do not wait": [mariadb_with(changes=["SET GLOBAL innodb_flush_log_at_trx_commit = 0"])],
}
"""Servers whose checkpoints were called application-consistent, or would be, by who believes names, ports and defaults."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("debian", [12, 13])
@pytest.mark.parametrize("servers", WERE_WRONG.values(), ids=WERE_WRONG)
def test_labels_that_were_wrong(servers: list[dict[str, Any]], debian: int) -> None:
    holds(servers, debian=debian)


KINDS = {"postgresql": postgresql, "mariadb": mariadb, "redis": redis}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_any_configuration(kind: str, request: pytest.FixtureRequest) -> None:
    @settings(max_examples=MANY if request.config.getoption("--long") else FEW, phases=(Phase.reuse, Phase.generate))
    @given(st.lists(KINDS[kind], min_size=1, max_size=2).filter(can_run), st.booleans(), st.sampled_from((12, 13)))
    def claims_no_more_than_is_so(servers: list[dict[str, Any]], nil_redo: bool, debian: int) -> None:
        holds(servers, nil_redo=nil_redo, debian=debian)

    claims_no_more_than_is_so()

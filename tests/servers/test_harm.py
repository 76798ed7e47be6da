"""Whatever fails in the middle of an attempt: within 30 s each server works as it did without us. In a box of this host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.servers import labels
from tests.servers.configurations import mariadb_with, postgresql_with, redis_with

SERVERS = {
    "postgresql": postgresql_with(),
    "mariadb": mariadb_with(),
    "mariadb-locked": mariadb_with(engines=["Aria", "InnoDB"], group="shared"),
    "redis": redis_with(settings=["appendonly yes"]),
    "redis-that-saves": redis_with(program="valkey", settings=["save 3600 1"]),
}


def harmed(server: str, harm: str) -> dict[str, Any]:
    return labels.run({"servers": [SERVERS[server]], "nil_redo": False, "harm": harm})


@pytest.mark.timeout(180)
@pytest.mark.parametrize("harm", ["agent_killed", "both_killed", "agent_stopped"])
@pytest.mark.parametrize("server", SERVERS)
def test_the_agent_ends_while_all_is_held_and_frozen(server: str, harm: str) -> None:
    """Broken: an application would wait for ever, or until somebody restarts it."""
    result = harmed(server, harm)
    assert result == {"lives": {"server0": True}, "works": {"server0": ""}}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", SERVERS)
def test_a_full_disk(server: str) -> None:
    """Broken: what we ask a server to write would end it (PostgreSQL's PANIC)."""
    result = harmed(server, "full_disk")
    assert (result["lives"], result["works"]) == ({"server0": True}, {"server0": ""}), result


@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_is_restarted_under_its_hold(server: str) -> None:
    """Broken: what nobody held any more would be called application-consistent. The files of one that stood still were at
    rest all the same: the new one starts when the control group goes on."""
    result = harmed(server, "server_restarted")
    assert result["works"] == {"server0": ""}
    stood_still = [writer["grade"] for writer in result["claimed"].get("writers", []) if writer["required"]] == ["stands-still"]
    assert stood_still or labels.label_of(result["claimed"]) != "application", result["claimed"]

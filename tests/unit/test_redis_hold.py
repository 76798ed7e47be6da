"""agent/writers/redis.py: the pause of its clients, what changed during it, and that it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent.writers import redis
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.redis import RedisServer
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_redis import Fake, prepared, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


@pytest.fixture
def held(fake: Fake) -> Iterator[RedisServer]:
    writer = prepared()
    writer.hold(deadline_in_ns(2))
    yield writer
    writer.abort()


def test_nothing_unsaved_needs_only_the_pause(fake, held):
    """Broken: writers would go on in the window, or a save be waited for in vain."""
    assert fake.count("CLIENT PAUSE 8500 WRITE") == 1
    assert not fake.count("BGSAVE")
    held.release()
    assert (held.grade, held.outcome, held.let_go) == (Grade.CLEAN, Outcome.STABLE, True)
    assert fake.said[-1] == "CLIENT UNPAUSE"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"run_id": "r2"}, "run_id from r1 to r2"),
        ({"master_replid": "m2"}, "master_replid"),
        ({"master_repl_offset": "140"}, "master_repl_offset from 100 to 140"),
        ({"db3": "keys=1,expires=0,avg_ttl=0"}, "keys from 7 to 6"),
        ({"rdb_changes_since_last_save": "1"}, "was written to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changed_during_the_window_loses_the_grade(change, what, fake, held):
    """Broken: a write that slipped through the hold would not show in the label."""
    fake.info.update(change)
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert what in str(held.reason)
    assert fake.count("CLIENT UNPAUSE") == 1


def test_what_it_says_to_its_replicas_is_no_change(fake, held):
    """Broken: every server with replicas would lose its grade now and then."""
    fake.info.update(connected_slaves="1", master_repl_offset="114")
    held.release()
    assert held.grade is Grade.CLEAN


def test_a_pause_that_ended_by_itself_loses_the_grade_and_is_not_ended_again(fake):
    """Broken: writes of the window would be vouched for, or somebody else's pause be ended."""
    writer = prepared(window_ms=1 - redis.PAUSE_MARGIN_MS)
    writer.hold(deadline_in_ns(2))
    time.sleep(0.002)
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert "ended by itself" in str(writer.reason)
    writer.abort()
    writer = prepared(window_ms=1 - redis.PAUSE_MARGIN_MS)
    writer.hold(deadline_in_ns(2))
    time.sleep(0.002)
    writer.abort()
    assert not fake.count("CLIENT UNPAUSE")


HOUR_NS = 3600 * 10**9


def test_a_clock_set_forward_in_the_window_loses_the_grade(fake, held, monkeypatch):
    """Broken: the server ends its pause by that clock, and writes in the window would be vouched for."""
    monkeypatch.setattr(redis, "wall_clock_ns", lambda: time.time_ns() + HOUR_NS)
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert "set forward" in str(held.reason)


@pytest.mark.parametrize("way", ["release", "abort"])
def test_a_clock_set_back_prolongs_no_pause_beyond_the_window(way, fake, monkeypatch):
    """Broken: after the window by our clock, the server's own clock goes on with the pause for an hour."""
    writer = prepared(window_ms=1 - redis.PAUSE_MARGIN_MS)
    writer.hold(deadline_in_ns(2))
    monkeypatch.setattr(redis, "wall_clock_ns", lambda: time.time_ns() - HOUR_NS)
    time.sleep(0.002)
    getattr(writer, way)()
    assert fake.count("CLIENT UNPAUSE") == 1
    assert writer.let_go
    writer.abort()


def test_a_server_that_says_it_is_not_paused_any_more_loses_the_grade(fake, held):
    """Broken: a clock that was set forward and back, or somebody's UNPAUSE, would go unnoticed."""
    fake.info["paused_actions"] = "none"
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


def test_without_a_dead_man_that_can_end_it_there_is_no_pause(fake):
    """Broken: a clock that is set back would leave the application's writers waiting, with nobody to let them go."""
    writer = prepared()
    writer.guarded = False
    with pytest.raises(WriterError, match="nobody could let it go"):
        writer.hold(deadline_in_ns(2))
    assert not fake.count("CLIENT PAUSE")
    undo = writer.undo()
    assert undo
    assert undo.call == ("redis", 1)


def test_somebody_elses_pause_since_prepare_is_left_alone(fake):
    """Broken: an administrator's pause would end with our window."""
    writer = prepared()
    fake.info.update(paused_actions="all", paused_reason="client_pause")
    with pytest.raises(WriterError, match="somebody else"):
        writer.hold(deadline_in_ns(2))
    assert not fake.count("CLIENT")


def test_writers_go_on_after_an_abort_also_when_the_connection_is_lost(fake, held):
    """Broken: an attempt that failed would leave the application waiting for the rest of the pause."""
    held._client.close()
    held.abort()
    held.abort()
    assert fake.count("CLIENT UNPAUSE") == 1
    assert (held.warnings, held.let_go) == ([], True)


def test_a_pause_that_cannot_be_ended_is_said_and_tried_again(fake, held):
    """Broken: an application that still waits would be reported as let go."""
    fake.errors["CLIENT UNPAUSE"] = "NOPERM no"
    held.abort()
    assert (held.let_go, held.warnings) == (False, ["it could not be let go: NOPERM no"])
    fake.errors.clear()
    held.abort()
    assert (held.let_go, fake.said[-1]) == (True, "CLIENT UNPAUSE")


def test_a_server_that_is_gone_at_release_loses_the_grade(fake, held):
    """Broken: a server killed in the window would be vouched for."""
    held._client._socket.shutdown(socket.SHUT_RDWR)
    held.release()
    assert (held.grade, held.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


def test_an_idle_connection_is_not_relied_on(fake):
    """Broken: a server that closes idle connections could not be held after a long preparation of others."""
    writer = prepared()
    writer._client._socket.shutdown(socket.SHUT_RDWR)
    writer.hold(deadline_in_ns(2))
    assert writer.error is None
    writer.abort()

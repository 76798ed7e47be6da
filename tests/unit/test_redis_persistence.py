"""agent/writers/redis.py: that a start would bring back all data, from a save or from an append-only file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.standstill import within
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_redis import APPEND_ONLY, Fake, prepared, server, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


def test_an_append_only_file_of_the_run_time_alone_is_no_substitute_for_a_save(fake, tmp_path):
    """Broken: `CONFIG SET appendonly yes` would make a checkpoint clean from which a start, which reads the last save, brings
    back nothing or little."""
    fake.configured(tmp_path, "appendonly no", "save 3600 1")
    fake.info.update(APPEND_ONLY, rdb_changes_since_last_save="9")
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "6"
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 2
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


@pytest.mark.parametrize(
    ("lines", "settings", "reason"),
    [
        (["appendonly yes"], {}, "would read an old one"),
        (["include {}/more.config"], {}, "would read an old one"),
        (["dir /srv/other"], {}, "says dir /srv/other"),
        (["dbfilename old.rdb"], {}, "it reads old.rdb"),
        (["dbfilename dump.rdb"], {"dbfilename": "new.rdb"}, "saves to new.rdb"),
    ],
)
def test_what_a_start_would_not_read_is_no_better_than_a_crash(lines, settings, reason, fake, tmp_path):
    """Broken: a server whose settings were changed while it ran would be called clean, and start with other data."""
    (tmp_path / "more.config").write_text("appendonly yes\ninclude own.config\n")
    fake.configured(tmp_path, *(line.format(tmp_path) for line in lines))
    fake.settings.update(settings)
    writer = server()
    writer.identify()
    writer.abort()
    assert writer.grade is Grade.CRASH
    assert reason in str(writer.reason)


def test_another_server_that_answers_is_not_taken_for_this_one(fake):
    """Broken: a server with a network of its own would be called clean by the word of the one whose port it shares."""
    fake.info["process_id"] = "4711"
    writer = server()
    writer.identify()
    writer.abort()
    assert writer.grade is Grade.REFUSED
    assert "answers process 4711, and not this server, process 1" in str(writer.reason)


def test_what_is_unsaved_is_saved_before_and_again_under_the_hold(fake):
    """Broken: the dump in the image would lack what was acknowledged, or all of it be saved while writers wait."""
    fake.info["rdb_changes_since_last_save"] = "4"
    writer = prepared()
    assert fake.count("BGSAVE") == 1
    fake.info["rdb_changes_since_last_save"] = "1"
    writer.hold(deadline_in_ns(2))
    assert fake.said.index("CLIENT PAUSE 8500 WRITE") < len(fake.said) - fake.said[::-1].index("BGSAVE")
    assert fake.count("BGSAVE") == 2
    assert fake.info["rdb_changes_since_last_save"] == "0"
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


def test_a_save_that_was_under_way_is_not_enough(fake):
    """Broken: what was written while it ran would not be in the dump."""
    writer = prepared()
    fake.info.update(rdb_bgsave_in_progress="1", rdb_changes_since_last_save="9")
    fake.later = [{}, {}, {"rdb_bgsave_in_progress": "0", "rdb_changes_since_last_save": "3"}]
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 1
    writer.abort()


def test_a_save_that_began_by_itself_meanwhile_is_waited_for(fake):
    """Broken: an automatic save at the wrong moment would fail the hold, or pass for one of everything."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.busy_saves = 1
    ended = {"rdb_bgsave_in_progress": "0", "rdb_changes_since_last_save": "3"}
    fake.later = [{}, {}, {}, {"rdb_bgsave_in_progress": "1"}, ended]
    writer.hold(deadline_in_ns(2))
    assert fake.count("BGSAVE") == 2
    assert (writer.error, fake.info["rdb_changes_since_last_save"]) == (None, "0")
    writer.abort()


def test_a_save_that_fails_is_said_and_writers_go_on(fake):
    """Broken: an old dump would be vouched for, or writers wait for nothing."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_last_bgsave_status": "err"}]
    with pytest.raises(WriterError, match="save failed"):
        writer.hold(deadline_in_ns(2))
    assert (writer.grade, fake.said[-1]) == (Grade.CRASH, "CLIENT UNPAUSE")


def test_a_save_that_takes_too_long_is_given_up(fake):
    """Broken: writers would wait beyond the window."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_bgsave_in_progress": "1"}]
    with within(1.3), pytest.raises(WriterError, match="BGSAVE") as raised:
        writer.hold(deadline_in_ns(0.3))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert (writer.grade, fake.said[-1]) == (Grade.CRASH, "CLIENT UNPAUSE")


def test_a_server_that_answers_no_more_while_it_saves_is_said_to_save(fake, monkeypatch):
    """Broken: the user would read of an answer that did not come, and not of the save that took too long."""
    writer = prepared()
    fake.info["rdb_changes_since_last_save"] = "9"
    fake.saves = [{"rdb_bgsave_in_progress": "1"}]
    answer = fake.answer

    def stalling(words: list[str], known: list[str]) -> bytes:
        stalls = words[0] == "INFO" and fake.info["rdb_bgsave_in_progress"] == "1"
        return b"" if stalls else answer(words, known)

    monkeypatch.setattr(fake, "answer", stalling)
    with pytest.raises(WriterError, match="BGSAVE") as raised:
        writer.hold(deadline_in_ns(0.3))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert fake.said[-1] == "CLIENT UNPAUSE"


@pytest.mark.parametrize(
    "unfinished",
    [
        {"aof_buffer_length": "7"},
        {"aof_pending_bio_fsync": "1"},
        {"aof_rewrite_in_progress": "1"},
        {"aof_rewrite_scheduled": "1"},
        {"aof_last_write_status": "err"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_an_append_only_file_is_held_when_all_of_it_is_written(unfinished, fake, tmp_path):
    """Broken: the file that is loaded at the start would lack what was acknowledged."""
    fake.configured(tmp_path, "appendonly yes")
    fake.info.update(APPEND_ONLY, rdb_changes_since_last_save="9")
    writer = prepared()
    fake.info.update(unfinished)
    fake.later = [{}, {}, {}, {name: APPEND_ONLY[name] for name in unfinished}]
    writer.hold(deadline_in_ns(2))
    assert not fake.later
    assert not fake.count("BGSAVE")
    fake.info["rdb_changes_since_last_save"] = "0"  # an automatic save ended
    writer.release()
    assert writer.grade is Grade.CLEAN
    writer.abort()


def test_a_rewrite_that_does_not_end_makes_nobody_wait(fake):
    """Broken: writers would wait for the rewrite of the whole file."""
    fake.info.update(APPEND_ONLY, aof_rewrite_in_progress="1")
    writer = server()
    writer.prepare(deadline_in_ns(0.5), 8000)
    assert (writer.outcome, "rewriting" in str(writer.reason)) == (Outcome.TIMEOUT, True)
    writer.abort()
    assert not fake.count("CLIENT")


@pytest.mark.parametrize("old", [False, True])
def test_a_server_that_keeps_nothing_is_not_held(old, fake, tmp_path):
    """Broken: a mere cache would be made to wait, or an old dump that it starts with be kept quiet."""
    fake.settings["save"] = ""
    if old:
        (tmp_path / "dump.rdb").touch()
    writer = prepared()
    writer.hold(deadline_in_ns(2))
    writer.release()
    assert writer.grade is Grade.CLEAN
    assert ("old dump.rdb" if old else "starts empty") in str(writer.reason)
    assert not fake.count("CLIENT")
    writer.abort()

"""catalog/journal.py"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from quiesce.catalog import journal as journals
from quiesce.catalog.journal import Journal
from quiesce.catalog.store import Catalog, operations_table, steps_table


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


def steps(catalog: Catalog, journal: Journal) -> list[tuple[int, str, dict, bool]]:
    with catalog.transaction() as connection:
        rows = connection.execute(
            sa.select(steps_table).where(steps_table.c.operation == journal.id).order_by(steps_table.c.number)
        )
        return [(row.number, row.what, json.loads(row.details), row.done) for row in rows]


def test_a_step_is_written_before_it_is_done(catalog):
    """Broken: a process killed within the step would leave disks changed and no trace of it."""
    journal = Journal(catalog, "host1", "uuid-1", "checkpoint")
    with journal.step("make-overlay", path="/images/a"):
        assert steps(catalog, journal) == [(0, "make-overlay", {"path": "/images/a"}, False)]
    assert steps(catalog, journal) == [(0, "make-overlay", {"path": "/images/a"}, True)]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_failed_stays_intended(failure, catalog):
    """Broken: what a failed step left behind would be taken for done and never mended."""
    journal = Journal(catalog, "host1", "uuid-1", "delete")
    with journal.step("first"):
        pass
    with pytest.raises(failure), journal.step("second"):
        raise failure
    with journal.step("third"):
        pass
    assert [(number, what, done) for number, what, _, done in steps(catalog, journal)] == [
        (0, "first", True),
        (1, "second", False),
        (2, "third", True),
    ]


def test_a_killed_process_leaves_its_intention(catalog, tmp_path):
    """Broken: after kill -9 nobody would know what was under way."""
    child = os.fork()
    if child == 0:
        try:
            own = Catalog(f"sqlite:///{tmp_path}/catalog.db")
            with Journal(own, "host1", "uuid-1", "restore").step("define", checkpoint="a"):
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    with catalog.transaction() as connection:
        (row,) = connection.execute(sa.select(operations_table, steps_table).join(steps_table))
    assert (row.verb, row.finished, row.what, row.done) == ("restore", None, "define", False)


def test_two_operations_keep_apart(catalog):
    """Broken: finishing one operation would finish, or mark done, another one's steps."""
    first, second = (Journal(catalog, "host1", "uuid-1", verb) for verb in ("checkpoint", "delete"))
    number = first.intend("switch", overlays={"vda": "/images/a"})
    assert second.intend("merge") == number == 0
    first.done(number)
    first.finish("undone")
    assert steps(catalog, first) == [(0, "switch", {"overlays": {"vda": "/images/a"}}, True)]
    assert steps(catalog, second) == [(0, "merge", {}, False)]
    with catalog.transaction() as connection:
        rows = {row.id: row for row in connection.execute(sa.select(operations_table))}
    assert (rows[first.id].outcome, rows[first.id].verb) == ("undone", "checkpoint")
    assert rows[first.id].finished >= rows[first.id].started
    assert (rows[second.id].outcome, rows[second.id].finished) == (None, None)


def test_an_interrupted_operation_tells_what_was_under_way(catalog):
    """Broken: what a killed operation had done would be done again, or what it had not would be taken for done."""
    journal = Journal(catalog, "host1", "uuid-1", "delete")
    with journal.step("merge", top="b", base="a"):
        pass
    journal.intend("merge", top="c", base="b")
    journal.intend("forget", checkpoint="x")
    (found,) = journals.interrupted(catalog, "host1", "uuid-1")
    assert (found.id, found.verb) == (journal.id, "delete")
    assert found.details("merge") == [{"top": "b", "base": "a"}, {"top": "c", "base": "b"}]
    assert found.unfinished("merge") == [{"top": "c", "base": "b"}]
    assert found.unfinished("forget") == [{"checkpoint": "x"}]
    assert found.unfinished("define") == found.details("define") == []


def test_interrupted_operations_are_those_of_this_vm_that_have_not_ended_oldest_first(catalog):
    """Broken: another VM's merge would be cancelled, or what came later undone before what came earlier."""
    first, second, ended = (Journal(catalog, "host1", "uuid-1", verb) for verb in ("restore", "checkpoint", "rename"))
    Journal(catalog, "host1", "uuid-2", "delete")
    Journal(catalog, "host2", "uuid-1", "delete")
    ended.finish("done")
    assert [found.id for found in journals.interrupted(catalog, "host1", "uuid-1")] == [first.id, second.id]
    journals.finish(catalog, first.id, "recovered: was undone")
    assert [found.id for found in journals.interrupted(catalog, "host1", "uuid-1")] == [second.id]

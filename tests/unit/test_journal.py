"""catalog/journal.py and catalog/steps.py"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import journal as journals
from quiesce.catalog import schema
from quiesce.catalog.database import from_column, to_column
from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import BY_NAME, Define, Forget, MakeOverlay, Merge, Stop, Switch
from quiesce.catalog.store import Catalog
from quiesce.model.errors import NoSpaceError
from quiesce.model.keys import VmKey
from tests.samples import KEY
from tests.strategies import NASTY, of

OVERLAY = MakeOverlay("vda", "/images/a", "/images/base")
WRITTEN = {"target": "vda", "path": "/images/a", "backing": "/images/base", "backing_format": "qcow2"}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


def steps(catalog: Catalog, journal: Journal) -> list[tuple[int, str, dict, bool]]:
    with catalog.database.transaction() as connection:
        query = sa.select(schema.steps).where(schema.steps.c.operation == journal.id)
        rows = connection.execute(query.order_by(schema.steps.c.number))
        return [(row.number, row.what, json.loads(row.details), row.done) for row in rows]


def merge(top: str, base: str) -> Merge:
    return Merge(top, base, "vda", branches=(), checkpoints=())


@given(st.sampled_from(sorted(BY_NAME)), st.data())
def test_every_step_comes_back_as_it_was(name, data):
    """Broken: what a killed operation left would be mended by something else than was written, or not at all."""
    step = data.draw(of(BY_NAME[name], NASTY))
    assert type(step).__name__ == name
    assert from_column(BY_NAME[name], to_column(step), "it") == step


def test_a_step_is_written_before_it_is_done(catalog):
    """Broken: a process killed within the step would leave disks changed and no trace of it."""
    journal = Journal(catalog, KEY, "checkpoint")
    with journal.step(OVERLAY):
        assert steps(catalog, journal) == [(0, "MakeOverlay", WRITTEN, False)]
    assert steps(catalog, journal) == [(0, "MakeOverlay", WRITTEN, True)]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_failed_stays_intended(failure, catalog):
    """Broken: what a failed step left behind would be taken for done and never mended."""
    journal = Journal(catalog, KEY, "delete")
    with journal.step(Stop()):
        pass
    with pytest.raises(failure), journal.step(OVERLAY):
        raise failure
    with journal.step(Define()):
        pass
    assert [(number, what, done) for number, what, _, done in steps(catalog, journal)] == [
        (0, "Stop", True),
        (1, "MakeOverlay", False),
        (2, "Define", True),
    ]


def test_a_killed_process_leaves_its_intention(catalog, tmp_path):
    """Broken: after kill -9 nobody would know what was under way."""
    child = os.fork()
    if child == 0:
        try:
            own = Catalog(f"sqlite:///{tmp_path}/catalog.db")
            with Journal(own, KEY, "restore").step(OVERLAY):
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    with catalog.database.transaction() as connection:
        (row,) = connection.execute(sa.select(schema.operations, schema.steps).join(schema.steps))
    assert (row.verb, row.finished, row.what, row.done) == ("restore", None, "MakeOverlay", False)


def test_two_operations_keep_apart(catalog):
    """Broken: finishing one operation would finish, or mark done, another one's steps."""
    first, second = (Journal(catalog, KEY, verb) for verb in ("checkpoint", "delete"))
    number = first.intend(Switch({"vda": "/images/a"}))
    assert second.intend(Stop()) == number == 0
    first.done(number)
    first.finish("undone")
    assert steps(catalog, first) == [(0, "Switch", {"overlays": {"vda": "/images/a"}}, True)]
    assert steps(catalog, second) == [(0, "Stop", {}, False)]
    with catalog.database.transaction() as connection:
        rows = {row.id: row for row in connection.execute(sa.select(schema.operations))}
    assert (rows[first.id].outcome, rows[first.id].verb) == ("undone", "checkpoint")
    assert rows[first.id].finished >= rows[first.id].started
    assert (rows[second.id].outcome, rows[second.id].finished) == (None, None)


def test_an_interrupted_operation_tells_what_was_under_way(catalog):
    """Broken: what a killed operation had done would be done again, or what it had not would be taken for done."""
    journal = Journal(catalog, KEY, "delete")
    with journal.step(merge("b", "a")):
        pass
    journal.intend(merge("c", "b"))
    journal.intend(Forget("x", ("y",)))
    (found,) = journals.interrupted(catalog, KEY)
    assert (found.id, found.verb, found.unknown) == (journal.id, "delete", ())
    assert found.steps == ((merge("b", "a"), True), (merge("c", "b"), False), (Forget("x", ("y",)), False))
    assert found.of(Merge) == [merge("b", "a"), merge("c", "b")]
    assert found.unfinished(Merge) == [merge("c", "b")]
    assert found.unfinished(Forget) == [Forget("x", ("y",))]
    assert found.unfinished(Define) == found.of(Define) == []
    assert journal.read() == found


@pytest.mark.parametrize(
    ("what", "details"),
    [
        ("Teleport", "{}"),
        ("make-overlay", json.dumps(WRITTEN)),
        ("MakeOverlay", json.dumps({**WRITTEN, "tomorrow": 1})),
        ("MakeOverlay", json.dumps({"target": "vda"})),
        ("MakeOverlay", json.dumps({**WRITTEN, "path": None})),
        ("MakeOverlay", "{"),
        ("MakeOverlay", "[]"),
    ],
    ids=["name", "old name", "a field more", "fields less", "another type", "no JSON", "no object"],
)
def test_a_step_that_this_quiesce_does_not_know_is_told_and_not_left_out(what, details, catalog):
    """Broken: an operation of a newer quiesce would be mended by halves, and closed: nobody would mend the rest."""
    journal = Journal(catalog, KEY, "checkpoint")
    journal.intend(Stop())
    strange = journal.intend(OVERLAY)
    journal.intend(Define())
    with catalog.database.transaction() as connection:
        row = sa.update(schema.steps).where(schema.steps.c.number == strange)
        connection.execute(row.values(what=what, details=details))
    (found,) = journals.interrupted(catalog, KEY)
    assert found.unknown == (what,)
    assert found.steps == ((Stop(), False), (Define(), False))


def test_interrupted_operations_are_those_of_this_vm_that_have_not_ended_oldest_first(catalog):
    """Broken: another VM's merge would be cancelled, or what came later undone before what came earlier."""
    first, second, ended = (Journal(catalog, KEY, verb) for verb in ("restore", "checkpoint", "rename"))
    Journal(catalog, VmKey("host1", "uuid-2"), "delete")
    Journal(catalog, VmKey("host2", "uuid-1"), "delete")
    ended.finish("done")
    assert [found.id for found in journals.interrupted(catalog, KEY)] == [first.id, second.id]
    journals.finish(catalog, first.id, "recovered: was undone")
    assert [found.id for found in journals.interrupted(catalog, KEY)] == [second.id]


def test_an_operation_that_ended_before_it_began_is_none(catalog, monkeypatch):
    """Broken: doctor would call an operation interrupted that has changed nothing; or its megabyte would stay for good; or
    that of another process, which is about to begin, be removed."""

    def full(_: Journal, row: dict[str, str]) -> None:
        reserve(_, row)
        raise NoSpaceError("full")

    def verbs() -> list[str]:
        with catalog.database.transaction() as connection:
            return sorted(connection.scalars(sa.select(schema.operations.c.verb)))

    reserve = Journal._reserve
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_reserve", full)
        with pytest.raises(NoSpaceError):
            Journal(catalog, KEY, "delete")
    assert journals.interrupted(catalog, KEY) == []
    Journal(catalog, KEY, "rename")
    assert verbs() == ["rename", "reserve"]
    monkeypatch.setattr(journals, "_ABANDONED_AFTER", timedelta(0))
    Journal(catalog, KEY, "restore")
    assert verbs() == ["rename", "restore"]

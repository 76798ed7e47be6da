"""What is shown on a terminal: every grade and state has its words and a colour."""

from __future__ import annotations

import pytest
from rich.console import Console

from quiesce.cli import render
from quiesce.model.grades import Consistency, Grade
from quiesce.model.reports import Outcome
from tests.unit.reports import writer


@pytest.mark.parametrize("grade", Grade)
def test_every_grade_is_shown(grade: Grade) -> None:
    """Broken: a checkpoint would be taken, and the command end in a traceback."""
    assert f"]{grade.value}[/]" in render.grade(writer("postgresql:17/main", {}, grade=grade))


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_shown(outcome: Outcome) -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render.writers_table((writer("postgresql:17/main", {}, outcome=outcome),)))
    assert outcome.value in shown.get()


@pytest.mark.parametrize("consistency", Consistency)
def test_every_label_is_shown(consistency: Consistency) -> None:
    assert consistency.value in render.label(consistency)

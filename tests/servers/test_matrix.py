"""Each load and setting in the tables of docs/writers.md comes to what they say."""

from __future__ import annotations

import pytest

from tests.servers.matrix import COLUMNS, ROWS, Row, documented

MANY = 10
"""Attempts at each with --long."""


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("row", "column"),
    [pytest.param(row, column, id=f"{column}-{row.name}") for row in ROWS for column in COLUMNS[row.kind]],
)
def test_it_is_as_documented(row: Row, column: str) -> None:
    assert [row.outcome(column) for _ in range(MANY)] == [documented(row, column)] * MANY

"""Each load and setting in the tables of docs/writers.md comes to what they say."""

from __future__ import annotations

import pytest

from tests.servers.matrix import DEBIANS, ROWS, Row, documented

MANY = 10
"""Attempts at each with --long."""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("debian", DEBIANS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.name}")
def test_it_is_as_documented(row: Row, debian: int) -> None:
    assert [row.outcome(debian) for _ in range(MANY)] == [documented(row, debian)] * MANY

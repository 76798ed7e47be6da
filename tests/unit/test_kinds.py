"""The table of docs/storage.md is the one of the tests' kinds of disks."""

from __future__ import annotations

from collections import Counter

from tests.disks.kinds import DOCUMENT, KINDS, with_table


def test_the_documentation_has_the_table_of_the_tests():
    """Broken: an administrator would read of a disk that it works, and no test would know. `python -m tests.disks.kinds` writes
    the table."""
    document = DOCUMENT.read_text()
    assert with_table(document) == document


def test_every_kind_has_a_name_of_its_own_and_a_refusal_its_way_out():
    """Broken: a row would not be tried, or would leave the reader without a way out."""
    assert [name for name, number in Counter(kind.name for kind in KINDS).items() if number > 1] == []
    assert [kind.name for kind in KINDS if kind.refused and not kind.way_out] == []

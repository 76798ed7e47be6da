"""model/names.py"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.model.errors import UsageError
from quiesce.model.names import (
    MAX_NAME,
    CheckpointReference,
    check_checkpoint_name,
    default_checkpoint_name,
    parse_reference,
)


@given(st.text(min_size=1).filter(lambda vm: "@" not in vm), st.text(min_size=1))
def test_a_reference_is_divided_at_the_first_at(vm, checkpoint):
    """Broken: a checkpoint with an @ in its name could not be named, or another one would be."""
    assert parse_reference(f"{vm}@{checkpoint}") == CheckpointReference(vm, checkpoint)


@pytest.mark.parametrize("text", ["", "web1", "@", "web1@", "@before", "web1/before"])
def test_half_a_reference_is_a_usage_error_with_an_example(text):
    """Broken: `quiesce delete web1` could mean something."""
    with pytest.raises(UsageError) as refusal:
        parse_reference(text)
    assert "VM@CHECKPOINT" in refusal.value.hint


@pytest.mark.parametrize("name", ["a", "before upgrade", "x" * MAX_NAME, "größer", "中文", "a@b", "--odd"])
def test_ordinary_names_are_taken_as_they_are(name):
    """Broken: a user's name would be refused or changed."""
    assert check_checkpoint_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "\t", " a", "a ", "x" * (MAX_NAME + 1), "a\nb", "a\x1b[31m", "a\u202eb", "a\x00b", "a\u00a0b", "\ud800", "a\x7f"],
    ids=ascii,
)
def test_names_that_would_mislead_are_refused(name):
    """Broken: a name could not be typed again, or would disturb the terminal that shows it."""
    with pytest.raises(UsageError):
        check_checkpoint_name(name)


@given(st.datetimes(timezones=st.just(UTC)))
def test_the_default_name_is_allowed_and_needs_no_quotes(now):
    """Broken: a checkpoint without --name would fail, or its name need quoting."""
    name = check_checkpoint_name(default_checkpoint_name(now))
    assert not set(name) & set(" :@/'\"\\")


def test_default_names_sort_by_time():
    """Broken: a list by name would not be in order."""
    assert default_checkpoint_name(datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)) == "2026-02-03T04.05.06Z"

"""codec.py"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog.steps import BY_NAME
from quiesce.codec import MAX_INT, Bounds, CodecError, decode, encode
from quiesce.model.groups import Group
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.settings import Settings
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint
from quiesce.wire import messages
from tests.strategies import JSON, NASTY, almost, examples, of

KEPT = [Checkpoint, Untouched, Group, Settings, *BY_NAME.values()]
CLASSES = [*{*messages.ARGUMENTS.values(), *messages.RESULTS.values()}, messages.Error, WriterReport, Filesystem, *KEPT]
CLASSES.sort(key=lambda cls: cls.__name__)
LONG = "x" * 100_000
TIGHT = Bounds(3, 2, str.upper)


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Inner:
    text: str


@dataclasses.dataclass(frozen=True)
class Sample:
    text: str
    number: int
    flag: bool
    colour: Colour
    maybe: Optional[int] = None  # noqa: UP045 - what agents on Python 3.9 have
    names: tuple[str, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    inner: Inner | None = None


GOOD: dict[str, Any] = {"text": "t", "number": 1, "flag": True, "colour": "red"}


@given(st.sampled_from(CLASSES), st.data())
def test_our_own_text_comes_back_unchanged(cls, data):
    """Broken: a path with an unusual character would come out of the catalog as another path, and its image be lost."""
    value = data.draw(of(cls, NASTY))
    assert decode(cls, encode(value)) == value


def test_our_own_text_may_be_long_and_much():
    """Broken: one long warning, or many files, would make a VM's whole tree unreadable."""
    value = Sample(LONG, 1, True, Colour.RED, names=("a",) * 10_000, counts={str(number): number for number in range(10_000)})
    assert decode(Sample, encode(value)) == value


@given(st.sampled_from(CLASSES), st.data())
@examples(150)
def test_what_does_not_fit_is_a_codec_error(cls, data):
    """Broken: a damaged catalog or manifest would end in a traceback somewhere else, or make values of the wrong types."""
    value = data.draw(JSON | of(cls, NASTY).map(encode).flatmap(almost))
    try:
        found = decode(cls, value)
    except CodecError:
        return
    assert decode(cls, encode(found)) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 1),
        ("text", None),
        ("text", ["secret"]),
        ("number", "secret"),
        ("number", 1.0),
        ("number", True),
        ("number", None),
        ("number", MAX_INT + 1),
        ("number", -MAX_INT - 1),
        ("flag", 1),
        ("flag", "secret"),
        ("flag", None),
        ("colour", "secret"),
        ("colour", ["red"]),
        ("colour", {}),
        ("colour", None),
        ("maybe", "secret"),
        ("names", "secret"),
        ("names", {"secret": 1}),
        ("names", ["a", 1]),
        ("counts", ["secret"]),
        ("counts", {"a": "secret"}),
        ("inner", "secret"),
        ("inner", {}),
        ("inner", {"text": "a", "secret": 1}),
        ("secret", 1),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("bounds", [None, Bounds(4096, 4096, str)], ids=["our own", "a stranger's"])
def test_a_field_that_does_not_fit_is_named_and_not_quoted(bounds, field, value):
    """Broken: a wrong type would go on into the program, or what a stranger says into our error message."""
    with pytest.raises(CodecError) as refusal:
        decode(Sample, {**GOOD, field: value}, bounds)
    assert "secret" not in str(refusal.value)
    assert str(refusal.value).startswith("Sample" if field == "secret" else f"Sample.{field}")


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_missing_field_is_named(field):
    """Broken: an incomplete message would become a message."""
    with pytest.raises(CodecError, match=f"Sample.{field}: missing"):
        decode(Sample, {name: value for name, value in GOOD.items() if name != field})


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_what_is_no_object_is_refused(value):
    """Broken: a value that is no object at all would end in a traceback."""
    with pytest.raises(CodecError, match="Sample: not an object"):
        decode(Sample, value)


def test_bounds_hold_everywhere_and_are_allowed_themselves():
    """Broken: somebody could send more than is promised to be read, or less would be refused."""
    short = {
        **GOOD,
        "text": "abc",
        "number": MAX_INT,
        "names": ["a", "abc"],
        "counts": {"abc": 1, "b": 2},
        "inner": {"text": "abc"},
    }
    assert decode(Sample, short, TIGHT) == Sample(
        "ABC", MAX_INT, True, Colour.RED, names=("A", "ABC"), counts={"ABC": 1, "B": 2}, inner=Inner("ABC")
    )
    for change in (
        {"text": "abcd"},
        {"names": ["abcd"]},
        {"names": ["a", "b", "c"]},
        {"counts": {"abcd": 1}},
        {"counts": {"a": 1, "b": 2, "c": 3}},
        {"inner": {"text": "abcd"}},
    ):
        with pytest.raises(CodecError, match="at most"):
            decode(Sample, {**short, **change}, TIGHT)


def test_none_is_left_out_and_may_be_sent():
    """Broken: an optional field without a value could not be told from a missing one, or would be refused."""
    assert "maybe" not in encode(decode(Sample, GOOD))
    assert decode(Sample, {**GOOD, "maybe": None, "inner": None}) == decode(Sample, GOOD)

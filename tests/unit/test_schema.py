"""wire/schema.py: the bounds of the wire. What fits a dataclass is in test_codec.py."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.codec import MAX_INT
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.tree import Checkpoint
from quiesce.wire import messages
from quiesce.wire.framing import ProtocolError
from quiesce.wire.schema import MAX_ITEMS, MAX_STRING, from_wire, printable, to_wire
from tests.strategies import JSON, NASTY, PRINTABLE, almost, examples, of

CLASSES = [*{*messages.ARGUMENTS.values(), *messages.RESULTS.values()}, messages.Error, WriterReport, Filesystem, Checkpoint]
CLASSES.sort(key=lambda cls: cls.__name__)


@dataclasses.dataclass(frozen=True)
class Sample:
    text: str = ""
    number: int = 0
    maybe: int | None = None
    names: tuple[str, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@given(st.sampled_from(CLASSES), st.data())
def test_every_message_survives_the_wire(cls, data):
    """Broken: something a guest reports, or a catalog holds, would come back as something else."""
    message = data.draw(of(cls))
    assert from_wire(cls, to_wire(message)) == message


@given(st.sampled_from(CLASSES), st.data())
@examples(150)
def test_what_does_not_fit_is_a_protocol_error(cls, data):
    """Broken: a stranger's JSON could end the reader with any exception, or make a message of the wrong types."""
    value = data.draw(JSON | of(cls, NASTY).map(to_wire).flatmap(almost))
    try:
        message = from_wire(cls, value)
    except ProtocolError:
        return
    assert from_wire(cls, to_wire(message)) == message


def _strings(value: Any):
    if isinstance(value, str) and not isinstance(value, Enum):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _strings(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _strings(getattr(value, field.name))


@given(st.sampled_from([WriterReport, Filesystem, messages.HelloReply, messages.Error, messages.Status]), st.data())
def test_nothing_a_guest_says_can_control_a_terminal(cls, data):
    """Broken: a guest could move the administrator's cursor, hide text or fake a line of our output."""
    message = from_wire(cls, to_wire(data.draw(of(cls, NASTY))))
    assert all(text.isprintable() for text in _strings(message))


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\t", "\x00", "\x07", "\x1b", "\x7f", "\x85", "\x9b", "\u00ad", "\u200b", "\u202e", "\u2066",
                  "\u2028", "\u2029", "\ufeff", "\ud800", "\ue000"]
)  # fmt: skip
def test_each_dangerous_character_is_replaced(character):
    """Broken: this very character would reach the terminal."""
    assert printable(f"a{character}b c") == "a\ufffdb c"


@given(PRINTABLE)
def test_ordinary_text_is_left_alone(text):
    """Broken: names in other scripts would come out mutilated."""
    assert printable(text + " é中") == text + " é中"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "x" * (MAX_STRING + 1)),
        ("names", ["x"] * (MAX_ITEMS + 1)),
        ("counts", {"x" * (MAX_STRING + 1): 1}),
        ("counts", {str(number): 1 for number in range(MAX_ITEMS + 1)}),
        ("text", ["secret"]),
        ("secret", 1),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_does_not_fit_is_named_and_not_quoted(field, value):
    """Broken: a stranger could send more than is promised to be read, or have his text in our error message."""
    with pytest.raises(ProtocolError) as refusal:
        from_wire(Sample, {field: value})
    assert "secret" not in str(refusal.value)
    assert str(refusal.value).startswith("Sample" if field == "secret" else f"Sample.{field}")


def test_the_limits_themselves_are_allowed():
    """Broken: an honest message of just the allowed size would be refused."""
    counts = {str(number): 1 for number in range(MAX_ITEMS)}
    value = {"text": "x" * MAX_STRING, "number": MAX_INT, "names": ["y"] * MAX_ITEMS, "counts": counts, "maybe": -MAX_INT}
    assert to_wire(from_wire(Sample, value)) == value

"""wire/framing.py"""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.wire import framing
from quiesce.wire.framing import MAX_DEPTH, MAX_LINE, LineSplitter, ProtocolError, from_line, to_line
from tests.strategies import JSON, PRINTABLE

_MESSAGES = st.dictionaries(
    PRINTABLE,
    st.none() | st.booleans() | st.integers() | PRINTABLE | st.lists(PRINTABLE | st.integers(), max_size=5),
    max_size=5,
)


@given(_MESSAGES)
def test_what_is_encoded_is_decoded_again(message):
    """Broken: host and agent would not understand each other."""
    assert from_line(to_line(message).rstrip(b"\n")) == message


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text(), max_size=3), max_size=4))
def test_a_message_is_one_line_of_printable_ascii(message):
    """Broken: a message could end another one's line, or carry a terminal's control bytes."""
    line = to_line(message)
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"\xff\xfe{}")
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":"\\ud800"}')
def test_arbitrary_bytes_are_an_object_or_a_protocol_error(line):
    """Broken: a stranger's bytes could end the reader with an exception nobody expects."""
    with contextlib.suppress(ProtocolError):
        assert isinstance(from_line(line), dict)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":1.5}',
        b'{"a":1e2}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"{'a':1}",
        b'{"a":1}{"b":2}',
        b'{"a":1',
        b'{"a":"\xff"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"' + b"x" * MAX_LINE + b'"}',
    ],
    ids=lambda line: repr(line[:20]),
)
def test_what_is_no_message_is_refused(line):
    """Broken: the two ends could read different things out of one line (duplicate keys, NaN), or one end too much."""
    with pytest.raises(ProtocolError) as refusal:
        from_line(line)
    assert len(str(refusal.value)) < 100  # says what is wrong without quoting it


def _nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting_is_accepted_to_its_bound_and_not_beyond():
    """Broken: the parser's recursion would be in the hands of the sender."""
    from_line(_nested(MAX_DEPTH))
    with pytest.raises(ProtocolError, match="nested"):
        from_line(_nested(MAX_DEPTH + 1))
    with pytest.raises(ProtocolError, match="nested"):
        from_line(b"[" * MAX_LINE)


@pytest.mark.parametrize("text", [b"]" * 100, b'\\"' + b"]" * 100, b"\\\\", b'\\\\\\"]]]]'])
def test_brackets_within_strings_do_not_count(text):
    """Broken: closing brackets in a string would hide real nesting behind them from the bound."""
    with pytest.raises(ProtocolError, match="nested"):
        from_line(b'{"a":"' + text + b'","b":' + b"[" * 50 + b"]" * 50 + b"}")
    assert from_line(b'{"a":"' + b"[" * 100 + text + b'","b":[]}')["b"] == []


def test_a_message_over_the_limit_is_not_sent():
    """Broken: the other end would drop the line, and the sender would wait for an answer that never comes."""
    with pytest.raises(ProtocolError, match="longer than the limit"):
        to_line({"a": "x" * MAX_LINE})
    room = MAX_LINE - len('{"a":""}')
    assert from_line(to_line({"a": "x" * room}).rstrip(b"\n"))["a"] == "x" * room


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"  \n", b"123456789\n", b"12345678\n"]), max_size=20))
def test_lines_do_not_depend_on_how_the_stream_was_cut(pieces):
    """Broken: a line cut in two by the transport would be lost, or an over-long one taken for a message."""
    limit = 8
    expected = [
        None if len(line) > limit else line for line in b"".join(pieces).split(b"\n")[:-1] if len(line) > limit or line.strip()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "MAX_LINE", limit)
        splitter = LineSplitter()
        assert [line for piece in pieces for line in splitter.feed(piece)] == expected


def test_an_overlong_line_is_dropped_in_bounded_memory_and_the_next_is_read():
    """Broken: a sender without newlines would fill our memory, or throw us out of step for good."""
    splitter = LineSplitter()
    for _ in range(3 * MAX_LINE // 65536):
        assert list(splitter.feed(b"x" * 65536)) == []
        assert len(splitter._buffer) <= MAX_LINE
    assert list(splitter.feed(b"the end\n{}\n")) == [None, b"{}"]


def test_a_line_of_exactly_the_limit_is_read():
    """Broken: the largest message one side may send would be refused by the other."""
    assert list(LineSplitter().feed(b"x" * MAX_LINE + b"\n")) == [b"x" * MAX_LINE]


def test_reset_forgets_what_was_half_read():
    """Broken: the next conversation would begin with the rest of the last one's line."""
    splitter = LineSplitter()
    list(splitter.feed(b"half"))
    splitter.reset()
    assert list(splitter.feed(b"whole\n")) == [b"whole"]
    list(splitter.feed(b"x" * (MAX_LINE + 1)))
    splitter.reset()
    assert list(splitter.feed(b"whole\n")) == [b"whole"]


def test_hostile_quotes_cost_no_time() -> None:
    """A guest that sends a line of quotes and backslashes would keep the host busy for minutes."""
    with within(2), pytest.raises(ProtocolError):
        from_line(b'\\"' * 100_000)

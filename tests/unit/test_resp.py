"""agent/writers/resp.py: what arrives at a real Unix socket, in whatever pieces, and what never does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent.writers import resp
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.resp import Client, RespError
from tests.unit.fake_redis import Fake, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


def _client(fake: Fake) -> Client:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(fake.path)
    return Client(connection)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"+OK\r\n", "OK"),
        (b":42\r\n", 42),
        (b"$5\r\na\r\nb\n\r\n", "a\r\nb\n"),
        (b"$0\r\n\r\n", ""),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*3\r\n$1\r\na\r\n*1\r\n:1\r\n$-1\r\n", ["a", [1], None]),
        (b"$1\r\n\xff\r\n", "\udcff"),
    ],
)
def test_every_kind_of_answer_is_understood_however_it_arrives(sent, expected, fake, monkeypatch):
    """Broken: an answer would be taken for another's, or wait for what never comes."""
    monkeypatch.setattr(fake, "answer", lambda *_: sent)
    client = _client(fake)
    assert client.call("X", deadline_ns=deadline_in_ns(2)) == expected
    monkeypatch.setattr(socket.socket, "recv", lambda self, _size, _recv=socket.socket.recv: _recv(self, 1))
    assert client.call("X", deadline_ns=deadline_in_ns(2)) == expected
    client.close()


def test_an_error_leaves_the_connection_usable(fake):
    """Broken: one refused command would end the conversation."""
    fake.errors["BAD"] = "NOPERM this user has no permissions"
    client = _client(fake)
    with pytest.raises(RespError) as raised:
        client.call("BAD", deadline_ns=deadline_in_ns(2))
    assert raised.value.code == "NOPERM"
    assert client.call("PING", deadline_ns=deadline_in_ns(2)) == "OK"
    client.close()


@pytest.mark.parametrize("sent", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"\r\n", b"$99999999999\r\n", b"*99999999999\r\n", b"~0\r\n"])
def test_what_is_no_redis_is_no_answer(sent, fake, monkeypatch):
    """Broken: whatever else listens there could fill the agent's memory, or hang it."""
    monkeypatch.setattr(fake, "answer", lambda *_: sent)
    client = _client(fake)
    with pytest.raises(ConnectionError):
        client.call("X", deadline_ns=deadline_in_ns(2))
    assert client._socket.fileno() == -1


def test_a_silent_server_is_not_waited_for_beyond_the_deadline(fake):
    """Broken: a hanging server would hold the whole guest; a late answer would be taken for the next command's."""
    client = _client(fake)
    fake.silent = True
    with pytest.raises(TimeoutError, match="PING"):
        client.call("PING", deadline_ns=deadline_in_ns(0.05))
    assert client._socket.fileno() == -1
    with pytest.raises(TimeoutError):
        _client(fake).call("PING", deadline_ns=time.monotonic_ns())


def test_a_server_that_ends_in_the_middle_of_an_answer_is_noticed(fake, monkeypatch):
    """Broken: half an answer would be waited for until the deadline."""
    client = _client(fake)
    ours, theirs = socket.socketpair()
    client._socket.close()
    client._socket = ours
    theirs.sendall(b"$10\r\nhalf")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        client.call("X", deadline_ns=deadline_in_ns(2))
    theirs.close()


def test_an_answer_without_an_end_is_given_up(fake, monkeypatch):
    """Broken: whatever else listens there could fill the agent's memory."""
    monkeypatch.setattr(resp, "MAX_ANSWER", 100)
    monkeypatch.setattr(fake, "answer", lambda *_: b"+" + b"a" * 300)
    with pytest.raises(ConnectionError, match="without an end"):
        _client(fake).call("X", deadline_ns=deadline_in_ns(2))


def test_words_are_sent_as_they_are(fake):
    """Broken: a password with a space or of two bytes a letter would not work."""
    words: list[Any] = []
    fake.answer = lambda said, _: words.extend(said) or b"+OK\r\n"  # type: ignore[method-assign,func-returns-value]
    client = _client(fake)
    client.call("AUTH", 'ä "b', deadline_ns=deadline_in_ns(2))
    assert words == ["AUTH", 'ä "b']
    client.close()

"""Redis' protocol (RESP2), as far as a writer needs it: one command, one answer, and no wait beyond a deadline."""

from __future__ import annotations

import socket
import time
from typing import Any

MAX_ANSWER = 16 << 20
"""Longest text taken from a server, in bytes; INFO has some ten thousand. A server that sends more is no Redis."""


class RespError(Exception):
    """The server's own error, as `NOAUTH Authentication required.`"""

    @property
    def code(self) -> str:
        return str(self).split(" ", 1)[0]


class Client:
    """A connection. Any error but RespError closes it: else a late answer would be taken for the next command's."""

    def __init__(self, connection: socket.socket) -> None:
        self._buffer = b""
        self._socket = connection

    def call(self, *words: str, deadline_ns: int) -> Any:
        """Answers with text, a whole number, None, or a list of such. Raises RespError; OSError, as TimeoutError."""
        command = f"*{len(words)}\r\n".encode()
        for word in words:
            data = word.encode("utf-8", "surrogateescape")
            command += b"$%d\r\n%b\r\n" % (len(data), data)
        try:
            self._wait(deadline_ns)
            self._socket.sendall(command)
            answer = self._read(deadline_ns)
        except socket.timeout:
            self.close()
            raise TimeoutError(f"no answer to {words[0]} in time") from None
        except BaseException:
            self.close()
            raise
        if isinstance(answer, RespError):
            raise answer
        return answer

    def close(self) -> None:
        self._socket.close()

    def _read(self, deadline_ns: int) -> Any:
        """One answer, or an item of one; an error is returned, not raised, so that nothing of the answer is left unread."""
        line = self._until_newline(deadline_ns)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return _text(rest)
        if kind == b"-":
            return RespError(_text(rest))
        if kind not in (b":", b"$", b"*"):
            raise ConnectionError(f"not the protocol of Redis: {line[:40]!r}")
        try:
            number = int(rest)
        except ValueError:
            raise ConnectionError(f"not the protocol of Redis: {line[:40]!r}") from None
        if kind == b":":
            return number
        if number < 0:
            return None
        if number > MAX_ANSWER:
            raise ConnectionError(f"an answer of {number} bytes or items")
        if kind == b"$":
            return _text(self._exactly(number + 2, deadline_ns)[:-2])
        return [self._read(deadline_ns) for _ in range(number)]

    def _until_newline(self, deadline_ns: int) -> bytes:
        while b"\r\n" not in self._buffer:
            self._receive(deadline_ns)
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, size: int, deadline_ns: int) -> bytes:
        while len(self._buffer) < size:
            self._receive(deadline_ns)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _receive(self, deadline_ns: int) -> None:
        if len(self._buffer) > MAX_ANSWER + 2:
            raise ConnectionError("an answer without an end")
        self._wait(deadline_ns)
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data

    def _wait(self, deadline_ns: int) -> None:
        """Sets the time-out of the next socket call to the time left. Raises socket.timeout if none is left."""
        left = (deadline_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise socket.timeout
        self._socket.settimeout(left)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

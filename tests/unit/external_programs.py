"""Programs that are writers, and answer the agent as a test wants."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from quiesce.agent.programs import Programs
from quiesce.agent.writers import external
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.model.reports import WriterReport as Reported
from tests.unit.fake_programs import SHOP, Peer, join

STABLE = {"outcome": "stable"}
Answers = dict[str, Any]
"""By request: fields of the answer, bytes to be sent instead, or something to be done instead."""


def respond(peer: Peer, answers: Answers, heard: list[Any]) -> None:
    """As a program does, until the end of the connection."""
    while request := peer.hear():
        heard.append(request)
        answer = answers.get(request["do"], STABLE)
        if callable(answer):
            answer()
        else:
            peer.say(answer if isinstance(answer, bytes) else {"id": request["id"], **answer})
    heard.append("the end")


@contextlib.contextmanager
def program(agent: Programs, answers: Answers, registration: dict[str, Any] = SHOP) -> Iterator[list[Any]]:
    """A program in a thread. Gives what it hears, without its registration's answer."""
    peer, heard = join(agent, registration), []
    assert "registered" in peer.hear()
    thread = threading.Thread(target=respond, args=(peer, answers, heard))
    thread.start()
    try:
        yield heard
    finally:
        agent.close_all()
        thread.join(5)
        peer.close()


def only(agent: Programs) -> ApplicationWriter:
    [writer] = external.program_writers(agent)
    return writer


def soon(seconds: float = 5) -> int:
    return deadline_in_ns(seconds)


def attempt(writer: ApplicationWriter, kept: bool = True, seconds: float = 5) -> Reported:
    """From prepare to the end, as an attempt that does not insist has it."""
    writer.prepare(soon(seconds), 10_000)
    with contextlib.suppress(WriterError):
        writer.hold(soon(seconds))
    writer.release()
    writer.post_checkpoint(kept)
    writer.abort()
    return writer.report()

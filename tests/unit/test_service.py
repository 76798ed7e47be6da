"""agent/service.py: a conversation whose host has gone does not keep the next one waiting. Real processes and sockets."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from lab.standstill import within
from quiesce.agent import conversation, inventory, memory, service
from quiesce.agent.conversation import Conversation
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.wire.framing import to_line


class NoPrograms:
    def __init__(self) -> None:
        self.closed = 0

    def attend(self) -> None:
        pass

    def close_all(self) -> None:
        self.closed += 1


class Stuck(ApplicationWriter):
    """A database whose answer does not come, as that of CHECKPOINT on a filesystem that somebody has frozen. It swallows what
    wakes it, as client libraries do."""

    def __init__(self, notes: Path) -> None:
        super().__init__("stuck")
        self._notes = notes

    def on_identify(self, deadline_ns: int) -> None:
        assert deadline_ns
        (self._notes / "asked").touch()
        try:
            time.sleep(60)
        except Exception:
            time.sleep(60)

    def on_abort(self) -> None:
        (self._notes / "closed").touch()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "HANG_UP_GRACE_S", 0.2)
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(inventory, "find_filesystems", list)


def ask(host: socket.socket, op: str, **arguments: object) -> None:
    host.sendall(to_line({"id": 1, "op": op, "token": "t", "deadline_ms": 600_000, "args": arguments}))


def test_a_host_that_hangs_up_in_a_slow_step_ends_the_conversation(tmp_path, monkeypatch):
    """Broken: whoever comes next would be refused for ten minutes, because one database did not answer."""
    host, port = socket.socketpair()
    port.setblocking(False)
    programs = NoPrograms()
    ask(host, "identify")
    monkeypatch.setattr(service, "_discover", lambda _: [Stuck(tmp_path), Stuck(tmp_path)])
    helper = os.fork()
    if helper == 0:  # the host, which hangs up while the guest is at work
        port.close()
        while not (tmp_path / "asked").exists():
            time.sleep(0.02)
        os._exit(0)
    host.close()
    with within(20):
        service._fork(lambda: service._converse(port.fileno(), programs), programs, port.fileno())  # type: ignore[arg-type]
    assert (tmp_path / "closed").exists()
    assert programs.closed == 0
    port.close()
    os.waitpid(helper, 0)


def test_a_conversation_that_ends_by_itself_is_not_told_anything():
    """Broken: a healthy conversation would be killed, and the programs' connections be closed."""
    host, port = socket.socketpair()
    programs = NoPrograms()
    host.close()
    service._fork(lambda: None, programs, port.fileno())  # type: ignore[arg-type]
    assert programs.closed == 0
    port.close()


def test_a_step_that_lets_applications_go_is_not_interrupted():
    """Broken: a hang-up in the wrong moment would leave an application held until the dead-man's turn."""
    talk = Conversation(0, list)
    talk.hear_of_hang_up(15, None)
    talk._slow = True
    with pytest.raises(conversation._HungUpError):
        talk.hear_of_hang_up(15, None)
    assert not issubclass(conversation._HungUpError, Exception)

"""agent/hook.py: real sockets and real attempts. Nothing is frozen, and the dead-man only notes what it is told."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for, within
from quiesce.agent import hook
from quiesce.agent.attempt import DEADMAN_GRACE_NS
from quiesce.agent.programs import listen
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Level
from tests.unit.attempt_world import World, make_world
from tests.unit.sample_writer import Sample


class Service:
    """The agent's side, in a thread: waits for a platform, and serves it, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.found: list[Sample] = []
        self.error: Exception | None = None
        self.without: list[str] = []
        self.listener = listen(hook.SOCKET)
        self.failed: BaseException | None = None
        self._end, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)  # so that a test that fails does not hang
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._wake not in (ready := select.select([self.listener, self._wake], [], [])[0]):
                assert ready
                hook.serve_platform(self.listener, self._discover)
                self.world.story.append("idle")
        except BaseException as error:
            self.failed = error

    def _discover(self, without: str) -> list[Sample]:
        self.without.append(without)
        if self.error:
            raise self.error
        return self.found

    def wait_idle(self, seconds: float = 5) -> None:
        """Until nothing is held any more."""
        wait_for(lambda: "idle" in self.world.story, seconds, every_s=0.002)

    def stop(self) -> None:
        self._end.close()
        self._thread.join(10)
        self.listener.close()
        self._wake.close()
        assert not self._thread.is_alive()
        assert self.failed is None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(hook, "SOCKET", str(tmp_path / "hook.sock"))
    return make_world(tmp_path, monkeypatch)


@pytest.fixture
def service(world: World) -> Iterator[Service]:
    made = Service(world)
    made.found = [world.writer("web", Level.FRONT_END), world.writer("db")]
    yield made
    made.stop()


def ask(do: str, **more: Any) -> dict[str, Any]:
    return hook._ask({"do": do, **more}, 5)


@contextlib.contextmanager
def connected(data: bytes = b"") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(hook.SOCKET)
        connection.sendall(data)
        yield connection


def answer(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as lines:
        return json.loads(lines.readline())


# -- freeze and thaw


def test_writers_hold_from_the_freeze_to_the_thaw(service, world):
    """Broken: snapshots of other platforms would be crash images; or applications be let go before the filesystems are."""
    assert ask("freeze") == {"ok": True, "says": ["web holds", "db holds"]}
    assert [each for each in world.done() if "hold" in each or "release" in each] == ["web hold", "db hold"]
    assert world.told("freezing") == [("freezing", 0), ("freezing", 1)]
    assert "idle" not in world.story
    assert ask("thaw") == {"ok": True, "says": ["db: nil-redo", "web: nil-redo"]}
    service.wait_idle()
    end = [each for each in world.done() if each.split()[0] in ("web", "db")][-6:]
    assert end == ["db release", "web release", "web post-checkpoint True", "db post-checkpoint True", "db abort", "web abort"]
    assert world.story[-1] == "idle"
    assert ask("freeze")["ok"]
    assert ask("thaw")["ok"]


def test_a_guest_without_applications_is_guarded_and_let_go(service, world):
    """Broken: a machine with nothing to hold could not be snapshotted; or its filesystems stay frozen with a platform that
    died."""
    service.found = []
    assert ask("freeze") == {"ok": True, "says": []}
    assert len(world.told("freezing")) == 2
    assert ask("thaw") == {"ok": True, "says": []}
    service.wait_idle()


def test_the_platforms_own_scripts_are_left_to_it(service):
    """Broken: VMware's scripts would freeze twice."""
    ask("freeze", without="vmware")
    ask("thaw")
    ask("freeze")
    ask("thaw")
    assert service.without == ["vmware", ""]


@pytest.mark.parametrize("do", ["thaw", "freezeFail"])
def test_without_a_freeze_there_is_nothing_to_thaw(do, service, world):
    """Broken: a platform would be told that all was held, of a freeze that failed or took too long."""
    assert ask(do) == {"ok": False, "says": ["nothing is held: the deadline passed, or the freeze had failed"]}
    service.wait_idle()
    assert world.done() == ["idle"]


def test_a_second_freeze_does_not_disturb_the_first(service):
    """Broken: two platforms would each end the other's hold, and both call their snapshot good."""
    ask("freeze")
    assert ask("freeze") == {"ok": False, "says": ["another freeze is under way"]}
    assert ask("thaw")["ok"]


def test_a_freeze_that_the_platform_gives_up_is_let_go(service, world):
    """Broken: applications would wait until the deadline after each snapshot that VMware gives up."""
    ask("freeze")
    assert ask("freezeFail") == {"ok": True, "says": ["given up; all is released"]}
    service.wait_idle()
    assert "db release" not in world.story
    assert [step for step in world.done() if "thaw" not in step][-3:] == ["db abort", "web abort", "idle"]


# -- what goes wrong


@pytest.mark.parametrize(("phase", "says"), [("prepare", "db: no password"), ("hold", "db: not held: no password")])
def test_one_that_refuses_refuses_the_freeze_and_all_is_let_go(phase, says, service, world):
    """Broken: the platform would take a snapshot that is worth less than it promises; or applications stay held after it."""
    service.found[1].does[phase] = WriterError("no password")
    assert ask("freeze") == {"ok": False, "says": [f"refused: {says}"]}
    service.wait_idle()
    assert world.done()[-3:] == ["db abort", "web abort", "idle"]
    assert all(writer.let_go for writer in service.found)
    assert not ask("thaw")["ok"]


@pytest.mark.parametrize("phase", ["hold", "release"])
def test_one_that_does_not_count_refuses_nothing(phase, service):
    """Broken: an application that the administrator said does not count would keep the machine from every snapshot."""
    service.found[1].does[phase] = WriterError("too busy")
    service.found[1].required = False
    assert ask("freeze")["ok"]
    thawed = ask("thaw")
    assert thawed["ok"]
    assert any("too busy" in line for line in thawed["says"])


def test_a_hold_that_broke_is_said_at_the_thaw(service):
    """Broken: a snapshot during which a database wrote would be called good."""
    service.found[1].does["release"] = WriterError("its log moved")
    ask("freeze")
    assert ask("thaw") == {"ok": False, "says": ["db: crash, its log moved", "web: nil-redo"]}


@pytest.mark.parametrize("where", ["discover", "deadman"])
def test_an_error_of_our_own_is_an_answer_too(where, service, world):
    """Broken: the platform would only learn that nobody answered."""
    service.error = RuntimeError("out of ideas") if where == "discover" else None
    world.deadman_is_gone = where == "deadman"
    said = ask("freeze")
    assert not said["ok"]
    assert ("RuntimeError: out of ideas" if where == "discover" else "no dead-man") in said["says"][0]
    service.error, world.deadman_is_gone = None, False
    assert ask("freeze")["ok"]
    assert ask("thaw")["ok"]


def test_for_whoever_is_gone_already_nothing_is_held(world):
    """Broken: everything would be held until the deadline for a hook that was killed in the queue, and real freezes refused."""
    listener = listen(hook.SOCKET)
    with connected(b'{"do": "freeze"}\n'):
        pass
    asked: list[str] = []
    hook.serve_platform(listener, lambda without: asked.append(without) or [])
    listener.close()
    assert asked == []


# -- the deadline


def test_at_the_deadline_all_is_let_go_whoever_does_not_thaw(service, world):
    """Broken: a platform that dies would leave the applications held for ever."""
    with within(1, at_least=0.1):
        assert ask("freeze", window_ms=150)["ok"]
        service.wait_idle()
    assert [step for step in world.done() if "thaw" not in step][-3:] == ["db abort", "web abort", "idle"]
    assert world.done().index("thaw anybody's") < world.done().index("db abort")  # a thawing script may need the disk
    assert ("disarm",) in world.story
    assert not ask("thaw")["ok"]


@pytest.mark.parametrize(
    ("window", "longest_ms"), [(5000, 5000), (10**9, 60_000), (0, 1), (None, 30_000), ("5", 30_000), (2.5, 30_000)]
)
def test_no_window_is_longer_than_an_agent_agrees_to(window, longest_ms, service, world):
    """Broken: one request could hold the applications for days."""
    before = time.monotonic_ns()
    ask("freeze", window_ms=window)
    after = time.monotonic_ns()
    ask("thaw")
    if longest_ms > 1:
        [(_, deadline)] = world.told("arm")
        assert before <= deadline - longest_ms * 1_000_000 - DEADMAN_GRACE_NS <= after


# -- whoever else connects

NONSENSE = [
    b"",
    b"\n",
    b"garbage\n",
    b"\xff\xfe\n",
    b"[1]\n",
    b"[" * 5000,
    b'{"do": "explode"}\n',
    b'{"do": ["thaw"]}\n',
    b"{}\n",
    b"x" * 5000,
]


@pytest.mark.parametrize("data", NONSENSE)
def test_what_makes_no_sense_is_answered_and_changes_nothing(data, service):
    """Broken: a slip of a script would let everything go in the middle of a snapshot."""
    for held in (False, True):
        if held:
            assert ask("freeze")["ok"]
        with connected(data) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert answer(connection) == {"ok": False, "says": ["the request makes no sense"]}
    assert ask("thaw")["ok"]


def test_whoever_says_nothing_keeps_nobody_waiting_for_long(service, monkeypatch):
    """Broken: a thaw would wait behind a connection that nobody uses, and the applications with it."""
    monkeypatch.setattr(hook, "REQUEST_TIMEOUT_S", 0.05)
    ask("freeze")
    with connected(), connected(b'{"do": "th'):
        with within(1):
            assert ask("thaw")["ok"]


@pytest.mark.parametrize("says", ["nothing", "a byte at a time"])
def test_nobody_keeps_what_is_held_beyond_the_deadline(says, service, world, monkeypatch):
    """Broken: the deadline would pass while the agent listens to somebody else; its dead-man would have to kill it."""
    monkeypatch.setattr(hook, "REQUEST_TIMEOUT_S", 60)
    assert ask("freeze", window_ms=200)["ok"]
    with connected() as connection:

        def idle() -> bool:
            if says != "nothing":
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(b" ")
            return "idle" in world.story

        wait_for(idle, 1, every_s=0.01)


# -- what the platform runs


def test_the_command_says_what_happened_and_how_it_ended(service, capsys):
    """Broken: qemu-guest-agent would not know that a freeze failed; or an administrator not why."""

    def said() -> list[str]:
        """By the command, and not by the service, which has the same standard error here."""
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("quiesce: ")]

    assert hook.main(["freeze"]) == 0
    assert said() == ["quiesce: web holds", "quiesce: db holds"]
    assert hook.main(["thaw", "--without", "vmware", "an argument of the caller's"]) == 0
    assert said() == ["quiesce: db: nil-redo", "quiesce: web: nil-redo"]
    assert hook.main(["thaw"]) == 1
    assert said() == ["quiesce: nothing is held: the deadline passed, or the freeze had failed"]
    service.found[1].does["hold"] = WriterError("too busy")
    assert hook.main(["freeze"]) == 1
    assert said() == ["quiesce: refused: db: not held: too busy"]


def test_the_command_passes_its_options_on(service, world):
    """Broken: VMware's scripts would run twice, or the window not be as long as was asked for."""
    before = time.monotonic_ns()
    hook.main(["freeze", "--without", "vmware", "--window", "7.5"])
    hook.main(["freezeFail"])
    assert service.without == ["vmware"]
    [(_, deadline)] = world.told("arm")
    assert abs((deadline - before) / 1e6 - 7500) < 1000


def test_an_agent_that_is_not_there_or_says_nothing_is_a_failure(world, capsys):
    """Broken: a snapshot would be called application-consistent on a machine whose agent is dead."""
    assert hook.main(["freeze"]) == 1
    assert "quiesce: the agent does not answer: " in capsys.readouterr().err
    with listen(hook.SOCKET) as listener:
        listener.setblocking(True)

        def hang_up() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(1000)
                connection.sendall(next(answers))
                connection.close()

        answers = iter([b"", b"[]\n"])
        thread = threading.Thread(target=hang_up)
        thread.start()
        assert hook.main(["freeze"]) == 1
        assert "does not answer" in capsys.readouterr().err
        assert hook.main(["freeze"]) == 1
        thread.join()


@pytest.mark.parametrize("arguments", [[], ["melt"], ["freeze", "--without", "hyperv"], ["freeze", "--window", "long"]])
def test_what_the_command_does_not_know_is_an_error(arguments, world):
    """Broken: a slip in a hook's configuration would pass for a freeze."""
    with pytest.raises(SystemExit) as raised:
        hook.main(arguments)
    assert raised.value.code == 2

"""writer.py, with an agent that is played here; and contrib/writers/."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import wait_for
from quiesce import writer as sdk
from quiesce.writer import Failed, RegistrationError, Report, Writer
from tests.strategies import examples

EXAMPLES = Path(__file__).parents[2] / "contrib" / "writers"


class Shop(Writer):
    """Notes what it is called, and does as it is told."""

    name = "shop"
    level = "front-end"
    paths = ("/srv/shop",)

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.does: dict[str, Callable[[], Any]] = {}
        self.inside = 0

    def identify(self) -> Any:
        return self._call("identify")

    def prepare(self, window_ms: int) -> Any:
        return self._call("prepare", window_ms)

    def hold(self, timeout_ms: int) -> Any:
        return self._call("hold", timeout_ms)

    def release(self) -> Any:
        return self._call("release")

    def post_checkpoint(self, kept: bool) -> Any:
        return self._call("post-checkpoint", kept)

    def _call(self, what: str, *arguments: Any) -> Any:
        if self.inside:
            self.calls.append(f"{what} in the middle of something else")
        self.inside += 1
        self.calls.append((what, *arguments) if arguments else what)
        try:
            return self.does.get(what, lambda: None)()
        finally:
            self.inside -= 1

    def called(self, what: str) -> int:
        return sum(call == what or call[0] == what for call in self.calls)


class Agent:
    """The other end, at the socket."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(30)
        self._requests = 0
        self.connection = socket.socket(socket.AF_UNIX)
        self.lines = self.connection.makefile("rb")

    def accept(self) -> dict[str, Any]:
        """Takes the next connection, having hung up the one before. Returns the line it began with."""
        self.hang_up()
        self.connection, _ = self._listener.accept()
        self.connection.settimeout(30)
        self.lines = self.connection.makefile("rb")
        return self.hear()

    def say(self, message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        return json.loads(self.lines.readline())

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What is not None in the answer, without its id."""
        self._requests += 1
        self.say({"id": self._requests, "do": do, **arguments})
        answer = self.hear()
        assert answer.pop("id") == self._requests
        return answer

    def hang_up(self) -> None:
        self.lines.close()
        self.connection.close()

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


@pytest.fixture(autouse=True)
def _soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "socket_path", str(tmp_path / "writers.sock"))
    monkeypatch.setattr(sdk, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sdk, "LONGEST_WAIT_S", 0.02)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with contextlib.closing(Agent(tmp_path / "writers.sock")) as found:
        yield found


@contextlib.contextmanager
def running(writer: Writer, agent: Agent | None = None) -> Iterator[list[BaseException]]:
    """`run` in a thread, until something ends it: at the latest this, which closes the agent. Gives what ended it."""
    ended: list[BaseException] = []
    stop = threading.Event()
    connect = writer.connect

    def connect_unless_stopped() -> socket.socket:
        if stop.is_set():
            raise SystemExit
        return connect()

    def work() -> None:
        try:
            sdk.run(writer)
        except BaseException as error:
            ended.append(error)

    writer.connect = connect_unless_stopped  # type: ignore[method-assign]
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        if agent:
            agent.close()
        thread.join(5)
        assert not thread.is_alive()


@contextlib.contextmanager
def registered(agent: Agent, writer: Writer) -> Iterator[list[BaseException]]:
    with running(writer, agent) as ended:
        agent.accept()
        agent.say({"registered": f"external:{writer.name}"})
        yield ended


def test_it_registers_as_what_it_is(agent):
    """Broken: the agent would refuse every program that uses this."""
    shop = Shop()
    shop.version, shop.hold_timeout_ms = "3.2", 3000
    with running(shop, agent):
        assert agent.accept() == {
            "protocol": 1,
            "writer": "shop",
            "application": "shop",
            "version": "3.2",
            "level": "front-end",
            "stateless": False,
            "paths": ["/srv/shop"],
            "hold_timeout_ms": 3000,
        }


def test_a_good_attempt_from_first_to_last(agent):
    """Broken: no application could be held."""
    shop = Shop()
    shop.does["identify"] = lambda: {"grade": "clean", "warnings": ["the queue is long"]}
    shop.does["hold"] = lambda: Report(grade="clean", position={"order": 42})
    with registered(agent, shop):
        assert agent.ask("identify") == {
            "outcome": "stable",
            "grade": "clean",
            "position": {},
            "warnings": ["the queue is long"],
        }
        assert agent.ask("prepare", window_ms=10_000)["outcome"] == "stable"
        assert agent.ask("hold", timeout_ms=3000)["position"] == {"order": "42"}
        assert agent.ask("release")["outcome"] == "stable"
        assert agent.ask("post-checkpoint", kept=True)["outcome"] == "stable"
        assert agent.ask("abort")["outcome"] == "stable"
    assert shop.calls == ["identify", ("prepare", 10_000), ("hold", 3000), "release", ("post-checkpoint", True)]


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (lambda: None, {"outcome": "stable", "position": {}, "warnings": []}),
        (dict, {"outcome": "stable", "position": {}, "warnings": []}),
        (lambda: Report("timeout", reason="slow"), {"outcome": "timeout", "reason": "slow", "position": {}, "warnings": []}),
        (lambda: _raise(Failed("out-of-resources", "disk full")), {"outcome": "out-of-resources", "reason": "disk full"}),
        (lambda: _raise(KeyError("order")), {"outcome": "retryable", "reason": "KeyError: 'order'"}),
        (lambda: _raise(Failed("timeout", "\ud800" + "é" * 1000)), {"outcome": "timeout", "reason": "\ud800" + "é" * 399}),
        (lambda: {"reason": "r" * 1000}, {"outcome": "stable", "reason": "r" * 400, "position": {}, "warnings": []}),
    ],
)
def test_what_a_method_returns_or_raises_is_the_answer(agent, result, answer):
    """Broken: a failure would look like a success, or end the program."""
    shop = Shop()
    shop.does["identify"] = result
    with registered(agent, shop):
        assert agent.ask("identify") == answer


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (lambda: {"positon": {}}, "positon"),
        (lambda: True, "TypeError"),
        (lambda: {"outcome": "fine"}, "'fine' is not one of stable"),
        (lambda: {"grade": "perfect"}, "'perfect' is not one of clean"),
        (lambda: {"position": [1]}, "AttributeError"),
        (lambda: _raise(Failed("broken", "it is")), "'broken' is not one of"),
        (lambda: {"position": {"p": "x" * 5000}}, "more than 4096 bytes"),
    ],
)
def test_a_result_that_is_none_is_a_failure_that_says_why(agent, result, complaint):
    """Broken: the agent would hang up on the program, and its author not learn why."""
    shop = Shop()
    shop.does["hold"] = result
    with registered(agent, shop):
        agent.ask("prepare", window_ms=10_000)
        answer = agent.ask("hold", timeout_ms=1000)
        assert answer["outcome"] in ("retryable", "non-retryable")
        assert complaint in answer["reason"]
        agent.ask("abort")
        assert shop.called("release") == 1
        assert agent.ask("identify")["outcome"] == "stable"


def _raise(error: Exception) -> Any:
    raise error


def test_a_request_it_does_not_know_is_answered(agent):
    """Broken: a newer agent would wait for an answer that never comes."""
    with registered(agent, Shop()):
        assert agent.ask("defragment")["outcome"] == "non-retryable"
        assert agent.ask("post-restore")["outcome"] == "stable"
        assert agent.ask("verify")["outcome"] == "stable"


def test_at_the_end_of_the_window_it_lets_go_by_itself(agent):
    """Broken: an agent or host that hangs would leave the application held."""
    shop = Shop()
    with registered(agent, shop):
        agent.ask("prepare", window_ms=200)
        assert agent.ask("hold", timeout_ms=1000)["outcome"] == "stable"
        wait_for(lambda: shop.called("release"))
        assert agent.ask("release")["outcome"] == "inconsistent"
        assert agent.ask("post-checkpoint", kept=False)["outcome"] == "stable"
    assert shop.calls == [("prepare", 200), ("hold", 1000), "release", ("post-checkpoint", False)]


def test_a_hold_that_outlasts_the_window_is_undone(agent):
    """Broken: release would run into the middle of hold, or a hold without end begin when nobody counts on it any more."""
    shop = Shop()
    shop.does["hold"] = lambda: time.sleep(0.1)
    with registered(agent, shop):
        agent.ask("prepare", window_ms=30)
        answer = agent.ask("hold", timeout_ms=1000)
        assert (answer["outcome"], shop.calls[1:]) == ("timeout", [("hold", 1000), "release"])
        agent.ask("abort")
    assert shop.called("release") == 1


def test_a_hold_that_fails_is_undone_once(agent):
    """Broken: what half a hold did would stay; or be undone twice."""
    shop = Shop()
    shop.does["hold"] = lambda: _raise(Failed("retryable", "too busy"))
    shop.does["release"] = lambda: _raise(RuntimeError("nothing to release"))
    with registered(agent, shop):
        agent.ask("prepare", window_ms=10_000)
        assert agent.ask("hold", timeout_ms=1000) == {"outcome": "retryable", "reason": "too busy"}
        assert agent.ask("abort")["outcome"] == "stable"
    assert shop.calls == [("prepare", 10_000), ("hold", 1000), "release", ("post-checkpoint", False)]


def test_the_end_of_the_connection_is_an_abort_and_it_comes_back(agent):
    """Broken: an agent that dies in the window would leave the application held, or lose its writer for good."""
    shop = Shop()
    with registered(agent, shop):
        agent.ask("prepare", window_ms=10_000)
        agent.ask("hold", timeout_ms=1000)
        agent.hang_up()
        assert agent.accept()["writer"] == "shop"
        assert shop.calls[-2:] == ["release", ("post-checkpoint", False)]


def test_a_failing_release_does_not_end_it(agent, caplog):
    """Broken: the one checkpoint that went wrong would be the last with this application in it."""
    shop = Shop()
    shop.does["release"] = lambda: _raise(RuntimeError("jammed"))
    with registered(agent, shop):
        agent.ask("prepare", window_ms=10_000)
        agent.ask("hold", timeout_ms=1000)
        assert agent.ask("release") == {"outcome": "retryable", "reason": "RuntimeError: jammed"}
        agent.ask("prepare", window_ms=200)
        agent.ask("hold", timeout_ms=1000)
        wait_for(lambda: "jammed" in caplog.text)
        agent.ask("prepare", window_ms=10_000)
        agent.ask("hold", timeout_ms=1000)
        agent.hang_up()
        agent.accept()
    assert (shop.called("hold"), shop.called("release"), shop.called("post-checkpoint")) == (3, 3, 3)


def test_it_waits_for_an_agent_that_is_not_there_yet(tmp_path):
    """Broken: programs could be started only after the agent."""
    with running(Shop()) as ended:
        time.sleep(0.05)
        with contextlib.closing(Agent(tmp_path / "writers.sock")) as late:
            assert late.accept()["writer"] == "shop"
        assert ended == []


def test_a_refusal_is_an_error_that_says_why(agent):
    """Broken: a program whose registration does not fit would try for ever, and nobody learn why."""
    with running(Shop(), agent) as ended:
        agent.accept()
        agent.say({"error": "a program is connected as shop already"})
        wait_for(lambda: ended)
    assert isinstance(ended[0], RegistrationError)
    assert str(ended[0]) == "a program is connected as shop already"


def test_once_registered_a_complaint_is_no_refusal(agent):
    """Broken: one misunderstanding with the agent would end the program."""
    with registered(agent, Shop()) as ended:
        agent.say({"error": "a program says one line"})
        assert agent.accept()["writer"] == "shop"
        assert ended == []


def test_a_program_that_ends_lets_go_and_takes_leave(agent):
    """Broken: an application that is stopped would stay held, or be missed in every later checkpoint."""
    shop = Shop()
    with registered(agent, shop) as ended:
        agent.ask("prepare", window_ms=10_000)
        agent.ask("hold", timeout_ms=1000)
        shop.does["identify"] = lambda: _raise(SystemExit())  # type: ignore[arg-type]
        agent.say({"id": 9, "do": "identify"})
        assert agent.lines.readline() == b""
        assert agent.accept() == {"protocol": 1, "leave": "shop"}
        wait_for(lambda: ended)
    assert isinstance(ended[0], SystemExit)
    assert shop.calls[-2:] == ["release", ("post-checkpoint", False)]


def test_a_program_that_ends_before_it_is_registered_takes_leave_too(agent):
    """Broken: stopped while a conversation keeps the agent busy, it would be registered afterwards, and missed."""
    shop = Shop()
    with running(shop, agent) as ended:
        agent.accept()
        shop.does["identify"] = lambda: _raise(SystemExit())  # type: ignore[arg-type]
        agent.say({"id": 9, "do": "identify"})
        assert agent.accept() == {"protocol": 1, "leave": "shop"}
        wait_for(lambda: ended)


def test_taking_leave_of_nobody_is_nothing():
    """Broken: a program could not be stopped without an agent."""
    sdk.leave(Shop())


STEPS = ("hold", "release", "late", "hold", "release", "late", "prepare", "abort", "post-checkpoint", "expire")


@examples(150)
@given(st.lists(st.sampled_from(STEPS), max_size=14))
def test_in_whatever_order_hold_and_release_alternate(steps):
    """Broken: an application would be held twice, let go twice, or not at the end; or not told how it ended."""
    shop = Shop()
    turn = sdk._Turn(shop)
    timers: list[threading.Timer] = []
    for step in ("prepare", *steps):
        if step in ("expire", "late"):
            # The last hold's time is up, or an earlier one's, whose timer had gone off just when it was released.
            held = turn._timer
            for timer in timers[-1:] if step == "expire" else timers[:-1]:
                thread = threading.Thread(target=lambda timer=timer: _as(timer, turn._expire))
                thread.start()
                thread.join()
            assert turn._timer is (None if step == "expire" else held)
            continue
        with contextlib.suppress(Failed):
            turn.take({"do": step, "window_ms": 60_000, "timeout_ms": 1, "kept": True})
        if turn._timer and turn._timer not in timers:
            timers.append(turn._timer)
        assert shop.called("hold") - shop.called("release") == (turn._timer is not None)
    turn.end(kept=False)
    turns = [call if isinstance(call, str) else call[0] for call in shop.calls]
    assert [call for call in turns if call in ("hold", "release")] == ["hold", "release"] * turns.count("hold")
    assert [call for call in turns if call in ("prepare", "post-checkpoint")] == ["prepare", "post-checkpoint"] * turns.count(
        "prepare"
    )
    for timer in timers:
        timer.join(5)
        assert not timer.is_alive()


def _as(timer: threading.Timer, work: Callable[[], None]) -> None:
    """Runs `work` as if in that timer's thread."""
    own = threading.get_ident()
    usual = threading._active[own]  # type: ignore[attr-defined]
    threading._active[own] = timer  # type: ignore[attr-defined]
    try:
        work()
    finally:
        threading._active[own] = usual  # type: ignore[attr-defined]


def test_it_stands_alone_on_the_oldest_python(tmp_path):
    """Broken: it could not be copied into a program, or run in an older guest."""
    source = Path(sdk.__file__).read_text()
    ast.parse(source, feature_version=(3, 9))
    shutil.copy(sdk.__file__, tmp_path / "writer.py")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import writer; print('quiesce' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code, tmp_path],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout == "False\n"


@pytest.fixture
def shopctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The application of the examples: writes down what it is told."""
    calls = tmp_path / "calls"
    calls.touch()
    (tmp_path / "shopctl").write_text(f'#!/bin/sh\necho "$1" >>{calls}\necho order-42\n')
    (tmp_path / "shopctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return calls


class Shell:
    """example.sh, with what socat would connect it to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["sh", EXAMPLES / "example.sh", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.registration = self._hear()
        self._say({"registered": "external:shop"})

    def ask(self, do: str, **arguments: Any) -> Any:
        self._say({"id": 7, "do": do, **arguments})
        answer = self._hear()
        assert answer["id"] == 7
        return answer["outcome"]

    def _say(self, message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        self.process.stdin.flush()

    def _hear(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()


def test_the_shell_example_holds_and_lets_go(shopctl):
    """Broken: whoever starts from the example would start from a mistake."""
    with Shell() as shell:
        assert shell.registration["writer"] == "shop"
        assert shell.ask("identify") == "stable"
        assert shell.ask("prepare", window_ms=10_000) == "stable"
        assert shopctl.read_text() == ""
        assert shell.ask("hold", timeout_ms=3000) == "stable"
        assert shopctl.read_text().split() == ["pause"]
        assert shell.ask("release") == "stable"
        assert shell.ask("post-checkpoint", kept=True) == "stable"
        assert [shell.ask("abort"), shell.ask("abort")] == ["stable", "stable"]
        assert shopctl.read_text().split() == ["pause", "resume"]


def test_the_shell_example_has_a_dead_man_of_its_own(shopctl):
    """Broken: see above; and its application would stay paused when the agent hangs."""
    with Shell() as shell:
        shell.ask("prepare", window_ms=1)  # it counts in seconds
        assert shell.ask("hold", timeout_ms=3000) == "stable"
        wait_for(lambda: "resume" in shopctl.read_text())
        assert shell.ask("release") == "inconsistent"
        assert shell.ask("abort") == "stable"
        assert shopctl.read_text().split() == ["pause", "resume"]


@pytest.mark.parametrize("end", ["the agent hangs up", "it is stopped"])
def test_the_shell_example_lets_go_when_it_ends(shopctl, end):
    """Broken: see above; and its application would stay paused when the agent dies, or the writer is stopped."""
    with Shell() as shell:
        shell.ask("prepare", window_ms=10_000)
        shell.ask("hold", timeout_ms=3000)
        if end == "it is stopped":
            shell.process.terminate()
        assert shell.process.stdin
        shell.process.stdin.close()  # a service's socat is stopped with it
        shell.process.wait(5)
        assert shopctl.read_text().split() == ["pause", "resume"]


def finding_the_agent_in(directory: Path) -> dict[str, str]:
    """The environment of a program that uses `quiesce.writer`."""
    (directory / "sitecustomize.py").write_text(
        f"import quiesce.writer\nquiesce.writer.Writer.socket_path = {str(directory / 'writers.sock')!r}\n"
    )
    return {**os.environ, "PYTHONPATH": f"{directory}:{Path(sdk.__file__).parents[1]}"}


SIGNALLED_IN_ANOTHER_THREAD = """
import signal, sys, threading, time
from quiesce.writer import Writer, run

class Shop(Writer):
    name = "shop"

    def hold(self, timeout_ms):
        threading.Thread(target=self.signalled).start()

    def signalled(self):
        time.sleep(0.3)  # `run` waits for the agent again
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def release(self):
        print("released", flush=True)

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
run(Shop())
"""


def test_a_signal_that_interrupts_no_system_call_is_not_slept_through(agent, tmp_path):
    """Broken: what is stopped just as it begins to wait would hold its application until the window ends."""
    environment = finding_the_agent_in(tmp_path)
    command = [sys.executable, "-c", SIGNALLED_IN_ANOTHER_THREAD]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as program:
        try:
            assert agent.accept()["writer"] == "shop"
            agent.say({"registered": "external:shop"})
            agent.ask("prepare", window_ms=60_000)
            agent.ask("hold", timeout_ms=3000)
            assert agent.lines.readline() == b""
            assert program.stdout and program.stdout.readline() == b"released\n"
            assert agent.accept() == {"protocol": 1, "leave": "shop"}
        finally:
            program.kill()


def test_the_python_example_holds_and_lets_go(shopctl, agent, tmp_path):
    """Broken: whoever starts from the example would start from a mistake."""
    environment = finding_the_agent_in(tmp_path)
    with subprocess.Popen([sys.executable, EXAMPLES / "example.py"], env=environment) as example:
        try:
            assert agent.accept()["writer"] == "shop"
            agent.say({"registered": "external:shop"})
            agent.ask("prepare", window_ms=10_000)
            assert agent.ask("hold", timeout_ms=3000)["position"] == {"order": "order-42"}
            agent.ask("release")
            assert shopctl.read_text().split() == ["pause", "resume"]
            agent.ask("prepare", window_ms=10_000)
            agent.ask("hold", timeout_ms=3000)
            example.send_signal(signal.SIGTERM)
            assert agent.lines.readline() == b""
            agent.hang_up()
            assert agent.accept() == {"protocol": 1, "leave": "shop"}
            assert shopctl.read_text().split() == ["pause", "resume"] * 2
            agent.hang_up()
        finally:
            example.kill()

"""writer.py, in a program that does as it is told and with an agent that is played."""

from __future__ import annotations

import ast
import contextlib
import shutil
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
from tests.unit.shop_and_agent import Agent, Shop, finding_the_agent_in, registered, running


@pytest.fixture(autouse=True)
def _soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "socket_path", str(tmp_path / "writers.sock"))
    monkeypatch.setattr(sdk, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sdk, "LONGEST_WAIT_S", 0.02)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with contextlib.closing(Agent(tmp_path / "writers.sock")) as found:
        yield found


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

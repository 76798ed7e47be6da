"""contrib/writers/: the examples that writers of programs begin with, run as they are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for
from tests.unit.shop_and_agent import Agent, finding_the_agent_in

EXAMPLES = Path(__file__).parents[2] / "contrib" / "writers"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with contextlib.closing(Agent(tmp_path / "writers.sock")) as found:
        yield found


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

"""What can go wrong in the middle of an attempt. Each function does it once, and returns what came of it:

works       server by server, whether new clients write again within WORKS_S
lives       whether each server's first process is still the same
claimed     what the agent reported, if it could
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from lab.boxed import attempts
from lab.boxed.server import Server
from quiesce.agent import leftovers
from quiesce.agent.attempt import Attempt
from quiesce.agent.writers import registry
from quiesce.wire.messages import Prepare

WORKS_S = 30.0
ROOM_AGAIN_S = 75.0
"""After a full disk has room again: MariaDB looks once a minute (MY_WAIT_FOR_USER_TO_FIX_PANIC of its my_sys.h)."""
WINDOW_MS = 4000


def full_disk(servers: list[Server]) -> dict[str, Any]:
    """No byte is free on the servers' filesystem."""
    with open("/srv/filler", "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    claimed = attempts.checkpoint(nil_redo=False, copy=False)
    os.remove("/srv/filler")
    return {"claimed": claimed, **_afterwards(servers, ROOM_AGAIN_S)}


def agent_killed(servers: list[Server]) -> dict[str, Any]:
    """The agent dies with everything held and frozen; its dead-man lives."""
    _frozen_agent(lambda agent: os.kill(agent, signal.SIGKILL))
    return _afterwards(servers)


def both_killed(servers: list[Server]) -> dict[str, Any]:
    """The agent and its dead-man die with everything held and frozen. The next agent takes it back."""

    def kill(agent: int) -> None:
        children = subprocess.run(["pgrep", "-P", str(agent)], capture_output=True, text=True, check=True).stdout.split()
        for pid in [*map(int, children), agent]:
            os.kill(pid, signal.SIGKILL)

    _frozen_agent(kill)
    leftovers.wait_and_take_back()
    return _afterwards(servers)


def agent_stopped(servers: list[Server]) -> dict[str, Any]:
    """The agent stands still with everything held and frozen, beyond the deadline."""

    def stop(agent: int) -> None:
        os.kill(agent, signal.SIGSTOP)
        time.sleep(WINDOW_MS / 1000 + 1)

    _frozen_agent(stop)
    return _afterwards(servers)


def server_restarted(servers: list[Server]) -> dict[str, Any]:
    """Each server is killed and started again under its hold."""

    def restart() -> None:
        for server in servers:
            server.kill()
            server.launch()  # one whose control group stands still starts when that goes on

    claimed = attempts.checkpoint(nil_redo=False, held=restart, copy=False)
    for server in servers:
        server.wait_until_it_answers()
    return {"claimed": claimed, "works": _work(servers)}


HARMS: dict[str, Callable[[list[Server]], dict[str, Any]]] = {
    harm.__name__: harm for harm in (full_disk, agent_killed, both_killed, agent_stopped, server_restarted)
}


def _frozen_agent(then: Callable[[int], None]) -> None:
    """A process that holds and freezes everything, as the agent does, and then gets what `then` does to it."""
    ready, done = os.pipe()
    agent = os.fork()
    if agent == 0:
        try:
            attempt = Attempt("token", Prepare(WINDOW_MS, False, False))
            attempts.hold_all(attempt, registry.discover())
            attempt.freeze(attempts.deadline_ns())
            os.write(done, b"frozen")
            time.sleep(3600)
        finally:
            os._exit(1)
    os.close(done)
    if os.read(ready, 10) != b"frozen":
        raise RuntimeError("the agent could not freeze")
    os.close(ready)
    try:
        then(agent)
    finally:
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)


def _afterwards(servers: list[Server], within_s: float = WORKS_S) -> dict[str, Any]:
    lives = {server.name: server.process is not None and server.process.poll() is None for server in servers}
    return {"lives": lives, "works": _work(servers, within_s)}


def _work(servers: list[Server], within_s: float = WORKS_S) -> dict[str, str]:
    """By server: why new clients cannot write; empty if they can."""
    found = {}
    for server in servers:
        try:
            server.start_clients()
            server.wait_for_writes(10, within_s)
            found[server.name] = ""
        except (TimeoutError, RuntimeError) as error:
            found[server.name] = str(error)
    return found

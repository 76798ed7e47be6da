"""Waits, without waking up in between, for a host on the virtio-serial port, for other platforms' hooks, and for programs that
are writers. Forks a conversation for each host or hook, one at a time."""

from __future__ import annotations

import os
import select
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Callable, Optional

from quiesce.agent import hook, memory
from quiesce.agent.programs import Programs, listen

if TYPE_CHECKING:
    from quiesce.agent.writers.base import ApplicationWriter

MAX_CONVERSATION_TRACE = 4000


def serve(device: str) -> None:
    """Serves until killed. Raises OSError if a socket cannot be made; systemd then tries again.

    Without the port it serves hooks and programs only; udev restarts the service when the port is plugged in.
    """
    os.makedirs(memory.DIRECTORY, mode=0o700, exist_ok=True)
    try:
        port: Optional[int] = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        port = None
    programs, hooks = Programs(), listen(hook.SOCKET)
    while True:
        _wait(port, hooks.fileno(), programs)
        if _readable(hooks.fileno()):
            _fork(lambda: _answer_hook(hooks, programs), programs)
        elif port is not None and _host_speaks(port):
            _fork(lambda: _converse(port, programs), programs)


def _wait(port: Optional[int], hooks: int, programs: Programs) -> None:
    """Returns when a host or a hook has sent something.

    While no host is connected the port polls as hung up, so a level-triggered wait would spin (qemu-ga instead sleeps 100 ms
    in each round). The driver wakes waiters when the host connects and when data comes (drivers/char/virtio_console.c): an
    edge-triggered wait wakes up then, and only then.
    """
    with select.epoll() as epoll:
        epoll.register(hooks, select.EPOLLIN)
        epoll.register(programs.fileno(), select.EPOLLIN)
        if port is not None:
            epoll.register(port, select.EPOLLIN | select.EPOLLET)
        # Polled before each wait: data that came between a conversation's end and the registration makes no edge.
        while not (_readable(hooks) or (port is not None and _host_speaks(port))):
            epoll.poll()
            programs.attend()


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _host_speaks(port: int) -> bool:
    poll = select.poll()
    poll.register(port, select.POLLIN)
    return any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0))


def _fork(work: Callable[[], None], programs: Programs) -> None:
    """Runs one conversation in a child process, so that its memory, its sessions and its failures end with it."""
    programs.attend()
    service = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Imported here, so that the idle service stays small.
            from quiesce.agent import linux

            linux.die_with_service()
            if os.getppid() != service:
                return  # the service died before the kernel was asked to end this child with it
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("0")  # it may read much for anybody: if memory runs out it is killed, not another process
            work()
            status = 0
        except Exception:  # noqa: BLE001 - the last place that can report it
            sys.stderr.write(traceback.format_exc()[-MAX_CONVERSATION_TRACE:])
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        programs.close_all()  # some may hold; the end of their connection releases them


def _converse(port: int, programs: Programs) -> None:
    from quiesce.agent.conversation import Conversation

    Conversation(port, lambda: _discover(programs)).run()


def _answer_hook(hooks: socket.socket, programs: Programs) -> None:
    hook.serve_platform(hooks, lambda platform: _discover(programs, without=platform))


def _discover(programs: Programs, *, without: str = "") -> list[ApplicationWriter]:
    from quiesce.agent.writers import external, registry

    return registry.discover(external.program_writers(programs), without=without)

"""Waits, without waking up in between, for a host on the virtio-serial port, for other platforms' hooks, and for programs that
are writers. Forks a conversation for each host or hook, one at a time."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Callable, Optional

from quiesce.agent import holds, hook, memory
from quiesce.agent.programs import Programs, listen

if TYPE_CHECKING:
    from quiesce.agent.writers.base import ApplicationWriter

MAX_CONVERSATION_TRACE = 4000
MEMORY = 512 << 20
"""Most memory of a conversation, in bytes: above it, what it does for one writer fails, or the request."""
HANG_UP_GRACE_S = 2.0
"""How long a conversation may go on after its host has hung up before it is told, in seconds. As a rule it has noticed."""


def serve(device: str) -> None:
    """Serves until killed. Raises OSError if a socket cannot be made; systemd then tries again.

    Without the port it serves hooks and programs only; udev restarts the service when the port is plugged in.
    """
    os.makedirs(memory.DIRECTORY, mode=0o700, exist_ok=True)
    _take_back_leftovers()
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
            _fork(lambda: _converse(port, programs), programs, port)


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


def _fork(work: Callable[[], None], programs: Programs, port: Optional[int] = None) -> None:
    """Runs one conversation in a child process, so that its memory, its sessions and its failures end with it. If it is with a
    host, over `port`, and the host hangs up, the child is told so by SIGTERM: it may be in a step that takes minutes."""
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
            linux.limit_memory(MEMORY)
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("0")  # it may read much for anybody: if memory runs out it is killed, not another process
            work()
            status = 0
        except Exception:  # noqa: BLE001 - the last place that can report it
            sys.stderr.write(traceback.format_exc()[-MAX_CONVERSATION_TRACE:])
        finally:
            os._exit(status)
    if port is not None:
        _tell_of_hang_up(child, port)
    _, status = os.waitpid(child, 0)
    if status:
        programs.close_all()  # some may hold; the end of their connection releases them
        _take_back_leftovers()


def _tell_of_hang_up(child: int, port: int) -> None:
    """Returns when the child has ended, or can be waited for only."""
    try:
        ended = os.pidfd_open(child)
    except (OSError, AttributeError):  # a kernel before 5.3, or a Python that was built for one
        return
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(port, 0)  # a hang-up is always reported
        while all(descriptor != ended for descriptor, _ in poll.poll()):
            if not select.select([ended], [], [], HANG_UP_GRACE_S)[0]:
                os.kill(child, signal.SIGTERM)  # it is waited for only below, so the number is still its own
    finally:
        os.close(ended)


def _take_back_leftovers() -> None:
    """If an attempt and its dead-man were killed, takes back what they held, in a process that nobody waits for: it may have to
    wait for a dead-man that is still at work, or for an application."""
    if not holds.left():
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            os.setsid()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # above all the port, which only one process can have open
            from quiesce.agent import leftovers  # so that the idle service stays small

            leftovers.wait_and_take_back()
    except Exception:  # noqa: BLE001 - the last place that can report it
        sys.stderr.write(traceback.format_exc()[-MAX_CONVERSATION_TRACE:])
    finally:
        os._exit(0)


def _converse(port: int, programs: Programs) -> None:
    from quiesce.agent.conversation import Conversation

    conversation = Conversation(port, lambda: _discover(programs))
    signal.signal(signal.SIGTERM, conversation.hear_of_hang_up)
    conversation.run()


def _answer_hook(hooks: socket.socket, programs: Programs) -> None:
    hook.serve_platform(hooks, lambda platform: _discover(programs, without=platform))


def _discover(programs: Programs, *, without: str = "") -> list[ApplicationWriter]:
    from quiesce.agent.writers import external, registry

    return registry.discover(external.program_writers(programs), without=without)

"""Waits on the virtio-serial port for a host, without a single wake-up in between, and forks a conversation for each."""

from __future__ import annotations

import os
import select
import sys
import traceback

MAX_CONVERSATION_TRACE = 4000


def serve(device: str) -> None:
    """Serves `device` until killed. Raises OSError if it cannot be opened; systemd then tries again."""
    port = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    os.makedirs("/run/quiesce", mode=0o700, exist_ok=True)
    while True:
        _wait_for_host(port)
        _converse(port)


def _wait_for_host(port: int) -> None:
    """Returns when the host has sent something.

    While no host is connected the port polls as hung up, so a level-triggered wait would spin (qemu-ga sleeps 100 ms a
    round). The driver wakes waiters when the host connects and when data comes (drivers/char/virtio_console.c), which an
    edge-triggered wait turns into exactly those wake-ups.
    """
    with select.epoll() as epoll:
        epoll.register(port, select.EPOLLIN | select.EPOLLET)
        while True:
            # Asked afresh each time: what arrived between a conversation's end and the registration is no edge.
            poll = select.poll()
            poll.register(port, select.POLLIN)
            if any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0)):
                return
            epoll.poll()


def _converse(port: int) -> None:
    """Runs one conversation in a child, so that its memory, its sessions and its mistakes end with it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Imported here, so that the idle service stays small.
            from quiesce.agent import linux
            from quiesce.agent.conversation import Conversation

            linux.die_with_service()
            Conversation(port).run()
            status = 0
        except Exception:  # noqa: BLE001 - the last place that can say what happened
            sys.stderr.write(traceback.format_exc()[-MAX_CONVERSATION_TRACE:])
        finally:
            os._exit(status)
    os.waitpid(child, 0)

"""The agent's virtio-serial port as a byte stream, through libvirt, on local and remote hosts."""

from __future__ import annotations

import queue
import time
from contextlib import suppress
from typing import Any

import libvirt

from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError, BusyError, HypervisorError
from quiesce.wire.messages import PORT_NAME

MAX_UNREAD = 1024 * 1024
"""Most bytes of a guest that nobody has read yet. Above that, the stream is ended."""


class ChannelTransport:
    """A quiesce.wire.requester.Transport. libvirt's event thread reads the stream."""

    def __init__(self, vm: Vm) -> None:
        self._received: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unread = 0
        self._reason = "the guest agent's port was closed"
        self._ended = False
        try:
            self._stream = vm.host.connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            vm.domain.openChannel(PORT_NAME, self._stream, 0)
            events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
            self._stream.eventAddCallback(events, self._on_event, None)
        except libvirt.libvirtError as error:
            message = error.get_error_message() or str(error)
            if "Active channel stream" in message:
                raise BusyError(
                    f"another quiesce is talking to the agent of {vm.name}", hint="wait until it has ended"
                ) from error
            if "find channel" in message:
                raise AgentError(
                    f"{vm.name} has no port for the guest agent", hint=f"quiesce guest install {vm.name}"
                ) from error
            raise HypervisorError(f"opening the agent's port of {vm.name}: {message}") from error

    def send(self, data: bytes, timeout: float) -> None:
        """Sends nothing if the port was closed, for example because the VM ended: libvirtd 11.3.0 dies of such a write."""
        deadline = time.monotonic() + timeout
        while data:
            if self._ended:
                raise ConnectionError(self._reason)
            try:
                sent = self._stream.send(data)
            except libvirt.libvirtError as error:
                raise ConnectionError(error.get_error_message() or self._reason) from None
            if sent == -2:  # would block
                if time.monotonic() > deadline:
                    raise TimeoutError("the guest agent does not read what it was sent")
                time.sleep(0.001)
            else:
                data = data[sent:]

    def receive(self, timeout: float) -> bytes:
        try:
            data = self._received.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("the guest agent does not answer") from None
        if data is None:
            self._received.put(None)
            raise ConnectionError(self._reason)
        self._unread -= len(data)
        return data

    def close(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.eventRemoveCallback()
        with suppress(libvirt.libvirtError):
            self._stream.abort()
        self._received.put(None)  # ends the wait of another thread for an answer

    def _on_event(self, stream: libvirt.virStream, events: int, _opaque: Any) -> None:
        """Called in libvirt's event thread."""
        if events & libvirt.VIR_STREAM_EVENT_READABLE:
            try:
                data = stream.recv(65536)
            except libvirt.libvirtError as error:
                self._end(error.get_error_message() or self._reason)
                return
            if data == -2:
                return
            if data:
                self._unread += len(data)
                if self._unread > MAX_UNREAD:
                    self._end(f"the guest agent sent more than {MAX_UNREAD} bytes that nobody asked for")
                else:
                    self._received.put(data)
                return
        self._end(self._reason)

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._ended = True
        with suppress(libvirt.libvirtError):
            self._stream.eventRemoveCallback()
        self._received.put(None)

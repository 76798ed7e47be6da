"""qemu-guest-agent: it installs our own agent, and gives access to VSS in Windows guests."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.agent_answers import AnswerError, decoded
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError, HypervisorError
from quiesce.wire.schema import printable

CHUNK = 48 * 1024
"""Bytes written in one call. More would gain nothing: the agent reads its channel in small pieces."""
TIMEOUT_S = 30
"""Longest wait for an answer, in seconds, where the caller does not give a time."""
MAX_MESSAGE = 4096
"""Most characters of an error message that are kept; libvirt passes on the guest's own."""

_COMMAND_TIMEOUT = 112
"""VIR_ERR_AGENT_COMMAND_TIMEOUT, which older libvirt-python does not name."""
_NO_ANSWER = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,  # another command keeps the agent busy
    _COMMAND_TIMEOUT,
)
_GUESTS_OWN = re.compile(r"unable to execute QEMU agent command '[^']*': (.*)")


@dataclass(frozen=True)
class GuestVolume:
    """A mounted filesystem, with the names that the guest gives."""

    mountpoint: str
    fstype: str
    name: str


class QemuAgent:
    """Writes files, runs commands, and freezes in the guest, as root. Answers are cut to a bounded length and made
    printable."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def write_file(self, path: str, content: bytes, timeout: float = 300) -> None:
        """Raises AgentError after `timeout` seconds, and if the guest has not written all of it."""
        handle = self._call("guest-file-open", path=path, mode="w")
        deadline = time.monotonic() + timeout
        try:
            for start in range(0, len(content), CHUNK):
                piece = content[start : start + CHUNK]
                sent = base64.b64encode(piece).decode()
                written = self._call("guest-file-write", handle=handle, **{"buf-b64": sent})["count"]
                if written != len(piece) or time.monotonic() > deadline:
                    why = f"after {timeout:g} s" if written == len(piece) else f"{written} of {len(piece)} bytes of a piece"
                    raise AgentError(f"{path} was not written completely in {self._vm.name}: {why}", hint="is its disk full?")
        finally:
            self._call("guest-file-close", handle=handle)

    def run(self, *command: str, timeout: float = 60) -> tuple[int, str]:
        """Runs a command and returns its exit status and output. Raises AgentError after `timeout` seconds."""
        pid = self._call("guest-exec", path=command[0], arg=list(command[1:]), **{"capture-output": True})["pid"]
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self._call("guest-exec-status", pid=pid)
            if status["exited"]:
                return status["exitcode"], (status["out-data"] + status["err-data"]).strip()
            time.sleep(0.05)
        raise AgentError(f"{command[0]} in {self._vm.name} did not end within {timeout:g} s", hint="is the guest overloaded?")

    # -- about the agent and the guest

    def connected(self) -> bool:
        """Whether the agent has its port open. False, too, if the VM is gone."""
        try:
            port = domain_xml.channels(self._vm.domain.XMLDesc(0)).get(domain_xml.QEMU_AGENT_PORT)
        except libvirt.libvirtError:
            return False
        return port is not None and port.connected

    def version(self) -> str:
        return str(self._call("guest-info")["version"])

    def enabled(self) -> set[str]:
        """Names of the commands that the agent allows."""
        return {item["name"] for item in self._call("guest-info")["supported_commands"] if item["enabled"]}

    def os_id(self) -> str:
        """The id of the guest's operating system. Examples: `debian`, `mswindows`."""
        return str(self._call("guest-get-osinfo")["id"])

    def os_name(self) -> str:
        """The name of the guest's operating system. Example: `Windows Server 2022 Standard`."""
        return str(self._call("guest-get-osinfo")["pretty-name"])

    def volumes(self, most: int) -> list[GuestVolume]:
        """The mounted filesystems, at most `most` of them."""
        found = self._call("guest-get-fsinfo")[:most]
        return [GuestVolume(item["mountpoint"], item["type"], item["name"]) for item in found]

    # -- freezing: these raise AgentError, with the guest's message, if the agent refuses or there is no agent, and TimeoutError
    #    if the agent does not answer in time. After a TimeoutError the agent may still do what it was asked.

    def fsfreeze(self, timeout: float) -> int:
        """Freezes every filesystem; in Windows, has VSS hold all volumes. Returns the number of filesystems or volumes."""
        return int(self._ask("guest-fsfreeze-freeze", timeout))

    def fsthaw(self, timeout: float) -> int:
        """Thaws. Returns the number of filesystems that were thawed, 0 if none was frozen."""
        return int(self._ask("guest-fsfreeze-thaw", timeout))

    def freeze_status(self, timeout: float) -> str:
        """`frozen` or `thawed`, the agent's own state: in Windows it stays `frozen` until somebody thaws, although VSS releases
        the volumes after 10 s. A frozen agent refuses almost all other commands (qga/main.c)."""
        return str(self._ask("guest-fsfreeze-status", timeout))

    # -- calls

    def _call(self, command: str, **arguments: Any) -> Any:
        try:
            return self._ask(command, TIMEOUT_S, **arguments)
        except TimeoutError as error:
            raise self._absent(str(error)) from error

    def _ask(self, command: str, timeout: float, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            reply = libvirt_qemu.qemuAgentCommand(self._vm.domain, request, max(1, math.ceil(timeout)), 0)
            return decoded(command, reply)
        except AnswerError as error:
            raise self._improper(command, error) from error
        except libvirt.libvirtError as error:
            raise self._explained(command, error) from error

    def _explained(self, command: str, error: libvirt.libvirtError) -> Exception:
        message, code = printable((error.get_error_message() or str(error))[:MAX_MESSAGE]), error.get_error_code()
        if code in _NO_ANSWER and self.connected():
            return TimeoutError(message)
        if code in _NO_ANSWER or code == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED:
            return self._absent(message)
        if "frozen state" in message:
            return frozen(self._vm.name)
        if "has been disabled" in message or "not allowed" in message:
            return AgentError(
                f"qemu-guest-agent of {self._vm.name} does not allow {command}",
                hint=f"in the guest, remove {command} from block-rpcs (or add it to allow-rpcs) in the agent's configuration",
            )
        if words := _GUESTS_OWN.search(message):
            return AgentError(f"{command} failed in {self._vm.name}: {words[1].rstrip(': ')}")
        return HypervisorError(f"{command} failed in {self._vm.name}: {message}")

    def _absent(self, why: str) -> AgentError:
        return AgentError(
            f"qemu-guest-agent of {self._vm.name} does not answer: {why}",
            hint="install and start the package qemu-guest-agent in the guest",
        )

    def _improper(self, command: str, error: AnswerError) -> AgentError:
        return AgentError(
            f"qemu-guest-agent of {self._vm.name} gave an answer to {command} that is not valid: {error}",
            hint="install a current qemu-guest-agent in the guest",
        )


def frozen(vm_name: str) -> AgentError:
    """The error for a guest that somebody else has frozen."""
    return AgentError(
        f"qemu-guest-agent of {vm_name} is frozen: a backup is running, or ended without a thaw",
        hint=f"if no backup is running: virsh domfsthaw {vm_name}",
    )

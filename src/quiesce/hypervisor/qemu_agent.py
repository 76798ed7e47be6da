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
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError, HypervisorError
from quiesce.wire.schema import printable

CHUNK = 48 * 1024
"""Bytes written in one call. More would gain nothing: the agent reads its channel in small pieces."""
TIMEOUT_S = 30
"""Longest wait for an answer, in seconds, where the caller does not give a time."""
MAX_TEXT = 256
"""Most characters of a name that are kept."""

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

    def write_file(self, path: str, content: bytes) -> None:
        handle = self._call("guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(content), CHUNK):
                piece = base64.b64encode(content[start : start + CHUNK]).decode()
                self._call("guest-file-write", handle=handle, **{"buf-b64": piece})
        finally:
            self._call("guest-file-close", handle=handle)

    def run(self, *command: str, timeout: float = 60) -> tuple[int, str]:
        """Runs a command and returns its exit status and output. Raises AgentError after `timeout` seconds."""
        pid = self._call("guest-exec", path=command[0], arg=list(command[1:]), **{"capture-output": True})["pid"]
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self._call("guest-exec-status", pid=pid)
            if status.get("exited"):
                output = status.get("out-data", ""), status.get("err-data", "")
                text = "".join(base64.b64decode(part).decode(errors="replace") for part in output)
                return int(status.get("exitcode", 128)), printable(text.strip())
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
        return _text(self._object("guest-info").get("version"))

    def enabled(self) -> set[str]:
        """Names of the commands that the agent allows."""
        found = self._object("guest-info").get("supported_commands")
        listed = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return {_text(item.get("name")) for item in listed if item.get("enabled") is True}

    def os_id(self) -> str:
        """The id of the guest's operating system. Examples: `debian`, `mswindows`."""
        return _text(self._object("guest-get-osinfo").get("id"))

    def os_name(self) -> str:
        """The name of the guest's operating system. Example: `Windows Server 2022 Standard`."""
        return _text(self._object("guest-get-osinfo").get("pretty-name"))

    def volumes(self, most: int) -> list[GuestVolume]:
        """The mounted filesystems, at most `most` of them."""
        found = self._call("guest-get-fsinfo")
        listed = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return [GuestVolume(*(_text(item.get(key)) for key in ("mountpoint", "type", "name"))) for item in listed[:most]]

    # -- freezing: these raise AgentError, with the guest's message, if the agent refuses or there is no agent, and TimeoutError
    #    if the agent does not answer in time. After a TimeoutError the agent may still do what it was asked.

    def fsfreeze(self, timeout: float) -> int:
        """Freezes every filesystem; in Windows, has VSS hold all volumes. Returns the number of filesystems or volumes."""
        return self._number("guest-fsfreeze-freeze", timeout)

    def fsthaw(self, timeout: float) -> int:
        """Thaws. Returns the number of filesystems that were thawed, 0 if none was frozen."""
        return self._number("guest-fsfreeze-thaw", timeout)

    def freeze_status(self, timeout: float) -> str:
        """`frozen` or `thawed`, the agent's own state: in Windows it stays `frozen` until somebody thaws, although VSS releases
        the volumes after 10 s. A frozen agent refuses almost all other commands (qga/main.c)."""
        return _text(self._ask("guest-fsfreeze-status", timeout))

    # -- calls

    def _number(self, command: str, timeout: float) -> int:
        answer = self._ask(command, timeout)
        if type(answer) is not int:
            raise self._improper(command)
        return answer

    def _object(self, command: str) -> dict[str, Any]:
        answer = self._call(command)
        if not isinstance(answer, dict):
            raise self._improper(command)
        return answer

    def _call(self, command: str, **arguments: Any) -> Any:
        try:
            return self._ask(command, TIMEOUT_S, **arguments)
        except TimeoutError as error:
            raise self._absent(str(error)) from error

    def _ask(self, command: str, timeout: float, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            reply = libvirt_qemu.qemuAgentCommand(self._vm.domain, request, max(1, math.ceil(timeout)), 0)
            return json.loads(reply)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._improper(command) from error
        except libvirt.libvirtError as error:
            raise self._explained(command, error) from error

    def _explained(self, command: str, error: libvirt.libvirtError) -> Exception:
        message, code = printable(error.get_error_message() or str(error)), error.get_error_code()
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

    def _improper(self, command: str) -> AgentError:
        return AgentError(
            f"qemu-guest-agent of {self._vm.name} gave an answer to {command} that is not valid",
            hint="install a current qemu-guest-agent in the guest",
        )


def _text(value: Any) -> str:
    return printable(value[:MAX_TEXT]) if isinstance(value, str) else ""


def frozen(vm_name: str) -> AgentError:
    """The error for a guest that somebody else has frozen."""
    return AgentError(
        f"qemu-guest-agent of {vm_name} is frozen: a backup is running, or ended without a thaw",
        hint=f"if no backup is running: virsh domfsthaw {vm_name}",
    )

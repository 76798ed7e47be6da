"""qemu-guest-agent, which is used to install our own agent and for nothing else."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import libvirt
import libvirt_qemu

from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError, HypervisorError
from quiesce.wire.schema import printable

CHUNK = 48 * 1024
"""Bytes written at once; the agent's channel is read in small pieces, so more gains nothing."""
TIMEOUT_S = 30


class QemuAgent:
    """Files and commands in the guest, as root."""

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
        raise AgentError(f"{command[0]} in {self._vm.name} runs longer than {timeout:g} s")

    def _call(self, command: str, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            return json.loads(libvirt_qemu.qemuAgentCommand(self._vm.domain, request, TIMEOUT_S, 0))["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise AgentError(f"qemu-guest-agent of {self._vm.name} gave no proper answer to {command}") from error
        except libvirt.libvirtError as error:
            message = printable(error.get_error_message() or str(error))
            if error.get_error_code() in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                raise AgentError(
                    f"qemu-guest-agent of {self._vm.name} does not answer: {message}",
                    hint="install and start the package qemu-guest-agent in the guest",
                ) from error
            if "has been disabled" in message or "not allowed" in message:
                raise AgentError(
                    f"qemu-guest-agent of {self._vm.name} does not allow {command}",
                    hint="in the guest, remove it from block-rpcs (or add it to allow-rpcs) in the agent's configuration",
                ) from error
            raise HypervisorError(f"{command} in {self._vm.name}: {message}") from error

"""The agent's port, as far as no guest is needed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from lab.bare import Bare, directory
from quiesce.hypervisor.channel import ChannelTransport
from quiesce.hypervisor.vm import Vm
from quiesce.wire.messages import PORT_NAME


def test_nothing_is_sent_to_a_vm_that_has_ended() -> None:
    """Broken: libvirtd itself would die of it, with the operations of all other VMs."""
    with directory() as path:
        disk = (
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}/vda.qcow2'/>"
            "<target dev='vda' bus='virtio'/></disk>"
        )
        channel = f"<channel type='unix'><target type='virtio' name='{PORT_NAME}'/></channel>"
        bare = Bare(path, disk_xml=disk + channel)
        try:
            with contextlib.closing(Vm("qemu:///system", bare.name)) as vm:
                port = ChannelTransport(vm)
                os.kill(int(Path(f"/run/libvirt/qemu/{bare.name}.pid").read_text()), signal.SIGKILL)
                with pytest.raises(ConnectionError):
                    port.receive(30)
                for _ in range(3):
                    with pytest.raises(ConnectionError):
                        port.send(b"abort", 1)
                port.close()
            assert bare.connection.isAlive()
            assert bare.connection.getHostname()
        finally:
            bare.remove()

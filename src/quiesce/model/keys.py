"""Keys of VMs and hosts. They stay the same when a VM or a host gets another name. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class VmKey:
    """One VM of one host: the key under which the catalog records everything of the VM.

    A VM keeps its key when it, or its host, gets another name.
    """

    host: str
    """The host's id in the catalog (catalog/hosts.py), not its name."""
    uuid: str
    """The VM's UUID in libvirt."""

    def __str__(self) -> str:
        return f"{self.host}/{self.uuid}"


@dataclass(frozen=True)
class HostIdentity:
    """What libvirt reports of a host."""

    uuid: str
    """The UUID of the hardware or, if the hardware has none, of the operating system's installation."""
    name: str
    """The host name as libvirt resolves it. It may change, and it may switch between the short and the full form."""

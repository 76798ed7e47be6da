"""Names that outlive a rename. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class VmKey:
    """One VM of one host: the key of everything that is recorded of it.

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
    """What a host says of itself."""

    uuid: str
    """Stays as long as the host's hardware or, where that has no UUID, its installation."""
    name: str
    """As libvirt resolves it: it may change, and flip between the short and the full form."""

"""What an examination of VMs needs of the whole host: each thing is looked at once, however many VMs there are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from quiesce.context import Context
from quiesce.disks.neighbours import Neighbours, Seen, neighbours_of
from quiesce.disks.unneeded import Strays
from quiesce.hypervisor.connection import Host
from quiesce.repair.lost import Lost, all_lost


class Rounds:
    """As of the time when each thing was first asked for. Before anything is removed, that is looked at anew."""

    def __init__(self, context: Context, host: Host) -> None:
        self._context = context
        self.host = host
        self._looked: set[str] = set()

    @cached_property
    def lost(self) -> list[Lost]:
        return all_lost(self._context, self.host)

    @cached_property
    def strays(self) -> Strays:
        return Strays(self._context, self.host)

    @cached_property
    def _neighbours(self) -> Neighbours:
        return neighbours_of(self._context, self.host, (), None, Seen())

    def neighbours(self, places: Iterable[str]) -> Neighbours:
        """With all overlays in these places, and in those that were asked for before."""
        if new := set(places) - self._looked:
            found = self._context.storage(self.host).overlays(new, (), self._neighbours.raw())
            self._neighbours.add(found)
            self._looked |= new
        return self._neighbours

    def undefined(self, name: str) -> Lost | None:
        """The VM of this name or UUID, if the catalog has it and libvirt does not."""
        if self.host.has(name):
            return None
        return next((lost for lost in self.lost if name in (lost.key.uuid, lost.name)), None)

    def look_again(self) -> None:
        """Something was corrected: manifests may be gone, and VMs no longer lost."""
        for stale in ("lost", "strays"):
            self.__dict__.pop(stale, None)

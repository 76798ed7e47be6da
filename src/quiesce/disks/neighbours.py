"""What else there is on the host: the files that VMs' definitions name, and the overlays that others made of images.

To look around costs as much as there is, and other VMs' storages may not answer. So only an operation that removes or merges
images does it, and `doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Readers
from quiesce.model.events import Warned
from quiesce.storage.port import Overlays

FRESH_S = 30.0
"""How long definitions, and headers of files that are not new, are taken to be as they were seen, in seconds. An operation
looks around several times, and for minutes if it merges much."""


class Neighbours:
    """As of one time."""

    def __init__(self, files: Mapping[str, Mapping[str, bool]]) -> None:
        """`files`: as Host.named_files."""
        self._files = files
        self.unreadable: dict[str, str] = {}
        """Places that could not be looked at, and why."""
        self.readers = Readers()
        self._namers: dict[str, set[str]] = {}

    def named(self, besides: str | None = None) -> frozenset[str]:
        """The files that the definitions name, of other VMs than `besides`, a UUID."""
        return frozenset().union(*(names for uuid, names in self._files.items() if uuid != besides))

    def raw(self) -> frozenset[str]:
        """The files that every definition which names them declares raw."""
        other = {path for names in self._files.values() for path, raw in names.items() if not raw}
        return self.named() - other

    def add(self, found: Overlays) -> None:
        self.readers.add(found.below)
        self.unreadable.update(found.unreadable)
        if found.named:
            for uuid, names in self._files.items():
                for name in names.keys() & found.named.keys():
                    self._namers.setdefault(found.named[name], set()).add(uuid)

    def named_by_others(self, paths: Iterable[str], uuid: str) -> frozenset[str]:
        """Those of the images that the definition of another VM than this one names."""
        return frozenset(path for path in paths if self._namers.get(path, set()) - {uuid})


@dataclass
class Seen:
    """What an operation has seen of the other VMs."""

    files: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    at: float = -FRESH_S
    told: set[str] = field(default_factory=set)


_seen: WeakKeyDictionary[Vm, Seen] = WeakKeyDictionary()


def around(context: Context, vm: Vm, places: Iterable[str]) -> Neighbours:
    """The overlays in these places, and in the chains of other VMs. Warns, once an operation, of what does not answer: images
    there are taken not to be based on images of this VM."""
    return neighbours_of(context, vm.host, places, vm.uuid, _seen.setdefault(vm, Seen()))


def neighbours_of(context: Context, host: Host, places: Iterable[str], besides: str | None, seen: Seen) -> Neighbours:
    """As `around`, also for a VM that libvirt does not have, or for all VMs of the host. `besides`: UUID of the VM itself."""
    again = time.monotonic() - seen.at < FRESH_S
    if not again:
        seen.files, seen.at = host.named_files(), time.monotonic()
    found = Neighbours(seen.files)
    overlays = context.storage(host).overlays(places, found.named(besides), found.raw(), again=again)
    for place in sorted(overlays.silent.keys() - seen.told):
        seen.told.add(place)
        text = f"it was not looked whether the images of other VMs in {place} are overlays of what is examined"
        context.emit(Warned(f"{text}: {overlays.silent[place]}"))
    found.add(overlays)
    return found

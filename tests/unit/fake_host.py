"""A host in memory: images that lie on each other, the directories they are in, and one VM. It answers as libvirt and QEMU do,
where our operations ask them; what is above it is real."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.hypervisor import domain_xml, merge, volumes
from quiesce.hypervisor.storage_xml import Volume
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import BusyError, HypervisorError, NotFoundError
from quiesce.model.tree import Tree

UUID = "uuid-1"
CAPACITY = 2**30
BLOCK = 65536


@dataclass
class File:
    blocks: dict[int, str] = field(default_factory=dict)
    """What an image itself holds."""
    below: str | None = None
    format: str = "qcow2"
    content: bytes = b""
    """What a file that is no image holds."""
    written: int = 0


class FakeHost:
    """`on_step` is called before anything changes, and may raise."""

    name = "host1"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, File] = {}
        self.unreadable: dict[str, str] = {}
        self.open_elsewhere: set[str] = set()
        """Topmost images of other VMs that run."""
        self.free = 2**40
        self.on_step: Callable[[], None] = lambda: None
        self.vm: FakeVm | None = None
        self._clock = 0
        self._inside = False
        monkeypatch.setattr(volumes, "directory", self.directory)
        monkeypatch.setattr(merge, "Helper", FakeHelper)

    def files_of_others(self, _uuid: str) -> set[str]:
        return {image for path in self.open_elsewhere for image in self.chain(path)}

    def destroy_helpers(self, images: set[str]) -> None:
        pass

    # -- images

    def make(self, path: str, below: str | None = None, blocks: dict[int, str] | None = None, format: str = "qcow2") -> str:
        self.files[path] = File(dict(blocks or {}), below, format)
        self.touch(path)
        return path

    def touch(self, path: str) -> None:
        self._clock += 1
        self.files[path].written = self._clock

    def chain(self, path: str | None) -> list[str]:
        found: list[str] = []
        while path is not None and path not in found:
            found.append(path)
            path = self.files[path].below if path in self.files else None
        return found

    def read(self, path: str) -> dict[int, str]:
        """What a guest would."""
        found: dict[int, str] = {}
        for image in reversed(self.chain(path)):
            found |= self.files[image].blocks
        return found

    def commit(self, top: str, base: str, *, opener: str | None, between: Callable[[], None] = lambda: None) -> None:
        """Puts what is in `top` and above `base` into `base`. `opener`: the topmost image of whoever does it."""
        self.require_unlocked(base, opener)
        for block, value in sorted(self.above(top, base).items()):
            self.on_step()
            self.files[base].blocks[block] = value
            self.touch(base)
            between()

    def above(self, top: str, base: str) -> dict[int, str]:
        """What the images from `top` down hold, without `base`."""
        chain, found = self.chain(top), {}
        for image in reversed(chain[: chain.index(base)]):
            found |= self.files[image].blocks
        return found

    def point(self, opener: str, top: str, base: str) -> None:
        """What lies on `top` in the chain of `opener` lies on `base` from now on. No other chain changes."""
        chain = self.chain(opener)
        above = chain[chain.index(top) - 1]
        self.files[above].below = base
        self.touch(above)

    def require_unlocked(self, path: str, opener: str | None) -> None:
        """QEMU's image locks: nobody writes what another one has open."""
        running = {*self.open_elsewhere, *(self.vm.live.values() if self.vm and self.vm.live else ())}
        for other in running - {opener}:
            if path in self.chain(other):
                raise BusyError(f"{path} is in use by a VM or program")

    # -- directories

    @contextmanager
    def directory(self, _host: Any, path: str, **_: bool) -> Iterator[FakeDirectory]:
        assert not self._inside, "two directories at a time wait for each other for good"
        if path in self.unreadable:
            raise HypervisorError(self.unreadable[path])
        self._inside = True
        try:
            yield FakeDirectory(self, path)
        finally:
            self._inside = False


@dataclass
class FakeDirectory:
    host: FakeHost
    path: str

    def room(self) -> tuple[int, int]:
        return self.host.free, 2**40

    def usable(self) -> int:
        return self.host.free

    def require_room(self, needed: int, what: str) -> None:
        if self.host.free < needed:
            raise volumes.no_space(self.path, self.host.free, needed, what)

    def volumes(self) -> list[Volume]:
        return [self.volume(posixpath.basename(path)) for path in self.host.files if posixpath.dirname(path) == self.path]

    def volume(self, name: str) -> Volume:
        path = posixpath.join(self.path, name)
        file = self._file(name)
        return Volume(path, file.format, file.below, CAPACITY, len(file.blocks) * BLOCK, str(file.written))

    def create_overlay(self, name: str, capacity: int, backing_path: str, backing_format: str) -> str:
        self.host.on_step()
        assert (capacity, backing_format) == (CAPACITY, self.host.files[backing_path].format)
        return self.host.make(posixpath.join(self.path, name), backing_path)

    def write(self, name: str, content: bytes) -> str:
        self.delete(name)
        self.host.on_step()
        path = self.host.make(posixpath.join(self.path, name), format="raw")
        self.host.files[path].content = content
        return path

    def read(self, name: str) -> bytes:
        return self._file(name).content

    def delete(self, name: str) -> None:
        path = posixpath.join(self.path, name)
        if path in self.host.files:
            self.host.on_step()
            del self.host.files[path]

    def has(self, name: str) -> bool:
        return posixpath.join(self.path, name) in self.host.files

    def _file(self, name: str) -> File:
        try:
            return self.host.files[posixpath.join(self.path, name)]
        except KeyError:
            raise NotFoundError(f"there is no {self.path}/{name}") from None


def definition(disks: Mapping[str, str], more: str = "") -> str:
    listed = "".join(
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='{target}'/></disk>"
        for target, path in disks.items()
    )
    return f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><devices>{listed}</devices>{more}</domain>"


_disks = functools.cache(domain_xml.disks)
_nvram = functools.cache(domain_xml.nvram)


class FakeVm:
    """The part of `Vm` that operations use."""

    name = "web1"
    uuid = UUID

    def __init__(self, host: FakeHost, disks: Mapping[str, str], more: str = "") -> None:
        self.host = host
        self.xml = definition(disks, more)
        self.live: dict[str, str] | None = None
        """What it writes, while it runs."""
        self.clean = False
        """Its guest has powered it off, by libvirt's account."""
        self.on_stopped: Callable[[bool], None] = lambda _: None
        """Called with whether its guest has powered it off."""
        self.on_copied: Callable[[], None] = lambda: None
        """Called between any two pieces that are merged while it runs."""
        self.job_completes = True
        """What becomes of a merge in the middle of the running VM's chain whose owner is killed."""
        host.vm = self

    def facts(self) -> Facts:
        disks = domain_xml.disks(domain_xml.with_sources(self.xml, self.sources()))
        power = PowerState.OFF if self.live is None else PowerState.RUNNING
        return Facts(self.name, self.uuid, power, True, disks, {}, (), self.file_disks(next_start=True), 0, None, False)

    # -- as it is

    def definition(self) -> str:
        return self.xml

    def sources(self) -> dict[str, str]:
        return self.file_disks(next_start=True) if self.live is None else dict(self.live)

    def file_disks(self, *, next_start: bool = False) -> dict[str, str]:
        return {disk.target: str(disk.path) for disk in _disks(self.xml)} if next_start else self.sources()

    def disk_sources(self) -> dict[str, str]:
        return self.sources()

    def chain(self) -> set[str]:
        """A running VM's XML names all its chains, a stopped one's only the disks."""
        live = {image for path in (self.live or {}).values() for image in self.host.chain(path)}
        firmware = {_nvram(self.xml)} - {None}
        return set(self.file_disks(next_start=True).values()) | live | firmware

    def forget_chains(self, _images: set[str]) -> None:
        """Its definition never has any."""

    def capacity(self, _target: str) -> int:
        return CAPACITY

    def active(self) -> bool:
        return self.live is not None

    def reads_through(self, path: str) -> bool:
        return any(path in self.host.chain(head)[1:] for head in (self.live or {}).values())

    def shut_itself_down(self) -> bool:
        return self.live is None and self.clean

    # -- power

    def start(self) -> None:
        self.host.on_step()
        self.live = self.file_disks(next_start=True)

    def power_off(self, *, clean: bool = False) -> None:
        if self.live is not None:
            self.host.on_step()
            self.live, self.clean = None, clean
            self.on_stopped(clean)

    def write(self, target: str, block: int, value: str) -> None:
        """By its guest."""
        assert self.live is not None
        self.host.files[self.live[target]].blocks[block] = value
        self.host.touch(self.live[target])

    # -- disks

    def redefine(self, xml: str) -> None:
        self.host.on_step()
        self.xml = xml

    def switch(self, overlays: Mapping[str, str]) -> None:
        self.host.on_step()
        self._stand_on(overlays)

    def _stand_on(self, images: Mapping[str, str]) -> None:
        """libvirt changes the definition, too, where it named the same images."""
        assert self.live is not None
        named = self.file_disks(next_start=True)
        same = {target: path for target, path in images.items() if named[target] == self.live[target]}
        self.live |= images
        self.xml = domain_xml.with_sources(self.xml, same)

    def commit_into_base(self, target: str, base: str, *, progress: Any = merge.silent, helper: Any = None) -> None:
        head = self.sources()[target]
        assert base in self.host.chain(head)[1:]
        if self.live is None:
            (helper or FakeHelper(self.host)).commit_active(head, base, progress)
            self.redefine(domain_xml.with_sources(self.xml, {target: base}))
            return
        self.host.commit(head, base, opener=head, between=self.on_copied)
        self.host.on_step()
        self.host.files[base].blocks |= self.host.above(head, base)  # what the guest has written meanwhile
        self._stand_on({target: base})

    def commit(self, top: str, base: str, _progress: Any) -> None:
        assert self.live is not None
        head = next(head for head in self.live.values() if top in self.host.chain(head)[1:])
        try:
            self.host.commit(top, base, opener=head, between=self.on_copied)
            self.host.on_step()
        except BaseException as error:
            if isinstance(error, Exception) or not self.job_completes:
                raise
            self.host.files[base].blocks |= self.host.above(top, base)
            self.host.point(head, top, base)
            raise
        self.host.point(head, top, base)

    # -- what is left of others

    def cancel_merges(self, bases: set[str], targets: set[str]) -> None:
        pass

    def end_saving(self) -> None:
        pass


class FakeHelper:
    def __init__(self, host: FakeHost) -> None:
        self.host = host

    def __enter__(self) -> FakeHelper:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def commit_active(self, image: str, base: str, _progress: Any) -> None:
        self.host.require_unlocked(image, None)
        self.host.commit(image, base, opener=None)
        self.host.on_step()

    def commit(self, image: str, top: str, base: str, _progress: Any) -> None:
        assert top in self.host.chain(image)[1:]
        self.host.require_unlocked(image, None)
        self.host.commit(top, base, opener=None)
        self.host.on_step()
        self.host.point(image, top, base)


@dataclass(frozen=True)
class FakeContext(Context):
    fake: FakeVm

    @contextmanager
    def vm(self, name: str) -> Iterator[Any]:
        if name != self.fake.name:
            raise NotFoundError(f"no VM named {name!r}")
        yield self.fake

    @contextmanager
    def locked(self, _vm: Any, _verb: str) -> Iterator[None]:
        yield


class MemoryCatalog(Catalog):
    """All of it real, in memory and for this thread alone. `on_step` is called before anything is committed, `on_change` after
    it. What is asked most often is remembered until something changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._remembered: dict[tuple[str, ...], Any] = {}
        self.on_step: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        super().__init__("sqlite://")

    def lock_directory(self) -> Path:
        return self._directory

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        with super().transaction() as connection:
            raw: Any = connection.connection.dbapi_connection
            before = raw.total_changes
            yield connection
            changed = raw.total_changes != before
            if changed:
                self.on_step()
        if changed:
            self._remembered.clear()
            self.on_change()

    def tree(self, host: str, vm_uuid: str) -> Tree:
        return self._remember("tree", super().tree, host, vm_uuid)

    def images_made_for(self, host: str, vm_uuid: str) -> list[str]:
        return self._remember("made", super().images_made_for, host, vm_uuid)

    def merged_images(self, host: str, vm_uuid: str) -> set[str]:
        return self._remember("merged", super().merged_images, host, vm_uuid)

    def live_images(self, host: str, vm_uuid: str) -> set[str]:
        return self._remember("live", super().live_images, host, vm_uuid)

    def _remember(self, what: str, ask: Callable[[str, str], Any], *key: str) -> Any:
        if (what, *key) not in self._remembered:
            self._remembered[what, *key] = ask(*key)
        return self._remembered[what, *key]

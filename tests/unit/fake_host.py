"""A host in memory: its storage (quiesce/storage/memory.py), its VMs, and their guests (quiesce/guests/scripted.py). It answers
as libvirt and QEMU do, where our operations ask them; what is above it is real."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from quiesce.context import Context
from quiesce.guests.port import Guest
from quiesce.guests.scripted import ScriptedGuest
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.keys import VmKey
from quiesce.storage.memory import CAPACITY, MemoryStorage
from quiesce.storage.port import Storage

UUID = "uuid-1"


class FakeHost:
    """`on_step` is called before anything changes, and may raise."""

    id = name = "host1"

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.storage.open_by_others = self._open
        self.open_elsewhere: set[str] = set()
        """Topmost images of VMs that are not ours, and run."""
        self.helper: set[str] = set()
        """Images of a helper domain whose owner was killed in the middle of a merge."""
        self.vms: list[FakeVm] = []

    @property
    def on_step(self) -> Callable[[], None]:
        return self.storage.on_step

    @on_step.setter
    def on_step(self, hook: Callable[[], None]) -> None:
        self.storage.on_step = hook

    def disks(self, xml: str) -> tuple[domain_xml.Disk, ...]:
        return tuple(disk.spelled(self.storage.identity) for disk in _disks(xml))

    def files_of_others(self, uuid: str) -> set[str]:
        """A stopped VM's XML names only its disks."""
        files = {image for path in self.open_elsewhere for image in self.storage.chain(path)}
        for vm in self.vms:
            if vm.uuid != uuid:
                files |= vm.chain()
        return files

    def destroy_helpers(self, images: set[str]) -> None:
        if self.helper & images:
            self.helper.clear()

    def has(self, name: str) -> bool:
        return any(name in (vm.name, vm.uuid) for vm in self.vms)

    def domains(self) -> list[FakeDomain]:
        return [FakeDomain(vm.name, vm.uuid) for vm in self.vms]

    def definitions(self) -> list[str]:
        return [vm.xml for vm in self.vms]

    def define(self, xml: str) -> None:
        """A VM that is not there yet."""
        self.on_step()
        identity = domain_xml.identity(xml)
        FakeVm(self, {}, name=identity.name, uuid=identity.uuid).xml = xml

    def pool_directories(self) -> list[str]:
        return []

    def boot(self, _xml: str) -> tuple[str, Boot]:
        return "/usr/bin/qemu-system-x86_64", Boot()

    def what_does_not_fit(self, _xml: str) -> list[str]:
        return []

    def _open(self) -> set[str]:
        return self.open_elsewhere | self.helper | {path for vm in self.vms for path in (vm.live or {}).values()}


@dataclass(frozen=True)
class FakeDomain:
    """The part of a libvirt.virDomain that operations use."""

    _name: str
    _uuid: str

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's own name
        return self._uuid


def definition(disks: Mapping[str, str], more: str = "", name: str = "web1", uuid: str = UUID) -> str:
    listed = "".join(
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='{target}'/></disk>"
        for target, path in disks.items()
    )
    return f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><devices>{listed}</devices>{more}</domain>"


_disks = functools.cache(domain_xml.disks)
_nvram = functools.cache(domain_xml.nvram)


class FakeVm:
    """The part of `Vm` that operations use."""

    def __init__(
        self, host: FakeHost, disks: Mapping[str, str], more: str = "", *, name: str = "web1", uuid: str = UUID
    ) -> None:
        self.host = host
        self.storage = host.storage
        self.name = name
        self.uuid = uuid
        self.key = VmKey(host.id, uuid)
        self.xml = definition(disks, more, name, uuid)
        self.live: dict[str, str] | None = None
        """What it writes, while it runs."""
        self.clean = False
        """Its guest has powered it off, by libvirt's account."""
        self.plugged: dict[str, str] = {}
        """Disks that somebody plugged into the running VM."""
        self.on_switch: Callable[[], None] = lambda: None
        """Called before the disks are switched; may raise, or wait."""
        self.busy: Exception | None = None
        """What libvirt says while it has not returned from a switch."""
        self.on_stopped: Callable[[bool], None] = lambda _: None
        """Called with whether its guest has powered it off."""
        self.on_copied: Callable[[], None] = lambda: None
        """Called between any two pieces that are merged while it runs."""
        self.job_completes = True
        """What becomes of a merge in the middle of the running VM's chain whose owner is killed."""
        self.channels: dict[str, domain_xml.Channel] = {}
        self.paused = False
        self.snapshots = 0
        """Snapshots that libvirt itself keeps of it."""
        self.job: str | None = None
        self.managed_save = False
        self.on_save: Callable[[], None] = lambda: None
        """Called before the disks are switched and the memory saved; may raise."""
        self.jobs: dict[str, str] = {}
        """The base of each disk's merge whose owner was killed."""
        self.saving = False
        """libvirt is still saving the memory."""
        self.resumed_from = ""
        """The saved memory that it went on with last."""
        host.vms.append(self)

    def facts(self) -> Facts:
        disks = domain_xml.disks(domain_xml.with_sources(self.xml, self.sources()))
        power = PowerState.OFF if self.live is None else PowerState.PAUSED if self.paused else PowerState.RUNNING
        return Facts(
            name=self.name,
            uuid=self.uuid,
            power=power,
            persistent=True,
            disks=disks,
            channels=self.channels,
            passthrough=(),
            next_sources=self.file_disks(next_start=True),
            snapshots=self.snapshots,
            job=self.job,
            managed_save=self.managed_save,
        )

    # -- as it is

    def definition(self) -> str:
        return self.xml

    def sources(self) -> dict[str, str]:
        return self.file_disks(next_start=True) if self.live is None else self.live | self.plugged

    def file_disks(self, *, next_start: bool = False) -> dict[str, str]:
        return {disk.target: str(disk.path) for disk in self.host.disks(self.xml)} if next_start else self.sources()

    def disk_sources(self) -> dict[str, str]:
        return self.sources()

    def chain(self) -> set[str]:
        """A running VM's XML names all its chains, a stopped one's only the disks."""
        live = {image for path in (self.live or {}).values() for image in self.storage.chain(path)}
        firmware = {_nvram(self.xml)} - {None}
        return set(self.file_disks(next_start=True).values()) | live | firmware

    def forget_chains(self, _images: set[str]) -> None:
        """Its definition never has any."""

    def capacity(self, _target: str) -> int:
        return CAPACITY

    def active(self) -> bool:
        return self.live is not None

    def reads_through(self, path: str) -> bool:
        return any(path in self.storage.chain(head)[1:] for head in (self.live or {}).values())

    def shut_itself_down(self) -> bool:
        return self.live is None and self.clean

    # -- power

    def start(self) -> None:
        self.host.on_step()
        self.live = self.file_disks(next_start=True)

    def power_off(self, *, clean: bool = False) -> None:
        if self.live is not None:
            self.host.on_step()
            self.live, self.clean, self.plugged = None, clean, {}
            self.on_stopped(clean)

    def write(self, target: str, block: int, value: str) -> None:
        """By its guest."""
        assert self.live is not None
        self.storage.files[self.live[target]].blocks[block] = value
        self.storage.touch(self.live[target])

    # -- disks

    def redefine(self, xml: str) -> None:
        self.host.on_step()
        self.xml = xml

    def switch(self, overlays: Mapping[str, str]) -> None:
        self.host.on_step()
        self.on_switch()
        self._write_to(overlays)

    def memory_bytes(self) -> int:
        return 2**30

    def switch_with_memory(self, overlays: Mapping[str, str], memory: str) -> None:
        self.saving = True
        self.on_save()
        self.saving = False
        self.switch(overlays)
        self.storage.write(memory, self.xml.encode())

    def last_downtime_us(self) -> int:
        return 1000

    def job_progress(self) -> tuple[int, int]:
        return 0, 0

    def saved_identity(self, memory: str) -> domain_xml.Identity:
        return domain_xml.identity(self.storage.read(memory).decode())

    def resume_from(self, memory: str, sources: Mapping[str, str], _nvram: str | None) -> None:
        self.start()
        assert self.live == sources
        self.resumed_from = memory

    def _write_to(self, images: Mapping[str, str]) -> None:
        """libvirt changes the definition, too, where it named the same images."""
        assert self.live is not None
        named = self.file_disks(next_start=True)
        same = {target: path for target, path in images.items() if named[target] == self.live[target]}
        self.live |= images
        self.xml = domain_xml.with_sources(self.xml, same)

    def commit_into_base(self, target: str, base: str, _progress: Any) -> None:
        assert self.live is not None
        if target in self.jobs:
            raise HypervisorError(f"disk {target} already in active block job")
        head = self.live[target]
        assert base in self.storage.chain(head)[1:]
        self.storage.commit(head, base, opener=head, between=self.on_copied)
        self.host.on_step()
        self.storage.files[base].blocks |= self.storage.above(head, base)  # what the guest has written meanwhile
        self._write_to({target: base})

    def commit(self, top: str, base: str, _progress: Any) -> None:
        assert self.live is not None
        head = next(head for head in self.live.values() if top in self.storage.chain(head)[1:])
        try:
            self.storage.commit(top, base, opener=head, between=self.on_copied)
            self.host.on_step()
        except BaseException as error:
            if isinstance(error, Exception) or not self.job_completes:
                raise
            self.storage.files[base].blocks |= self.storage.above(top, base)
            self.storage.rebase(head, top, base)
            raise
        self.storage.rebase(head, top, base)

    # -- what is left of others

    def cancel_merges(self, bases: set[str], targets: set[str]) -> None:
        jobs = self.jobs.items()
        self.jobs = {target: base for target, base in jobs if base not in bases and target not in targets}

    def end_saving(self) -> None:
        if self.busy:
            raise self.busy
        self.saving = False


@dataclass(frozen=True)
class FakeContext(Context):
    fake: FakeHost = field(kw_only=True)
    guests: dict[str, ScriptedGuest] = field(default_factory=dict, kw_only=True)
    """By the name of the VM; any other VM is asked as a real one would be."""
    real_locks: bool = field(default=False, kw_only=True)

    @contextmanager
    def host(self) -> Iterator[Any]:
        yield self.fake

    @contextmanager
    def vm(self, name: str) -> Iterator[Any]:
        for vm in self.fake.vms:
            if name in (vm.name, vm.uuid):
                yield vm
                return
        raise NotFoundError(f"no VM named {name!r}")

    def storage(self, host: Any) -> Storage:
        return host.storage

    def guest(self, vm: Any, facts: Facts) -> AbstractContextManager[Guest]:
        if vm.name not in self.guests:
            return super().guest(vm, facts)
        self.guests[vm.name].closed = False
        return closing(self.guests[vm.name])

    @contextmanager
    def locked(self, vm: Any, verb: str) -> Iterator[None]:
        with super().locked(vm, verb) if self.real_locks else nullcontext():
            yield

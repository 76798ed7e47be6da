"""A host in memory: its storage (quiesce/storage/memory.py) and its VMs. It answers as libvirt and QEMU do, where our
operations ask them; what is above it is real."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from quiesce.hypervisor import domain_xml, tpm
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.events import Lifecycle, PowerChange
from quiesce.hypervisor.lookups import Presence
from quiesce.hypervisor.needs import Need
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.keys import VmKey
from quiesce.model.names import TRIAL_PREFIX
from quiesce.storage.memory import CAPACITY, MemoryStorage
from quiesce.wire.messages import PORT_NAME
from tests.unit.fake_libvirt import FakeDomain, connected_cards

UUID = "uuid-1"


class FakeHost:
    """`on_step` is called before anything changes, and may raise."""

    id = name = "host1"
    tpm_places = tpm.SYSTEM_PLACES
    local = False

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.storage.open_by_others = self._open
        self.open_elsewhere: set[str] = set()
        """Topmost images of VMs that are not ours, and run."""
        self.helper: set[str] = set()
        """Images of a helper domain whose owner was killed in the middle of a merge."""
        self.vms: list[FakeVm] = []
        self.memory = 2**34
        """Bytes that a new VM could have."""
        self.comes_up = True
        """Whether the guest of a copy that is booted aside starts its agent."""
        self.lacking: dict[str, Presence] = {}
        self.events: list[Lifecycle] = []
        """What libvirt has told of its VMs, and nobody has heard."""
        self.heeds_the_button = True
        """Whether the guest of a copy that is booted aside powers itself off when it is asked to."""

    @property
    def on_step(self) -> Callable[[], None]:
        return self.storage.on_step

    @on_step.setter
    def on_step(self, hook: Callable[[], None]) -> None:
        self.storage.on_step = hook

    def disks(self, xml: str) -> tuple[domain_xml.Disk, ...]:
        return tuple(disk.spelled(self.storage.identity) for disk in _disks(xml))

    def named_files(self) -> dict[str, dict[str, bool]]:
        """A stopped VM's XML names only its disks."""
        elsewhere = {image: False for path in self.open_elsewhere for image in self.storage.chain(path)}
        vms = {vm.uuid: {path: path in vm.raw_images() for path in vm.chain()} for vm in self.vms}
        return {"elsewhere": elsewhere} | vms

    def destroy_helpers(self, images: set[str]) -> None:
        if self.helper & images:
            self.helper.clear()

    def tpm_state(self, xml: str) -> str | None:
        return tpm.state_file(xml, self.tpm_places)

    def presence(self, need: Need) -> Presence:
        return self.lacking.get(need.name, Presence.THERE)

    def uuid_of(self, name: str) -> str:
        return next(vm.uuid for vm in self.vms if name in (vm.name, vm.uuid))

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

    def start_copy(self, xml: str) -> None:
        self.on_step()
        identity = domain_xml.identity(xml)
        copy = FakeVm(self, {}, name=identity.name, uuid=identity.uuid)
        copy.xml, copy.paused = xml, True
        copy.cards = connected_cards(xml)
        copy.live = copy.heads(next_start=True)

    def end_copy(self, uuid: str) -> None:
        self.on_step()
        for vm in [vm for vm in self.vms if vm.uuid == uuid and vm.name.startswith(TRIAL_PREFIX)]:
            self.vms.remove(vm)
            for card in vm.cards:
                card.close()

    def available_memory(self) -> int:
        return self.memory

    def pool_directories(self) -> list[str]:
        return []

    def boot(self, _xml: str) -> tuple[str, Boot]:
        return "/usr/bin/qemu-system-x86_64", Boot()

    def what_does_not_fit(self, _xml: str) -> list[str]:
        return []

    def _open(self) -> set[str]:
        return self.open_elsewhere | self.helper | {path for vm in self.vms for path in (vm.live or {}).values()}


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
        self.xml = domain_xml.with_sources(definition(disks, more, name, uuid), self._named(disks))
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
        self.clock = 0.0
        """What its guest's clock was set to last."""
        self.no_clock = ""
        """Why it cannot be set."""
        self.resumed_from = ""
        """The saved memory that it went on with last."""
        self.cards: list[socket.socket] = []
        """Those of a copy that is booted aside: what is sent there, a guest would have sent."""
        host.vms.append(self)

    def facts(self) -> Facts:
        if self not in self.host.vms:
            raise NotFoundError(f"reading the state of {self.name}: the VM is gone")
        disks = domain_xml.disks(domain_xml.with_sources(self.xml, self._named(self.sources())))
        power = PowerState.OFF if self.live is None else PowerState.PAUSED if self.paused else PowerState.RUNNING
        return Facts(
            name=self.name,
            uuid=self.uuid,
            power=power,
            persistent=True,
            disks=disks,
            channels=self.channels,
            passthrough=(),
            next_sources=self.heads(next_start=True),
            snapshots=self.snapshots,
            job=self.job,
            managed_save=self.managed_save,
        )

    # -- as it is

    def definition(self) -> str:
        return self.xml

    def sources(self) -> dict[str, str]:
        return self.heads(next_start=True) if self.live is None else self.live | self.plugged

    def heads(self, *, next_start: bool = False) -> dict[str, str]:
        named = {disk.target: str(disk.path) for disk in self.host.disks(self.xml) if disk.device == "disk"}
        return named if next_start else self.sources()

    def raw_images(self) -> set[str]:
        return domain_xml.raw_images(self.xml)

    def disk_sources(self) -> dict[str, str]:
        return self.sources()

    def chain(self) -> set[str]:
        """A running VM's XML names all its chains, a stopped one's only the disks."""
        live = {image for path in (self.live or {}).values() for image in self.storage.chain(path)}
        firmware = {_nvram(self.xml)} - {None}
        return set(self.heads(next_start=True).values()) | live | firmware

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

    def go_on(self) -> None:
        self.host.on_step()
        self.paused = False
        if self.host.comes_up:
            self.channels = {PORT_NAME: domain_xml.Channel(PORT_NAME, connected=True)}

    def start(self) -> None:
        self.host.on_step()
        self.live = self.heads(next_start=True)

    def power_off(self, *, clean: bool = False) -> None:
        if self.live is not None:
            self.host.on_step()
            self.live, self.clean, self.plugged = None, clean, {}
            self.on_stopped(clean)

    def shut_down(self) -> None:
        """Of a copy that is booted aside."""
        self.host.on_step()
        if self.host.heeds_the_button:
            self.host.vms.remove(self)
            self.host.events.append(Lifecycle(self.uuid, self.name, PowerChange.SHUT_DOWN, datetime.now(UTC)))

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

    def set_time(self, seconds: float) -> None:
        if self.no_clock:
            raise HypervisorError(self.no_clock)
        self.clock = seconds

    def resume_from(self, memory: str, sources: Mapping[str, str], _nvram: str | None, _empty: Collection[str] = ()) -> None:
        self.start()
        assert self.live == sources
        self.resumed_from = memory

    def _write_to(self, images: Mapping[str, str]) -> None:
        """libvirt changes the definition, too, where it named the same images."""
        assert self.live is not None
        named = self.heads(next_start=True)
        same = {target: path for target, path in images.items() if named[target] == self.live[target]}
        self.live |= images
        self.xml = domain_xml.with_sources(self.xml, self._named(same))

    def _named(self, images: Mapping[str, str]) -> dict[str, domain_xml.Source]:
        """These images as a definition names them."""
        files = self.storage.files
        return {
            target: domain_xml.Source(path, files[path].format if path in files else "qcow2", not self.storage.knows(path))
            for target, path in images.items()
        }

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

    def replace_head(self, target: str, overlay: str, _progress: Any) -> None:
        assert self.live is not None
        if target in self.jobs:
            raise HypervisorError(f"disk {target} already in active block job")
        self.jobs[target] = overlay  # it goes on if its owner is killed
        self.host.on_step()
        self.storage.copy_top(self.live[target], overlay)
        self.on_copied()
        self.host.on_step()
        self.storage.copy_top(self.live[target], overlay)  # what the guest has written meanwhile
        del self.jobs[target]
        self._write_to({target: overlay})
        self.host.on_step()

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

"""One virtual machine, through libvirt."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import libvirt

from quiesce.hypervisor import domain_xml, merge
from quiesce.hypervisor.connection import Host, by_uuid, translated
from quiesce.hypervisor.needs import NOTHING, Own, emptied, own
from quiesce.hypervisor.outside import outside
from quiesce.model.errors import BusyError, HypervisorError
from quiesce.model.keys import HostIdentity, VmKey


class PowerState(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    PANICKED = "panicked"
    """Its guest panicked, and libvirt keeps it as it is (`on_crash` is `preserve`)."""
    OTHER = "other"


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.PANICKED,
}


T = TypeVar("T")

TRIES = 3
"""How often the state of a VM is read anew that is started or stopped meanwhile."""
SETTLE_S = 0.05
"""The pause between two of these tries, in seconds."""
LOW_SHARES = 10
"""Of the processors, beside the 100 (control groups v2) or 1024 (v1) that other VMs have."""
END_TIMEOUT_S = 60.0
"""Longest wait for a snapshot that libvirt still takes for a killed process, in seconds."""


@dataclass(frozen=True)
class Facts:
    """What libvirt reports of a VM at one moment."""

    name: str
    uuid: str
    power: PowerState
    persistent: bool
    disks: tuple[domain_xml.Disk, ...]
    channels: Mapping[str, domain_xml.Channel]
    passthrough: tuple[str, ...]
    next_sources: Mapping[str, str | None]
    """The image of each disk, by target, in the definition that the next start uses."""
    snapshots: int
    """Number of libvirt's own snapshots of the VM."""
    job: str | None
    """A job of libvirt on the VM, as words for a message: a block job, a backup, a migration. None: no job."""
    managed_save: bool
    outside: tuple[str, ...] = ()
    """What of the VM is in no disk image: a sentence for each."""
    checkpoints: tuple[str, ...] = ()
    """Names of libvirt's own checkpoints of the VM, which incremental backups are based on: bitmaps in its images."""
    own: Own = NOTHING


def settled(name: str, ask: Callable[[], T]) -> T:
    """The answer about the state of the VM of this name. Raises HypervisorError, NotFoundError."""
    with translated(f"reading the state of {name}"):
        for _ in range(TRIES):
            with suppress(libvirt.libvirtError):  # it was started or stopped between two questions; or it is gone
                return ask()
            time.sleep(SETTLE_S)
        return ask()


def power_state(domain: libvirt.virDomain, code: int | None = None) -> PowerState:
    """`code`: a virDomainState, if libvirt was asked before."""
    power = _STATES.get(domain.state()[0] if code is None else code, PowerState.OTHER)
    return PowerState.OFF if power is PowerState.PANICKED and not domain.isActive() else power


class Vm:
    """A domain on its own connection, which `close` ends, or on one that others use as well."""

    def __init__(
        self, uri: str, name: str, register: Callable[[HostIdentity], str] = by_uuid, *, shared: Host | None = None
    ) -> None:
        self.host = shared or Host(uri, register)
        self._shared = shared is not None
        self.host.forget_spellings()  # of several names of an image, those of this VM come first
        try:
            self.domain = self.host.domain(name)
            self.name: str = self.domain.name()
            self.uuid: str = self.domain.UUIDString()
            self.key = VmKey(self.host.id, self.uuid)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._shared:
            self.host.close()

    def facts(self) -> Facts:
        """Raises HypervisorError, NotFoundError."""
        return settled(self.name, self._facts)

    def _facts(self) -> Facts:
        power = power_state(self.domain)
        xml = self.domain.XMLDesc(0)
        found = self.host.disks(xml)
        return Facts(
            name=self.domain.name(),
            uuid=self.uuid,
            power=power,
            persistent=bool(self.domain.isPersistent()),
            disks=found,
            channels=domain_xml.channels(xml),
            passthrough=domain_xml.passthrough_devices(xml),
            next_sources={
                disk.target: disk.path for disk in self.host.disks(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            },
            snapshots=self.domain.snapshotNum(),
            job=self._job(found) if self.domain.isActive() else None,
            managed_save=bool(self.domain.hasManagedSaveImage()),
            outside=outside(xml),
            checkpoints=self._checkpoints(),
            own=own(xml) if power is not PowerState.OFF else NOTHING,
        )

    def _checkpoints(self) -> tuple[str, ...]:
        with suppress(libvirt.libvirtError):  # drivers that have none
            return tuple(sorted(str(checkpoint.getName()) for checkpoint in self.domain.listAllCheckpoints()))
        return ()

    def _job(self, disks: tuple[domain_xml.Disk, ...]) -> str | None:
        for disk in disks:
            if disk.path and self.domain.blockJobInfo(disk.target, 0):
                return f"a block job on disk {disk.target}"
        kind = self.domain.jobStats().get("type", libvirt.VIR_DOMAIN_JOB_NONE)
        return "a job (backup, migration, dump or save)" if kind != libvirt.VIR_DOMAIN_JOB_NONE else None

    def definition(self) -> str:
        """The persistent definition, which the next start uses. It includes passwords (VIR_DOMAIN_XML_SECURE)."""
        with translated(f"reading the definition of {self.name}"):
            return str(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    def sources(self) -> dict[str, str]:
        """The image of each disk now, by target."""
        with translated(f"reading the disks of {self.name}"):
            return {disk.target: disk.path for disk in self.host.disks(self.domain.XMLDesc(0)) if disk.path}

    def disk_sources(self) -> dict[str, str | None]:
        """Like `sources`, without removable media, and with disks whose sources are not files (None)."""
        with translated(f"reading the disks of {self.name}"):
            found = self.host.disks(self.domain.XMLDesc(0))
            return {disk.target: disk.path for disk in found if not disk.removable}

    def heads(self, *, next_start: bool = False) -> dict[str, str]:
        """The image, a file or a block device, that the VM writes on each disk, by target: now, or with `next_start` after the
        next start. Leaves out read-only disks, removable media, and disks with other sources."""
        with translated(f"reading the disks of {self.name}"):
            return {
                disk.target: disk.path
                for disk in self.host.disks(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if next_start else 0))
                if disk.path and disk.source_type in ("file", "block") and disk.device == "disk" and not disk.read_only
            }

    def raw_images(self) -> set[str]:
        """The images, backing files included, that the VM's present definition, or that of its next start, declares raw."""
        with translated(f"reading the disks of {self.name}"):
            xmls = self.domain.XMLDesc(0), self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return {path for xml in xmls for path in self.host.raw_images(xml)}

    def chain(self) -> set[str]:
        """Every file that the VM's present definition, or that of its next start, names for disks and firmware, backing files
        included."""
        with translated(f"reading the disks of {self.name}"):
            xmls = self.domain.XMLDesc(0), self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        found = [disk for xml in xmls for disk in self.host.disks(xml) if not disk.removable]
        firmware = {self.host.spell(path) for xml in xmls if (path := domain_xml.nvram(xml))}
        return {path for disk in found for path in (disk.path, *disk.chain) if path} | firmware

    def capacity(self, target: str) -> int:
        """Virtual size of a disk, in bytes."""
        with translated(f"reading the size of disk {target}"):
            if not self.domain.isActive():
                disk = next(disk for disk in self.host.disks(self.domain.XMLDesc(0)) if disk.target == target)
                if disk.volume:  # blockInfo: "missing storage backend for 'volume' storage"
                    return self.host.volume_size(str(disk.path), disk.format)
            return int(self.domain.blockInfo(target, 0)[0])

    def switch(self, overlays: Mapping[str, str]) -> None:
        """Switches all disks in one QEMU transaction: from then on the VM writes to the prepared overlays.

        After a failure no disk has switched, because the transaction is atomic. If the connection was lost during the call,
        `sources` tells whether the disks switched. Does not use libvirt's QUIESCE flag: our agent, or VSS, freezes the guest.
        """
        with translated("switching to the overlays"):
            self._snapshot(overlays, None, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)

    def switch_with_memory(self, overlays: Mapping[str, str], memory: str) -> None:
        """Like `switch`, and saves memory and devices of the same instant to the file `memory`. The guest runs while most of
        the memory is saved."""
        with translated("saving memory and switching to the overlays"):
            self._snapshot(overlays, memory, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE)

    def _snapshot(self, overlays: Mapping[str, str], memory: str | None, kind: int) -> None:
        others = tuple(disk for disk in self._targets() if disk not in overlays)
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        self.domain.snapshotCreateXML(domain_xml.snapshot(overlays, others, memory), flags | kind)

    def _targets(self) -> list[str]:
        """Every disk, also one that has no file: libvirt would switch a disk that the request does not list."""
        return [disk.target for disk in domain_xml.disks(self.domain.XMLDesc(0))]

    def end_saving(self) -> None:
        """Aborts a snapshot that a killed process requested, and waits until libvirt has ended it: until then the VM may still
        switch. Raises BusyError after END_TIMEOUT_S."""
        with translated(f"waiting for a snapshot of {self.name} to end"):
            deadline = time.monotonic() + END_TIMEOUT_S
            while self.domain.isActive() and self._saving():
                with suppress(libvirt.libvirtError):
                    self.domain.abortJob()
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"libvirt is still taking a snapshot of {self.name}",
                        hint=f"try again when it has ended: virsh domjobinfo {self.name}",
                    )
                time.sleep(0.05)
            if self.domain.isActive() and (target := next(iter(self.sources()), None)):
                self.domain.blockInfo(target, 0)  # waits until libvirt's other calls on the VM have ended

    def _saving(self) -> bool:
        stats = self.domain.jobStats()
        return (
            stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE
            and stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT
        )

    def job_progress(self) -> tuple[int, int]:
        """(bytes done, bytes in all) of libvirt's job on the VM; (0, 0) if there is none."""
        with suppress(libvirt.libvirtError):
            stats = self.domain.jobStats()
            total = int(stats.get("data_total", 0))
            return total - int(stats.get("data_remaining", 0)), total
        return 0, 0

    def last_downtime_us(self) -> int:
        """How long the guest was paused at the end of the last save of its memory, in microseconds; 0 if not known."""
        with suppress(libvirt.libvirtError):
            return int(self.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED).get("downtime", 0)) * 1000
        return 0

    def memory_bytes(self) -> int:
        with translated(f"reading the memory size of {self.name}"):
            return int(self.domain.maxMemory()) * 1024

    def saved_identity(self, memory: str) -> domain_xml.Identity:
        """Name and UUID of the VM whose memory the file has."""
        with translated(f"reading {memory}"):
            return domain_xml.identity(str(self.host.connection.saveImageGetXMLDesc(memory, 0)))

    def resume_from(self, memory: str, sources: Mapping[str, str], nvram: str | None, empty: Collection[str] = ()) -> None:
        """Resumes the VM, which must be off, with saved memory and devices, and with other images of the same content. `empty`:
        the drives without their media."""
        with translated(f"resuming {self.name} from {memory}"):
            xml = str(self.host.connection.saveImageGetXMLDesc(memory, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))
            xml = domain_xml.moved(xml, identity=domain_xml.Identity(self.name, self.uuid), sources=sources, nvram=nvram)
            self.host.connection.restoreFlags(memory, emptied(xml, empty), 0)  # running or paused, as it was

    def set_time(self, seconds: float) -> None:
        """Sets the guest's clock (since 1970, in seconds), through qemu-guest-agent. Raises HypervisorError."""
        with translated(f"setting the clock of {self.name}"):
            whole = int(seconds)
            self.domain.setTime({"seconds": whole, "nseconds": int((seconds - whole) * 1e9)}, 0)

    def shut_itself_down(self) -> bool:
        """Whether libvirt remembers that the VM is off because its guest powered it off. libvirt forgets that when its daemon
        restarts."""
        with translated(f"reading the state of {self.name}"):
            state, reason = self.domain.state()
            return state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN

    def commit_into_base(self, target: str, base: str, progress: merge.ReportProgress) -> None:
        """Commits the image that the running VM writes on a disk into `base`, an image in its chain. The VM then writes `base`.

        Guarantees and errors as merge.commit_active.
        """
        merge.commit_active(self.host, self.domain, target, base, progress)

    def replace_head(self, target: str, overlay: str, progress: merge.ReportProgress) -> None:
        """Copies the image that the running VM writes on a disk into `overlay`, which the VM writes then. Guarantees and errors
        as merge.replace_head."""
        merge.replace_head(self.host, self.domain, target, overlay, progress)

    def commit(self, top: str, base: str, progress: merge.ReportProgress) -> None:
        """Commits `top` into `base`, both in the middle of the running VM's chain. Guarantees and errors as merge.commit."""
        with translated(f"reading the disks of {self.name}"):
            found = self.host.disks(self.domain.XMLDesc(0))
        target = next((disk.target for disk in found if top in disk.chain and base in disk.chain), None)
        if target is None:
            raise HypervisorError(
                f"{top} cannot be merged into {base} in {self.name}: no disk of the VM has both as backing files any more"
            )
        merge.commit(self.host, self.domain, target, top, base, progress)

    def forget_chains(self, images: Set[str]) -> None:
        """Removes these images from the <backingStore> elements of the definition. The VM must be off.

        libvirt writes the chain into the definition when it merges, and believes it instead of the images' headers; a merge in
        a helper domain changes the headers only. A saved memory image (managed save) has a definition of its own, which cannot
        be changed: while there is one, nothing is removed.
        """
        if self.domain.hasManagedSaveImage():
            return
        xml = domain_xml.without_chains(self.definition(), images)
        if xml:
            self.redefine(xml)

    def cancel_merges(self, bases: set[str], targets: set[str]) -> None:
        """Aborts merges and copies that a killed process left running: active commits or copies into one of `bases`, and other
        commits on one of the disks `targets`. The VM keeps an intact chain."""
        with translated(f"cancelling merges of {self.name}"):
            if not self.domain.isActive():
                return
            for disk in self.host.disks(self.domain.XMLDesc(0)):
                if disk.mirror in bases or (disk.target in targets and not disk.mirrored):
                    merge.end_job(self.domain, disk.target)

    def reads_through(self, path: str) -> bool:
        """Whether the VM runs and has this image open as a backing file."""
        with translated(f"reading the disks of {self.name}"):
            return bool(self.domain.isActive()) and any(path in disk.chain for disk in self.host.disks(self.domain.XMLDesc(0)))

    def active(self) -> bool:
        with translated(f"asking whether {self.name} runs"):
            return bool(self.domain.isActive())

    def power_off(self) -> None:
        """Ends the VM at once, as a power failure would. Does nothing if the VM is off."""
        with translated(f"stopping {self.name}"):
            if self.domain.isActive():
                self.domain.destroy()

    def redefine(self, xml: str) -> None:
        with translated(f"defining {self.name}"):
            self.domain = self.host.connection.defineXML(xml)

    def shut_down(self) -> None:
        """Asks the guest to power itself off, through qemu-guest-agent or by the power button. Does not wait for it. If the
        guest cannot be asked now, or is off, does nothing."""
        with suppress(libvirt.libvirtError):
            self.domain.shutdown()

    def go_on(self) -> None:
        """Lets a paused VM run, at low priority where the host has priorities for VMs."""
        with translated(f"starting {self.name}"):
            with suppress(libvirt.libvirtError):
                self.domain.setSchedulerParameters({"cpu_shares": LOW_SHARES})
            self.domain.resume()

    def start(self) -> None:
        with translated(f"starting {self.name}"):
            self.domain.create()

    def attach(self, device_xml: str) -> None:
        """Adds a device to the running VM and to its definition."""
        with translated(f"adding a device to {self.name}"):
            flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
            if self.domain.isActive():
                flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
            self.domain.attachDeviceFlags(device_xml, flags)

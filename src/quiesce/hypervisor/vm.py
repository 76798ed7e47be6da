"""One virtual machine, through libvirt."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass

import libvirt

from quiesce.hypervisor import domain_xml, merge
from quiesce.hypervisor.connection import Host, by_uuid, translated
from quiesce.model.errors import BusyError, HypervisorError
from quiesce.model.keys import HostIdentity, VmKey


class PowerState(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    OTHER = "other"


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.OFF,
}


TRIES = 3
"""How often the state of a VM is read anew that is started or stopped meanwhile."""
END_TIMEOUT_S = 60.0
"""Longest wait for something libvirt is doing for a requester that is gone, in seconds."""


@dataclass(frozen=True)
class Facts:
    """What libvirt says of a VM at one moment."""

    name: str
    uuid: str
    power: PowerState
    persistent: bool
    disks: tuple[domain_xml.Disk, ...]
    channels: Mapping[str, domain_xml.Channel]
    passthrough: tuple[str, ...]
    next_sources: Mapping[str, str | None]
    """The image of each disk in the definition a later start will use."""
    snapshots: int
    """Snapshots libvirt itself keeps of it."""
    job: str | None
    """A job that would be in the way: a block job, a backup, a migration."""
    managed_save: bool


class Vm:
    """A domain on its own connection, which `close` ends."""

    def __init__(self, uri: str, name: str, register: Callable[[HostIdentity], str] = by_uuid) -> None:
        self.host = Host(uri, register)
        try:
            self.domain = self.host.domain(name)
            self.name: str = self.domain.name()
            self.uuid: str = self.domain.UUIDString()
            self.key = VmKey(self.host.id, self.uuid)
        except BaseException:
            self.host.close()
            raise

    def close(self) -> None:
        self.host.close()

    def facts(self) -> Facts:
        """Raises HypervisorError, NotFoundError."""
        with translated(f"reading the state of {self.name}"):
            for _ in range(TRIES):
                with suppress(libvirt.libvirtError):  # it was started or stopped between two questions; or it is gone
                    return self._facts()
            return self._facts()

    def _facts(self) -> Facts:
        power = _STATES.get(self.domain.state()[0], PowerState.OTHER)
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
            job=self._job(found) if power in (PowerState.RUNNING, PowerState.PAUSED) else None,
            managed_save=bool(self.domain.hasManagedSaveImage()),
        )

    def _job(self, disks: tuple[domain_xml.Disk, ...]) -> str | None:
        for disk in disks:
            if disk.path and self.domain.blockJobInfo(disk.target, 0):
                return f"a block job on disk {disk.target}"
        kind = self.domain.jobStats().get("type", libvirt.VIR_DOMAIN_JOB_NONE)
        return "a job (backup, migration, dump or save)" if kind != libvirt.VIR_DOMAIN_JOB_NONE else None

    def definition(self) -> str:
        """The persistent definition, which a later start will use."""
        with translated(f"reading the definition of {self.name}"):
            return str(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    def sources(self) -> dict[str, str]:
        """The image each disk writes now."""
        with translated(f"reading the disks of {self.name}"):
            return {disk.target: disk.path for disk in self.host.disks(self.domain.XMLDesc(0)) if disk.path}

    def disk_sources(self) -> dict[str, str | None]:
        """Like `sources`, without media that can be taken out, and with disks that are no files."""
        with translated(f"reading the disks of {self.name}"):
            found = self.host.disks(self.domain.XMLDesc(0))
            return {disk.target: disk.path for disk in found if disk.device not in ("cdrom", "floppy")}

    def file_disks(self, *, next_start: bool = False) -> dict[str, str]:
        """The image file each disk writes now, or will after the next start; read-only disks, media that can be taken out,
        and disks that are no files, are left out."""
        with translated(f"reading the disks of {self.name}"):
            return {
                disk.target: disk.path
                for disk in self.host.disks(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if next_start else 0))
                if disk.path and disk.source_type == "file" and disk.device == "disk" and not disk.read_only
            }

    def chain(self) -> set[str]:
        """Every file named for the VM's disks and firmware, now or when it is started next, those below others included."""
        with translated(f"reading the disks of {self.name}"):
            xmls = self.domain.XMLDesc(0), self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        found = [disk for xml in xmls for disk in self.host.disks(xml) if disk.device not in ("cdrom", "floppy")]
        firmware = {self.host.spell(path) for xml in xmls if (path := domain_xml.nvram(xml))}
        return {path for disk in found for path in (disk.path, *disk.chain) if path} | firmware

    def capacity(self, target: str) -> int:
        """Virtual size of a disk of the running VM, in bytes."""
        with translated(f"reading the size of disk {target}"):
            return int(self.domain.blockInfo(target, 0)[0])

    def switch(self, overlays: Mapping[str, str]) -> None:
        """All disks in one transaction: from now on the VM writes to the prepared overlays.

        After a failure no disk has switched (QEMU's transaction is atomic), unless the connection was lost on the way:
        `sources` tells. Never QUIESCE: the guest is in our own hands.
        """
        with translated("switching to the differencing disks"):
            self._snapshot(overlays, None, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)

    def switch_with_memory(self, overlays: Mapping[str, str], memory: str) -> None:
        """Like `switch`, with memory and devices of the same instant saved to the file `memory`. The guest runs while most
        of it is written."""
        with translated("saving memory and switching to the differencing disks"):
            self._snapshot(overlays, memory, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE)

    def _snapshot(self, overlays: Mapping[str, str], memory: str | None, kind: int) -> None:
        others = tuple(disk for disk in self.sources() if disk not in overlays)
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        self.domain.snapshotCreateXML(domain_xml.snapshot(overlays, others, memory), flags | kind)

    def end_saving(self) -> None:
        """Ends a snapshot whose requester is gone, and waits until libvirt is done with it: until then it may still switch."""
        with translated(f"waiting for a snapshot of {self.name} to end"):
            deadline = time.monotonic() + END_TIMEOUT_S
            while self.domain.isActive() and self._saving():
                with suppress(libvirt.libvirtError):
                    self.domain.abortJob()
                if time.monotonic() > deadline:
                    raise BusyError(f"libvirt is still taking a snapshot of {self.name}", hint="virsh domjobinfo")
                time.sleep(0.05)
            if self.domain.isActive() and (target := next(iter(self.sources()), None)):
                self.domain.blockInfo(target, 0)  # waits for whatever holds the VM

    def _saving(self) -> bool:
        stats = self.domain.jobStats()
        return (
            stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE
            and stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT
        )

    def job_progress(self) -> tuple[int, int]:
        """(done, in all) of what libvirt does with the VM, in bytes; (0, 0) if nothing."""
        with suppress(libvirt.libvirtError):
            stats = self.domain.jobStats()
            total = int(stats.get("data_total", 0))
            return total - int(stats.get("data_remaining", 0)), total
        return 0, 0

    def last_downtime_us(self) -> int:
        """How long the guest stood still at the end of the last saving of its memory, in microseconds; 0 if not known."""
        with suppress(libvirt.libvirtError):
            return int(self.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED).get("downtime", 0)) * 1000
        return 0

    def memory_bytes(self) -> int:
        with translated(f"reading the memory size of {self.name}"):
            return int(self.domain.maxMemory()) * 1024

    def saved_identity(self, memory: str) -> domain_xml.Identity:
        """Whose memory the file holds."""
        with translated(f"reading {memory}"):
            return domain_xml.identity(str(self.host.connection.saveImageGetXMLDesc(memory, 0)))

    def resume_from(self, memory: str, sources: Mapping[str, str], nvram: str | None) -> None:
        """Starts the VM, which is off, with saved memory and devices, on other images with the same content."""
        with translated(f"resuming {self.name} from {memory}"):
            xml = str(self.host.connection.saveImageGetXMLDesc(memory, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))
            xml = domain_xml.moved(xml, identity=domain_xml.Identity(self.name, self.uuid), sources=sources, nvram=nvram)
            self.host.connection.restoreFlags(memory, xml, 0)  # running or paused, as it was

    def shut_itself_down(self) -> bool:
        """The VM is off because its guest powered it off, by libvirt's account, which libvirt loses when it is restarted."""
        with translated(f"reading the state of {self.name}"):
            state, reason = self.domain.state()
            return state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN

    def commit_into_base(self, target: str, base: str, progress: merge.ReportProgress) -> None:
        """Commits what the running VM writes on a disk into the image `base` in its chain, which it then writes.

        After an error the VM still writes where it did, on a good chain.
        """
        merge.commit_active(self.host, self.domain, target, base, progress)

    def commit(self, top: str, base: str, progress: merge.ReportProgress) -> None:
        """Merges `top` into `base` below it, both in the middle of the running VM's chain."""
        with translated(f"reading the disks of {self.name}"):
            found = self.host.disks(self.domain.XMLDesc(0))
        target = next((disk.target for disk in found if top in disk.chain and base in disk.chain), None)
        if target is None:
            raise HypervisorError(f"{self.name} no longer reads through {top} and {base}")
        merge.commit(self.host, self.domain, target, top, base, progress)

    def forget_chains(self, images: Set[str]) -> None:
        """Has the definition of the VM that is off name none of these as what lies below another image.

        Libvirt writes the chain down when it merges, and would believe that over the images' own headers, which a merge by
        others changes. Saved memory names a chain of its own, which nothing can change: as long as there is such, all stays.
        """
        if self.domain.hasManagedSaveImage():
            return
        xml = domain_xml.without_chains(self.definition(), images)
        if xml:
            self.redefine(xml)

    def cancel_merges(self, bases: set[str], targets: set[str]) -> None:
        """Ends merges that their owner left behind: those of the active layer into one of these images, and any other commit on
        one of these disks. The VM stays on a good chain."""
        with translated(f"cancelling merges of {self.name}"):
            if not self.domain.isActive():
                return
            for disk in self.host.disks(self.domain.XMLDesc(0)):
                if disk.mirror in bases or (disk.target in targets and not disk.mirrored):
                    merge.end_job(self.domain, disk.target)

    def reads_through(self, path: str) -> bool:
        """The VM runs, and has this image open below one it writes."""
        with translated(f"reading the disks of {self.name}"):
            return bool(self.domain.isActive()) and any(path in disk.chain for disk in self.host.disks(self.domain.XMLDesc(0)))

    def active(self) -> bool:
        with translated(f"asking whether {self.name} runs"):
            return bool(self.domain.isActive())

    def power_off(self) -> None:
        """Ends the VM at once, as a power failure would. Nothing happens if it is off."""
        with translated(f"stopping {self.name}"):
            if self.domain.isActive():
                self.domain.destroy()

    def redefine(self, xml: str) -> None:
        with translated(f"defining {self.name}"):
            self.domain = self.host.connection.defineXML(xml)

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

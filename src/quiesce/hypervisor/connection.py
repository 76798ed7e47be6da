"""Connections to libvirt daemons, and the event loop that all of them share."""

from __future__ import annotations

import functools
import os
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import libvirt

from quiesce.hypervisor import domain_xml, storage_xml, tpm
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.lookups import Presence, presence
from quiesce.hypervisor.needs import Need
from quiesce.local.client import LIMIT_S, OTHERS_LIMIT_S, files, not_answering
from quiesce.local.spelling import Spelling, named_as_device
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.keys import HostIdentity
from quiesce.model.names import HELPER_PREFIX, TRIAL_PREFIX

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 5
_HARDWARE_UUID = Path("/sys/class/dmi/id/product_uuid")
_MACHINE_ID = Path("/etc/machine-id")
_SLASHES = re.compile("//+")
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@functools.cache
def _start_event_loop() -> None:
    """Starts libvirt's event loop in a thread of its own, before the first connection: without the loop, streams move no data
    and keepalives get no answer. libvirtaio is not used because it is not safe together with calls from worker threads."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns an error of libvirt into a HypervisorError, or into a NotFoundError if the VM is gone. `what`: what was being
    done."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFoundError(f"{what}: the VM is gone", hint="`quiesce vms` lists the VMs") from error
        raise HypervisorError(f"{what}: {error.get_error_message() or error}") from error


def by_uuid(identity: HostIdentity) -> str:
    """The id of a host for callers without a catalog."""
    return identity.uuid


class Host:
    """One connection to a libvirt daemon. The daemon serves five calls of a connection at a time, so each VM has its own."""

    def __init__(self, uri: str, register: Callable[[HostIdentity], str] = by_uuid) -> None:
        """`register` returns the host's id in the catalog. Raises HypervisorError."""
        self.uri = uri
        self._spelling = Spelling()
        _start_event_loop()
        try:
            self.connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"cannot connect to libvirt at {uri}: {error.get_error_message()}",
                hint="is libvirtd (or virtqemud) running, and may you use it? try: virsh -c " + uri + " list",
            ) from error
        with suppress(libvirt.libvirtError):  # drivers that use no network have no keepalive
            self.connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        with translated("asking libvirt which host this is"):
            self.local = "://" not in uri or not self.connection.getURI().partition("://")[2].partition("/")[0]
            self.session = self.connection.getURI().partition("?")[0].endswith("/session")
            """Whether the daemon is one of a user, without the rights of root."""
            self.name = str(self.connection.getHostname())
            self.identity = HostIdentity(self._uuid(), self.name)
            self.id = register(self.identity)
        self.direct = self.local and (self.session or os.geteuid() == 0)
        """Whether this process has the rights of the daemon on the same files."""

    def _uuid(self) -> str:
        """A UUID that stays the same. If the hardware has none, libvirt makes up a new one at each start of its daemon
        (virGetHostUUID in src/util/viruuid.c); on this machine, /etc/machine-id is used then."""
        if self.local and not _HARDWARE_UUID.exists():
            with suppress(OSError):
                return _MACHINE_ID.read_text().strip()
        return storage_xml.host_uuid(str(self.connection.getCapabilities()))

    @property
    def tpm_places(self) -> str | None:
        """The directory in which libvirt keeps the state of emulated TPMs; None if only the daemon knows it. A user's daemon
        has it below that user's home; root's is the system daemon."""
        if not self.session or (self.local and os.geteuid() == 0):
            return tpm.SYSTEM_PLACES
        configuration = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
        return f"{configuration}/libvirt/qemu/swtpm" if self.local else None

    def tpm_state(self, xml: str) -> str | None:
        """The file with the state of the VM's emulated TPM, as hypervisor.tpm.state_file."""
        return tpm.state_file(xml, self.tpm_places)

    def spell(self, path: str) -> str:
        """The one spelling of a file's path (local/spelling.py). Of several names of a file, the first that is asked for
        counts. On a remote host, whose files this process cannot look at, only `//` is resolved; so it is for a device. Raises
        HypervisorError if the storage does not answer."""
        if not path.startswith("/"):
            return path
        if (found := self.spell_together([path], LIMIT_S).get(path)) is None:
            raise not_answering(posixpath.dirname(path))
        return found

    def forget_spellings(self) -> None:
        self._spelling = Spelling()

    def is_device(self, path: str) -> bool:
        """Whether the path is one of a block device, also through a link. On a remote host, or if the storage does not answer,
        the path alone decides."""
        if not self.local or not path.startswith("/"):
            return named_as_device(path)
        return self._spelling.is_device(path, LIMIT_S)

    def spell_together(self, paths: Iterable[str], limit: float) -> dict[str, str]:
        """The spelling of each of these paths, by path; without those on storages that do not answer within `limit` seconds."""
        plain = {path: _SLASHES.sub("/", path) for path in paths}
        if not self.local:
            return plain
        spelled = self._spelling.of([text for text in plain.values() if text.startswith("/")], limit)
        return {path: spelled.get(text, text) for path, text in plain.items() if text in spelled or not text.startswith("/")}

    def rights(self, path: str) -> tuple[int, int, int] | None:
        """Owner, group and mode of a file or device of this machine; None if it cannot be looked at."""
        with suppress(OSError):
            return files().one("rights", path)
        return None

    def disks(self, xml: str) -> tuple[domain_xml.Disk, ...]:
        """The disks of a definition, with every path in its one spelling. A disk of type volume is shown as the file or the
        block device that the volume is; it stays of type volume if libvirt cannot tell, because its pool is not active. A
        medium whose storage does not answer keeps its path as it is written: no operation needs it."""
        return tuple(
            self._resolved(disk).spelled(self._spell_medium if disk.removable else self.spell) for disk in domain_xml.disks(xml)
        )

    def _spell_medium(self, path: str) -> str:
        return self.spell_together([path], OTHERS_LIMIT_S).get(path, path)

    def volume_size(self, path: str, format: str) -> int:
        """Virtual size of an image that is a volume of a pool, in bytes. libvirt reads it from the first bytes, which a guest
        can write in a raw image: there it is the length."""
        volume = self.connection.storageVolLookupByPath(path)
        if format == "raw":
            return int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])
        return int(volume.info()[1])

    def raw_images(self, xml: str) -> set[str]:
        """The images of disks, backing files included, that a definition declares raw, in their one spelling."""
        named = {path for disk in domain_xml.disks(xml) if not disk.removable for path in (disk.path, *disk.chain)}
        found = {self.spell(path) for path in domain_xml.raw_images(xml) & named}
        volumes = (disk for disk in self.disks(xml) if disk.volume and not disk.removable)
        return found | {disk.path for disk in volumes if disk.path and disk.format == "raw"}

    def _resolved(self, disk: domain_xml.Disk) -> domain_xml.Disk:
        if not disk.volume or disk.path:
            return disk
        if (path := self.volume_path(*disk.volume)) is None:
            return disk
        return replace(disk, source_type="block" if self.is_device(path) else "file", path=path)

    def volume_path(self, pool: str, name: str) -> str | None:
        """The path of the file or block device that a volume is; None if libvirt cannot tell. libvirt does not look at the
        storage for that."""
        with suppress(libvirt.libvirtError):
            path = str(self.connection.storagePoolLookupByName(pool).storageVolLookupByName(name).path())
            return path if path.startswith("/") else None
        return None

    def domain(self, name: str) -> libvirt.virDomain:
        """The domain of this name or UUID. Raises NotFoundError."""
        ways = [self.connection.lookupByName, self.connection.lookupByUUIDString]
        if _UUID.fullmatch(name):
            ways.reverse()  # it is one, almost always
        for look_up in ways:
            try:
                return look_up(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise HypervisorError(f"looking up {name}: {error.get_error_message()}") from error
        raise NotFoundError(f"no VM named {name!r} on {self.name}", hint="`quiesce vms` lists the VMs")

    def uuid_of(self, name: str) -> str:
        """The UUID of the VM of this name or UUID. Raises NotFoundError."""
        return str(self.domain(name).UUIDString())

    def has(self, name: str) -> bool:
        """Whether there is a VM of this name or UUID."""
        try:
            self.domain(name)
        except NotFoundError:
            return False
        return True

    def domains(self) -> list[libvirt.virDomain]:
        with translated("listing VMs"):
            return sorted(self.connection.listAllDomains(), key=lambda domain: str(domain.name()))

    def define(self, xml: str) -> None:
        with translated("defining a VM"):
            self.connection.defineXML(xml)

    def start_copy(self, xml: str) -> None:
        """Starts a transient VM, paused. It ends with this connection, and nothing of its definition is left then."""
        with translated("starting a copy of the checkpoint"):
            self.connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def end_copy(self, uuid: str) -> None:
        """Ends the copy of this UUID. Does nothing if it is gone, or is no copy of ours."""
        with translated("ending a copy of a checkpoint"):
            for domain in self.connection.listAllDomains():
                if domain.UUIDString() == uuid and str(domain.name()).startswith(TRIAL_PREFIX):
                    with suppress(libvirt.libvirtError):  # it ended meanwhile
                        domain.destroy()

    def available_memory(self) -> int:
        """Bytes that the host could give to a new VM, caches included."""
        with translated("asking for the host's memory"):
            stats = self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return 1024 * sum(int(stats.get(name, 0)) for name in ("free", "buffers", "cached"))

    def definitions(self) -> list[str]:
        """The persistent definition of every VM, which its next start uses."""
        found = []
        for domain in self.domains():
            with suppress(libvirt.libvirtError):  # it was undefined meanwhile
                found.append(str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
        return found

    def named_files(self) -> Mapping[str, Mapping[str, bool]]:
        """By UUID, every image that the present and the next definition of each VM name, as they are written there, and whether
        it is declared raw wherever it is named."""
        found: dict[str, dict[str, bool]] = {}
        for domain in self.domains():
            with suppress(libvirt.libvirtError):  # it was undefined meanwhile
                if not str(domain.name()).startswith(HELPER_PREFIX):
                    xmls = [domain.XMLDesc(0)]
                    if domain.ID() != -1:  # it runs; otherwise both definitions are the same
                        xmls.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
                    named = found.setdefault(str(domain.UUIDString()), {})
                    for path, raw in (each for xml in xmls for each in self._named(xml)):
                        named[path] = raw and named.get(path, True)
        return found

    def _named(self, xml: str) -> Iterator[tuple[str, bool]]:
        raw = domain_xml.raw_images(xml)
        for disk in domain_xml.disks(xml):
            yield from ((path, path in raw) for path in (disk.path, *disk.chain) if path)
            if disk.volume and not disk.path and (path := self.volume_path(*disk.volume)):
                yield path, disk.format == "raw"

    def destroy_helpers(self, images: set[str]) -> None:
        """Ends helper domains that have one of these images as a disk. To be called when their owner is known to be gone: under
        the VM's lock."""
        for domain in self.domains():
            if str(domain.name()).startswith(HELPER_PREFIX):
                with suppress(libvirt.libvirtError):
                    if images & {disk.path for disk in self.disks(domain.XMLDesc(0))}:
                        domain.destroy()

    def pool_directories(self) -> list[str]:
        """The directories of all storage pools that are directories."""
        with translated("listing storage pools"):
            xmls = [str(pool.XMLDesc(0)) for pool in self.connection.listAllStoragePools()]
        return [path for xml in xmls if (path := storage_xml.pool_directory(xml))]

    def boot(self, xml: str) -> tuple[str, Boot]:
        """The emulator that this host has for the VM of this definition, and what it has to start VMs with. To be called when
        `what_does_not_fit` finds nothing."""
        kind, architecture, machine = domain_xml.machine(xml)
        with translated("asking what the host can run"):
            answer = self.connection.getDomainCapabilities(None, architecture or None, machine or None, kind or None)
        emulator, loaders = domain_xml.emulator_and_loaders(str(answer))
        return emulator, Boot(loaders, {path for each in self.definitions() for path in domain_xml.boot_files(each)})

    def what_does_not_fit(self, xml: str) -> list[str]:
        """What the VM of this definition needs and the host lacks: a sentence for each."""
        problems = []
        kind, architecture, machine = domain_xml.machine(xml)
        try:
            self.connection.getDomainCapabilities(None, architecture or None, machine or None, kind or None)
        except libvirt.libvirtError as error:
            problems.append(f"machine {machine} of type {kind}: {error.get_error_message()}")
        with suppress(libvirt.libvirtError):  # this libvirt does not tell
            models = self.connection.getCPUModelNames(architecture)  # none: it takes any
            if models and (model := domain_xml.cpu_model(xml)) and model not in models:
                problems.append(f"libvirt does not know the CPU model {model}")
        for network in sorted(domain_xml.networks(xml)):
            try:
                self.connection.networkLookupByName(network)
            except libvirt.libvirtError:
                problems.append(f"there is no network {network}")
        return problems

    def presence(self, need: Need) -> Presence:
        """Whether the host has what a VM needs; of files and directories nothing is known here."""
        return presence(self.connection, need, local=self.local)

    def emulated_kind(self) -> str:
        """The domain type for a helper domain, whose processor never runs: `qemu` or, if the host does not offer it, `kvm`."""
        with translated("asking what the host can run"):
            capabilities = str(self.connection.getCapabilities())
        return "qemu" if "<domain type='qemu'" in capabilities else "kvm"

    def close(self) -> None:
        with suppress(libvirt.libvirtError):  # the daemon is gone; so is the connection
            self.connection.close()

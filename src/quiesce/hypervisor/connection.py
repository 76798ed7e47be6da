"""Connections to libvirt daemons, and the event loop that all of them share."""

from __future__ import annotations

import functools
import os
import posixpath
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import libvirt

from quiesce.hypervisor import domain_xml, storage_xml
from quiesce.hypervisor.definition import Boot
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.keys import HostIdentity
from quiesce.model.names import HELPER_PREFIX

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 5
_HARDWARE_UUID = Path("/sys/class/dmi/id/product_uuid")
_MACHINE_ID = Path("/etc/machine-id")
_SLASHES = re.compile("//+")


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
        self._directories: dict[str, str] = {}
        self._spellings: dict[tuple[int, int], str] = {}
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

    def _uuid(self) -> str:
        """A UUID that stays the same. If the hardware has none, libvirt makes up a new one at each start of its daemon
        (virGetHostUUID in src/util/viruuid.c); on this machine, /etc/machine-id is used then."""
        if self.local and not _HARDWARE_UUID.exists():
            with suppress(OSError):
                return _MACHINE_ID.read_text().strip()
        return storage_xml.host_uuid(str(self.connection.getCapabilities()))

    def spell(self, path: str) -> str:
        """The one spelling of a file's path: without `//`, `..` and symbolic links, and the same through every bind mount of
        its directory. On a remote host, whose files this process cannot look at, only `//` is resolved."""
        if not path.startswith("/"):
            return path
        if not self.local or storage_xml.is_device(path):  # /dev/dm-3 may be another volume after a boot, /dev/vg/data is not
            return _SLASHES.sub("/", path)
        directory, name = posixpath.split(os.path.realpath(path) if Path(path).is_symlink() else path)
        return posixpath.join(self._spell_directory(directory), name)

    def _spell_directory(self, path: str) -> str:
        if path not in self._directories:
            real = os.path.realpath(path)
            with suppress(OSError):
                found = Path(real).stat()
                real = self._spellings.setdefault((found.st_dev, found.st_ino), real)
            self._directories[path] = real
        return self._directories[path]

    def disks(self, xml: str) -> tuple[domain_xml.Disk, ...]:
        """The disks of a definition, with every path in its one spelling."""
        return tuple(disk.spelled(self.spell) for disk in domain_xml.disks(xml))

    def domain(self, name: str) -> libvirt.virDomain:
        """The domain of this name or UUID. Raises NotFoundError."""
        try:
            return self.connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise HypervisorError(f"looking up {name}: {error.get_error_message()}") from error
        try:
            return self.connection.lookupByUUIDString(name)
        except libvirt.libvirtError:
            raise NotFoundError(f"no VM named {name!r} on {self.name}", hint="`quiesce vms` lists the VMs") from None

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

    def definitions(self) -> list[str]:
        """The persistent definition of every VM, which its next start uses."""
        found = []
        for domain in self.domains():
            with suppress(libvirt.libvirtError):  # it was undefined meanwhile
                found.append(str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
        return found

    def files_of_others(self, uuid: str) -> set[str]:
        """Every image file that the present and next definitions of the other VMs name."""
        found = set()
        for domain in self.domains():
            with suppress(libvirt.libvirtError):  # it was undefined meanwhile
                if domain.UUIDString() != uuid and not str(domain.name()).startswith(HELPER_PREFIX):
                    for xml in (domain.XMLDesc(0), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
                        disks = [disk for disk in self.disks(xml) if disk.source_type == "file"]
                        found |= {path for disk in disks for path in (disk.path, *disk.chain) if path}
        return found

    def destroy_helpers(self, images: set[str]) -> None:
        """Ends helper domains that have one of these images as a disk. To be called when their owner is known to be gone: under
        the VM's lock."""
        for domain in self.domains():
            with suppress(libvirt.libvirtError):
                disks = {disk.path for disk in self.disks(domain.XMLDesc(0))}
                if str(domain.name()).startswith(HELPER_PREFIX) and images & disks:
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
        for network in sorted(domain_xml.networks(xml)):
            try:
                self.connection.networkLookupByName(network)
            except libvirt.libvirtError:
                problems.append(f"there is no network {network}")
        return problems

    def emulated_kind(self) -> str:
        """The domain type for a helper domain, whose processor never runs: `qemu` or, if the host does not offer it, `kvm`."""
        with translated("asking what the host can run"):
            capabilities = str(self.connection.getCapabilities())
        return "qemu" if "<domain type='qemu'" in capabilities else "kvm"

    def close(self) -> None:
        with suppress(libvirt.libvirtError):  # the daemon is gone; so is the connection
            self.connection.close()

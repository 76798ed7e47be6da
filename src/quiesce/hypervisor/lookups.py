"""Looks whether a host has what a VM needs to start (needs.py)."""

from __future__ import annotations

import enum
import errno
import ipaddress
import re
import socket
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

import libvirt

from quiesce.hypervisor.needs import Need, Wanted, huge

_GONE = (
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_NWFILTER,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_SECRET,
    libvirt.VIR_ERR_NO_NODE_DEVICE,
)
_USAGES = {
    "ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH,
    "iscsi": libvirt.VIR_SECRET_USAGE_TYPE_ISCSI,
    "tls": libvirt.VIR_SECRET_USAGE_TYPE_TLS,
}
_SYSFS = {Wanted.INTERFACE: "/sys/class/net", Wanted.PCI: "/sys/bus/pci/devices", Wanted.MEDIATED: "/sys/bus/mdev/devices"}
_USB_FILES = ("idVendor", "idProduct", "busnum", "devnum")


class Presence(enum.Enum):
    THERE = "there"
    """Or nobody can tell."""
    STOPPED = "not active"
    TAKEN = "in use by another program"
    SHORT = "not free"
    MISSING = "missing"


def presence(connection: libvirt.virConnect, need: Need, *, local: bool) -> Presence:
    """Whether the host has it; of files and directories nothing is known here. `local`: whether the host is this machine."""
    try:
        if need.kind in (Wanted.ADDRESS, Wanted.PORT):
            return _listening(need) if local else Presence.THERE
        if need.kind is Wanted.HUGE_PAGES:
            return _huge_pages(connection, need)
        return Presence.THERE if _find(connection, need, local) else Presence.MISSING
    except _StoppedError:
        return Presence.STOPPED
    except libvirt.libvirtError as error:
        return Presence.MISSING if error.get_error_code() in _GONE else Presence.THERE  # there is no driver to ask


class _StoppedError(Exception):
    pass


def _find(connection: libvirt.virConnect, need: Need, local: bool) -> bool:
    kind, name = need.kind, need.name
    if kind is Wanted.NETWORK:
        return _active(connection.networkLookupByName(name))
    if kind is Wanted.POOL:
        return _active(connection.storagePoolLookupByName(name))
    if kind is Wanted.VOLUME:
        pool, _, volume = name.partition("/")
        found = connection.storagePoolLookupByName(pool)
        return _active(found) and bool(found.storageVolLookupByName(volume))
    if kind is Wanted.FILTER:
        return bool(connection.nwfilterLookupByName(name))
    if kind is Wanted.SECRET:
        usage, separator, id = name.partition(":")
        if separator:
            return bool(connection.secretLookupByUsage(_USAGES.get(usage, libvirt.VIR_SECRET_USAGE_TYPE_VOLUME), id))
        return bool(connection.secretLookupByUUIDString(name))
    if kind is Wanted.USB:
        return name in (_usb_here() if local else _usb_there(connection))
    if kind in _SYSFS:
        return (Path(_SYSFS[kind]) / name).exists() if local else _node_device(connection, need)
    return True


def _listening(need: Need) -> Presence:
    """Whether a program of this machine could listen there now. A name that is no number is not looked up."""
    address, _, port = need.name.rpartition(":") if need.kind is Wanted.PORT else (need.name, "", "0")
    try:
        ipaddress.ip_address(address)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
            tried.bind((address, int(port)))
    except ValueError:
        return Presence.THERE
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Presence.TAKEN
        if error.errno == errno.EADDRNOTAVAIL and need.kind is Wanted.ADDRESS:
            return Presence.MISSING
    return Presence.THERE


def _huge_pages(connection: libvirt.virConnect, need: Need) -> Presence:
    size, kib = huge(need)
    host = ET.fromstring(connection.getCapabilities())
    sizes = sorted({int(pages.get("size", 0)) for pages in host.iterfind("./host/cpu/pages")})[1:]
    cells = len(host.findall("./host/topology/cells/cell"))
    if not cells:
        return Presence.THERE
    free = connection.getFreePages([size] if size else sizes, 0, cells, 0)
    there = sum(count * each for counts in free.values() for each, count in counts.items())
    return Presence.THERE if there >= kib else Presence.SHORT


def _active(found: libvirt.virNetwork | libvirt.virStoragePool) -> bool:
    if not found.isActive():
        raise _StoppedError
    return True


def _node_device(connection: libvirt.virConnect, need: Need) -> bool:
    if need.kind is Wanted.INTERFACE:
        devices = connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET)
        names = {ET.fromstring(device.XMLDesc(0)).findtext("./capability/interface") for device in devices}
        return need.name in names or not names
    prefix = "pci" if need.kind is Wanted.PCI else "mdev"
    name = f"{prefix}_{re.sub('[^0-9a-zA-Z]', '_', need.name)}"
    return any(device.name().startswith(name) for device in connection.listAllDevices(0))


def _usb_here() -> set[str]:
    found = set()
    for device in Path("/sys/bus/usb/devices").glob("*"):
        with suppress(OSError):  # an interface of a device, or a device that was just pulled out
            vendor, product, bus, number = ((device / name).read_text().strip() for name in _USB_FILES)
            found |= {f"{vendor}:{product}", f"{bus}.{number}"}
    return found


def _usb_there(connection: libvirt.virConnect) -> set[str]:
    found = set()
    for device in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV):
        with suppress(libvirt.libvirtError):
            capability = ET.fromstring(device.XMLDesc(0)).find("./capability[@type='usb_device']")
            if capability is not None:
                vendor, product = (_id(capability, name) for name in ("vendor", "product"))
                found |= {f"{vendor:04x}:{product:04x}", f"{capability.findtext('bus')}.{capability.findtext('device')}"}
    return found


def _id(capability: ET.Element, name: str) -> int:
    element = capability.find(name)
    return int(element.get("id", "0"), 0) if element is not None else 0

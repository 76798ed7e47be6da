"""What of a VM no checkpoint has, because it is in no disk image: by the definition. Pure: a string in, sentences out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise

_ARGUMENTS = "./{http://libvirt.org/schemas/domain/qemu/1.0}commandline/{http://libvirt.org/schemas/domain/qemu/1.0}arg"
_DRIVES = {"-drive", "-blockdev", "-hda", "-hdb", "-hdc", "-hdd", "-fsdev", "-virtfs", "-pflash", "-mtdblock", "-sd"}
_NOTHING_KEPT = ("mdev", "net", "misc")
"""Types of host devices that store nothing. Whatever is of type scsi or storage keeps a checkpoint from being taken."""
_REFUSED = ("scsi", "scsi_host", "storage")


def outside(xml: str) -> tuple[str, ...]:
    """A sentence for each part of the machine that keeps state, or may, outside of its disk images. Of UEFI variables and TPM:
    see tpm.never_kept."""
    root = ET.fromstring(xml)
    found = [*_devices(root), *_shares(root), *_arguments(root)]
    return tuple(f"{what} is not in the checkpoint, and a restore leaves it as it is" for what in dict.fromkeys(found))


def _devices(root: ET.Element) -> Iterator[str]:
    for device in root.iterfind("./devices/hostdev"):
        kind = device.get("type", "")
        if kind in (*_NOTHING_KEPT, *_REFUSED):
            continue
        if (address := device.find("./source/address")) is not None:
            yield f"what the host's {kind.upper()} device {_address(address)} stores"
        elif (vendor := device.find("./source/vendor")) is not None:
            product = device.find("./source/product")
            name = f"{vendor.get('id')}:{product.get('id') if product is not None else ''}"
            yield f"what the host's {kind.upper()} device {name} stores"
        elif kind in ("pci", "usb"):
            yield f"what a {kind.upper()} device of the host stores"
    for device in root.iterfind("./devices/redirdev"):
        yield f"what a redirected {device.get('bus', 'usb').upper()} device stores"


def _address(address: ET.Element) -> str:
    if bus := address.get("bus"):
        if (device := address.get("device")) is not None:
            return f"{bus}:{device}"
        numbers = [int(address.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function")]
        return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
    return ""


def _shares(root: ET.Element) -> Iterator[str]:
    for share in root.iterfind("./devices/filesystem"):
        source, target = share.find("source"), share.find("target")
        path = next(iter(source.attrib.values()), "") if source is not None else ""
        name = target.get("dir", "") if target is not None else ""
        yield f"the directory {path or '?'} of the host, which the guest has as {name!r},"
    for memory in root.iterfind("./devices/shmem"):
        yield f"the memory {memory.get('name', '')!r} that the guest shares with others"
    for memory in root.iterfind("./devices/memory"):
        if memory.get("model") in ("nvdimm", "virtio-pmem"):
            yield f"the persistent memory {memory.findtext('./source/path') or ''}"


def _arguments(root: ET.Element) -> Iterator[str]:
    words = [argument.get("value", "") for argument in root.iterfind(_ARGUMENTS)]
    for option, value in pairwise([*words, ""]):
        if option.replace("--", "-", 1) in _DRIVES and value and not re.search(r"(^|,)driver=(null-co|null-aio)", value):
            yield f"the drive {value!r} of qemu:commandline"
        elif option == "-device" and value.startswith(("vfio-pci", "usb-host", "vhost-user-blk", "vhost-user-fs", "ivshmem")):
            yield f"what the device {value!r} of qemu:commandline stores"

"""Compares two definitions of one VM, leaving out what quiesce itself changes. Pure."""

from __future__ import annotations

import difflib
import xml.etree.ElementTree as ET


def changes(before: str, after: str, *, names: tuple[str, str]) -> tuple[str, ...]:
    """The lines of a unified diff of two domain XMLs; none if nothing differs.

    Leaves out what a checkpoint, a restore or a merge changes: the image paths of disks, libvirt's <backingStore> and <mirror>
    elements, the generation ID, the path of the UEFI variables. Never shows a password, nor that a password changed.
    """
    lines = difflib.unified_diff(_lines(before), _lines(after), *names, lineterm="")
    return tuple(lines)


def _lines(xml: str) -> list[str]:
    root = ET.fromstring(xml)
    for element in root.findall("./genid"):
        root.remove(element)
    for nvram in root.iterfind("./os/nvram"):
        nvram.text = None
        for source in nvram.findall("source"):
            source.attrib.pop("file", None)
    for disk in root.iterfind("./devices/disk"):
        if disk.get("type", "file") == "file" and disk.get("device", "disk") == "disk":
            for source in disk.findall("source"):
                source.attrib.pop("file", None)
                source.attrib.pop("index", None)
            for child in (*disk.findall("backingStore"), *disk.findall("mirror")):
                disk.remove(child)
    for element in root.iter():
        if "passwd" in element.attrib:
            element.set("passwd", "...")
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
    ET.indent(root)
    return ET.tostring(root, encoding="unicode").splitlines()

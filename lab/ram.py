"""RAM images of running machines, as libvirt saves them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SavedMachine:
    """A running machine's memory and disks, from which any number of machines can be resumed, one at a time."""

    directory: Path

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def definition(self) -> str:
        """The domain's persistent definition, devices plugged in meanwhile included."""
        return (self.directory / "domain.xml").read_text()

    @property
    def identity(self) -> dict[str, str]:
        """The name, UUID and directory its RAM image was saved with; all machines' have the same lengths."""
        return dict(json.loads((self.directory / "identity.json").read_text()))


_SAVE_HEADER = struct.Struct("=16sII")
"""magic, version, length of the XML that follows at offset 92: libvirt, src/qemu/qemu_saveimage.h."""
_SAVE_XML_OFFSET = 92


def rename_in_ram_image(ram: Path, old: dict[str, str], new: dict[str, str]) -> None:
    """Gives a libvirt save file another name and UUID, in place.

    Names, UUIDs and hence directories all have one length, so nothing in the file moves. libvirt offers no way to do this:
    it refuses a changed name as another machine.
    """
    with ram.open("r+b") as file:
        magic, _version, length = _SAVE_HEADER.unpack(file.read(_SAVE_HEADER.size))
        if magic != b"LibvirtQemudSave":
            raise ValueError(f"{ram} is not a libvirt save file")
        file.seek(_SAVE_XML_OFFSET)
        data = file.read(length)
        for key, value in old.items():
            assert len(value) == len(new[key])
            data = data.replace(value.encode(), new[key].encode())
        file.seek(_SAVE_XML_OFFSET)
        file.write(data)

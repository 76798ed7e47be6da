"""Whether the images of a checkpoint still have the bytes that its label was given to. Pure.

Nobody writes to an image of a checkpoint, except quiesce when it merges images. So when a checkpoint is recorded, quiesce
records a fingerprint of each image in its backing chains, and compares it later. There are three outcomes:

    same      the file was neither written nor replaced
    unknown   only its times are others: it was copied back from a backup, moved, touched; or written in place. A digest of all
              its bytes settles that (operations/content.py), if one was recorded before
    spoilt    length, header or tables are others: another program changed it, and the content is not what was checkpointed

Unless an image is the same, nothing vouches for the checkpoints that read it: they are crash-consistent at best. Example:
somebody runs `virsh blockcommit` into the image of checkpoint `a`; `a` and every checkpoint that reads through this image are
shown as crash-consistent, with the image's path."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from quiesce.model.chains import Image
from quiesce.model.grades import Consistency, Grade
from quiesce.model.reports import WriterReport
from quiesce.model.tree import Checkpoint

_SECONDS = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")
"""A time until the year 5138."""


@dataclass(frozen=True)
class Discrepancy:
    """An image is not as it was recorded."""

    text: str
    """What is different, as a sentence without its subject."""
    spoilt: bool
    """Whether the content surely is another one. False: it is unknown."""

    def of(self, path: str) -> str:
        """The sentence about the image `path`."""
        if self.spoilt:
            return f"another program changed the image {path} after a checkpoint was taken: {self.text}"
        return f"nothing shows that the image {path} still has what was checkpointed: {self.text}"


@dataclass(frozen=True)
class Fingerprint:
    """What ties an image to its content."""

    size: int
    """Length of the file, in bytes."""
    written: str
    """When the file was last written, as in Image. A program can set this time back."""
    header: str
    """What libvirt reads from the header: format, virtual size in bytes, and the file name of the backing file."""
    changed: str = ""
    """When its inode was last changed, as in Image; empty: not recorded. No program can set this time."""
    access: str = ""
    """Owner, rights and label, as in Image. If they changed, that explains another `changed`: libvirt gives an image to QEMU
    when a VM is started on it for the first time."""
    tables: str = ""
    """As quiesce.storage.tables; empty: not recorded."""
    content: str = ""
    """The digest of all bytes, as quiesce.storage.digests; empty: not recorded. Only operations/content.py compares it."""

    @classmethod
    def of(cls, image: Image) -> Fingerprint:
        backing = posixpath.basename(image.backing or "")
        header = f"{image.format} {image.capacity} {backing}".rstrip()
        return cls(image.size, image.written, header, image.changed, image.access, image.tables)

    def doubted(self, now: Image) -> bool:
        """Whether the image's tables have to be compared, because one of its times is another one."""
        return self.written != now.written or (bool(self.changed) and self.changed != now.changed)

    def difference(self, now: Fingerprint) -> Discrepancy | None:
        """What is different now; None: nothing is. If the image is `doubted`, `now` must have its tables."""
        if self.header != now.header:
            return Discrepancy(f"its header was {self.header!r} and is {now.header!r}", spoilt=True)
        if self.size != now.size:
            return Discrepancy(f"it had {self.size} bytes and has {now.size}", spoilt=True)
        if self.tables and now.tables and self.tables != now.tables:
            since = _shown(now.changed or now.written)
            return Discrepancy(f"it has data in other places, since {since} at the latest", spoilt=True)
        if self.written != now.written:
            times = f"it was last written at {_shown(self.written)}, and now at {_shown(now.written)}"
            return Discrepancy(f"{times}; it has the same length", spoilt=False)
        if self.changed and self.changed != now.changed and self.access == now.access:
            times = f"its inode was changed at {_shown(now.changed)}, and has the time of the last write that was recorded"
            return Discrepancy(times, spoilt=False)
        return None

    def known_as(self, now: Fingerprint) -> Fingerprint:
        """The fingerprint to record instead, for an image without a difference: libvirt gave it to another owner."""
        return replace(now, tables=now.tables or self.tables, content=self.content)


def _shown(time: str) -> str:
    """libvirt writes the fraction of a second with nine digits, or leaves it out."""
    found = _SECONDS.fullmatch(time)
    if not found:
        return "an unknown time"
    return f"{datetime.fromtimestamp(int(found[1]), UTC):%Y-%m-%dT%H:%M:%S}.{found[2] or '0'}Z"


def lowered(node: Checkpoint, changed: Mapping[str, str]) -> Checkpoint:
    """The checkpoint with the label that it has if nothing vouches for these images, which are in its backing chains.
    `changed`: a sentence for each path. Nothing that a writer reported vouches for such a content either."""
    if not changed:
        return node
    new = [path for path in changed if path not in node.changed]
    return replace(
        node,
        consistency=Consistency.CRASH,
        changed=(*node.changed, *new),
        proof=None,
        warnings=(*node.warnings, *(changed[path] for path in new)),
        writers=tuple(_as_crash(writer, next(iter(changed))) for writer in node.writers),
    )


def lowered_for_good(node: Checkpoint, changed: Mapping[str, str], since: str) -> Checkpoint:
    """As `lowered`, and for good: the content is not what was checkpointed. `since`: when that was found, UTC, ISO 8601."""
    return replace(lowered(node, changed), spoilt=node.spoilt or since)


def _as_crash(writer: WriterReport, path: str) -> WriterReport:
    if not writer.grade.vouched:
        return writer
    return replace(writer, grade=Grade.CRASH, reason=f"nothing vouches for {path} any more: another program changed the file")

"""Whether the images of a checkpoint still have the bytes that its label was given to. Pure.

Nobody writes to an image of a checkpoint, except quiesce when it merges images. So when a checkpoint is recorded, quiesce
records a fingerprint of each image in its backing chains. A fingerprint that differs later means that another program changed
the image: then nothing vouches for the content, and the checkpoint is crash-consistent at best. Example: somebody runs
`virsh blockcommit` into the image of checkpoint `a`; `a` and every checkpoint that reads through this image are shown as
crash-consistent, with the image's path."""

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
class Fingerprint:
    """What tells that an image was not written. A copy of the file that keeps the time of the last write (`cp -a`, `rsync -a`,
    a restored backup) has the same fingerprint; inode, owner and allocated space do not count. Not seen: bytes that were
    changed by a program that afterwards set the time back and left length and header as they were."""

    size: int
    """Length of the file, in bytes."""
    written: str
    """When the file was last written, as in Image."""
    header: str
    """What libvirt reads from the header: format, virtual size in bytes, and the file name of the backing file."""

    @classmethod
    def of(cls, image: Image) -> Fingerprint:
        backing = posixpath.basename(image.backing or "")
        return cls(image.size, image.written, f"{image.format} {image.capacity} {backing}".rstrip())

    def difference(self, now: Fingerprint) -> str | None:
        """What is different now, as the end of a sentence; None: nothing is."""
        if self.header != now.header:
            return f"its header was {self.header!r} and is {now.header!r}"
        if self.size != now.size:
            return f"it had {self.size} bytes and has {now.size}"
        if not _same_time(self.written, now.written):
            return f"it was last written at {_shown(self.written)}, and now at {_shown(now.written)}"
        return None


def _same_time(recorded: str, now: str) -> bool:
    """Whether both are the same time. Some programs, as GNU tar, copy a time without its fraction of a second. A write on a
    filesystem that keeps nanoseconds practically never leaves a whole second, so no write is missed."""
    return recorded == now or ("." not in now and recorded.partition(".")[0] == now)


def _shown(time: str) -> str:
    """libvirt writes the fraction of a second with nine digits, or leaves it out."""
    found = _SECONDS.fullmatch(time)
    if not found:
        return "an unknown time"
    return f"{datetime.fromtimestamp(int(found[1]), UTC):%Y-%m-%dT%H:%M:%S}.{found[2] or '0'}Z"


def lowered(node: Checkpoint, changed: Mapping[str, str]) -> Checkpoint:
    """The checkpoint with the label that it has after another program changed these images, which are in its backing chains.
    `changed`: a sentence for each path. Nothing that a writer reported vouches for such a content either."""
    if not changed:
        return node
    new = [path for path in changed if path not in node.changed]
    return replace(
        node,
        consistency=Consistency.CRASH,
        changed=(*node.changed, *new),
        warnings=(*node.warnings, *(changed[path] for path in new)),
        writers=tuple(_as_crash(writer, next(iter(changed))) for writer in node.writers),
    )


def _as_crash(writer: WriterReport, path: str) -> WriterReport:
    if not writer.grade.vouched:
        return writer
    return replace(writer, grade=Grade.CRASH, reason=f"another program changed {path} after the checkpoint was taken")

"""Merging and copying images: in the running VM, or in a domain that exists only for that."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import libvirt

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import HELPER_PREFIX, Host, translated
from quiesce.model.errors import BusyError, HypervisorError, RefusedError

TARGET = "sda"
POLL_S = 0.02
ReportProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def silent(_done: int, _total: int) -> None:
    pass


def commit_active(host: Host, domain: libvirt.virDomain, target: str, base: str, progress: ReportProgress) -> None:
    """Merges what `domain` writes on a disk into the image `base` in its chain, and lets it write there.

    When this returns the overlays above `base` are no longer in use. After an error the domain still writes where it did, on
    a good chain; `base` may hold part of what was merged, so only its overlays show the right content. Can be repeated.
    Source: notes/libvirt-qemu.md 2.1. Raises BusyError if somebody else has `base` open.
    """
    with _merging(domain, target):
        domain.blockCommit(target, base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        _pivot_when_ready(domain, target, progress)
    if _disk(host, domain, target).path != base:
        raise HypervisorError(f"disk {target} did not come to rest on {base} after its merge")


def commit(host: Host, domain: libvirt.virDomain, target: str, top: str, base: str, progress: ReportProgress) -> None:
    """Merges `top`, which lies in the middle of a disk's chain, into `base` below it; what lay on `top` lies on `base` then.

    The promises are those of `commit_active`.
    """
    with _merging(domain, target):
        domain.blockCommit(target, base, top, 0, 0)
        while info := domain.blockJobInfo(target, 0):
            progress(info["cur"], info["end"])
            time.sleep(POLL_S)
    if top in _disk(host, domain, target).chain:
        raise HypervisorError(f"the merge of disk {target} ended before it was complete")


@contextmanager
def _merging(domain: libvirt.virDomain, target: str) -> Iterator[None]:
    """Ends the job if the block does not: also when the user presses Ctrl-C."""
    with translated(f"merging disk {target}"):
        try:
            yield
        except BaseException as error:
            with suppress(libvirt.libvirtError):
                if domain.blockJobInfo(target, 0):
                    domain.blockJobAbort(target, 0)
            if isinstance(error, libvirt.libvirtError) and _is_locked(error):
                raise BusyError(f"an image to merge on disk {target} is in use by another VM or program") from error
            raise


class Helper:
    """A paused domain that runs nothing, to have images open in; started when first needed, gone with `close`, and with our
    connection."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._domain: libvirt.virDomain | None = None

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._domain:
            with suppress(libvirt.libvirtError):
                self._domain.destroy()
        self._domain = None

    def commit_active(self, image: str, base: str, progress: ReportProgress, then: Callable[[], None] | None = None) -> None:
        """Commits `image` into `base` in its chain. `then` is called while both are still open, so that nobody can start a VM
        on them. Raises BusyError if somebody else has one of them open."""
        with self.disk(image) as (domain, target):
            commit_active(self._host, domain, target, base, progress)
            if then:
                then()

    def commit(self, image: str, top: str, base: str, progress: ReportProgress) -> None:
        """Merges `top` into `base`, both in the chain of `image`. Raises BusyError as above."""
        with self.disk(image) as (domain, target):
            commit(self._host, domain, target, top, base, progress)

    def copy(self, image: str, destination: str, progress: ReportProgress) -> None:
        """Writes what `image` and all below it say into another image, which is there already. Raises BusyError as above."""
        with self.disk(image, read_only=True) as (domain, target), _merging(domain, target):
            flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            domain.blockCopy(target, domain_xml.copy_target(destination), None, flags)
            while not _disk(self._host, domain, target).mirror_ready:
                info = domain.blockJobInfo(target, 0)
                if not info:
                    raise HypervisorError(f"the copy to {destination} ended before it was complete")
                progress(info["cur"], info["end"])
                time.sleep(POLL_S)
            domain.blockJobAbort(target, 0)  # of a copy that is ready: it is whole, and the domain stays where it is

    @contextmanager
    def disk(self, image: str, *, read_only: bool = False) -> Iterator[tuple[libvirt.virDomain, str]]:
        """The helper with this image open as a disk: the domain, and the disk's target."""
        domain = self._domain = self._domain or self._start()
        xml = domain_xml.helper_disk(TARGET, image, read_only=read_only)
        with translated(f"opening {image}"):
            try:
                domain.attachDevice(xml)
            except libvirt.libvirtError as error:
                if _is_locked(error):
                    raise BusyError(f"{image}, or an image below it, is in use by a VM or program") from error
                raise
        try:
            yield domain, TARGET
        finally:
            try:
                present = next(disk.path for disk in domain_xml.disks(domain.XMLDesc(0)) if disk.target == TARGET)
                domain.detachDevice(domain_xml.helper_disk(TARGET, str(present), read_only=read_only))
            except (libvirt.libvirtError, StopIteration):
                self.close()  # so that nothing stays open

    def _start(self) -> libvirt.virDomain:
        xml = domain_xml.helper(f"{HELPER_PREFIX}{secrets.token_hex(4)}", self._host.emulated_kind())
        with translated("starting a domain to merge images in"):
            flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
            return self._host.connection.createXML(xml, flags)


def end_job(domain: libvirt.virDomain, target: str) -> None:
    """Ends a merge that its owner left behind on this disk, and waits until it is gone; the domain stays on a good chain."""
    commits = (libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT)
    if domain.blockJobInfo(target, 0).get("type") not in commits:
        return
    with suppress(libvirt.libvirtError):  # it may end of itself meanwhile
        domain.blockJobAbort(target, 0)
    deadline = time.monotonic() + 60
    while domain.blockJobInfo(target, 0):
        if time.monotonic() > deadline:
            raise RefusedError(f"the merge that was left running on disk {target} does not end")
        time.sleep(POLL_S)


def _pivot_when_ready(domain: libvirt.virDomain, target: str, progress: ReportProgress) -> None:
    while True:
        info = domain.blockJobInfo(target, 0)
        if not info:
            raise HypervisorError(f"the merge of disk {target} ended before it was complete")
        progress(info["cur"], info["end"])
        if info["cur"] == info["end"]:
            # Equal also just after the start; libvirt refuses to pivot until the mirror is ready.
            try:
                domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
                    raise
            else:
                return
        time.sleep(POLL_S)


def _disk(host: Host, domain: libvirt.virDomain, target: str) -> domain_xml.Disk:
    with translated(f"reading disk {target}"):
        return next(disk for disk in host.disks(domain.XMLDesc(0)) if disk.target == target)


def _is_locked(error: libvirt.libvirtError) -> bool:
    """QEMU's image locks; libvirt hands its words on."""
    message = error.get_error_message() or ""
    return "Failed to get " in message and " lock" in message

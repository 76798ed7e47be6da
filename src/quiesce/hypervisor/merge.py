"""Merges and copies images: in the running VM, or in a helper domain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import libvirt

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.errors import BusyError, HypervisorError, RefusedError
from quiesce.model.names import HELPER_PREFIX

TARGET = "sda"
POLL_S = 0.02
ReportProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def silent(_done: int, _total: int) -> None:
    pass


def commit_active(host: Host, domain: libvirt.virDomain, target: str, base: str, progress: ReportProgress) -> None:
    """Commits the image that `domain` writes on a disk into `base`, an image in its chain. The domain then writes `base`.

    When this returns, the overlays of `base` are no longer in use. After an error the domain still has the image that it had,
    with an intact chain; `base` may have a part of the data, so only the overlays have the right content. Can be repeated.
    An active block commit copies until it is ready (VIR_DOMAIN_BLOCK_JOB_READY); blockJobAbort with ..._ABORT_PIVOT makes the
    domain write `base` (virDomainBlockCommit in libvirt's src/libvirt-domain.c). Raises BusyError if somebody else has `base`
    open, HypervisorError.
    """
    with _merging(domain, target):
        _require_large_enough(host, domain, _disk(host, domain, target).path, base)
        domain.blockCommit(target, base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        _pivot_when_ready(domain, target, progress)
    if _disk(host, domain, target).path != base:
        raise HypervisorError(
            f"the merge of disk {target} ended, but the disk's image is not {base}", hint="`quiesce doctor` shows what it is"
        )


def commit(host: Host, domain: libvirt.virDomain, target: str, top: str, base: str, progress: ReportProgress) -> None:
    """Commits `top` into `base`, both in the middle of a disk's chain. The overlay of `top` in this chain then has `base` as
    its backing file.

    Guarantees and errors as `commit_active`.
    """
    with _merging(domain, target):
        _require_large_enough(host, domain, top, base)
        domain.blockCommit(target, base, top, 0, 0)
        while info := domain.blockJobInfo(target, 0):
            progress(info["cur"], info["end"])
            time.sleep(POLL_S)
    if top in _disk(host, domain, target).chain:
        raise HypervisorError(f"the merge of disk {target} ended before it was complete: {top} is still in its chain")


def pull(host: Host, domain: libvirt.virDomain, target: str, base: str | None, progress: ReportProgress) -> None:
    """Copies what the images between a disk's image and `base` have into the disk's image, which then has `base` as its backing
    file; None: no backing file.

    Only for an image that nobody needs yet. QEMU writes the new name of the backing file into the header before it writes the
    tables that say where the copied data are: if QEMU is killed a moment after the job (tried with QEMU 10.0), the image has
    neither its old backing file nor the data. They are safe when QEMU has closed the image. An error, or the end of QEMU before
    the job has ended, leaves an image with the old content."""
    with _merging(domain, target):
        domain.blockRebase(target, base, 0, 0)
        while info := domain.blockJobInfo(target, 0):
            progress(info["cur"], info["end"])
            time.sleep(POLL_S)
    if _disk(host, domain, target).chain[:1] != ((base,) if base else ()):
        raise HypervisorError(f"the copy on disk {target} ended before it was complete")


def replace_head(host: Host, domain: libvirt.virDomain, target: str, overlay: str, progress: ReportProgress) -> None:
    """Copies the image that `domain` writes on a disk, without its backing files, into `overlay`, which exists and whose
    backing file has the same content as that of the image. The domain then writes `overlay`.

    After an error the domain still writes the image that it had. QEMU flushes `overlay` before it is switched to
    (mirror_flush in block/mirror.c)."""
    with _merging(domain, target):
        _mirror(host, domain, target, overlay, progress, libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW)
        domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    if _disk(host, domain, target).path != overlay:
        raise HypervisorError(
            f"the copy of disk {target} ended, but the disk's image is not {overlay}", hint="`quiesce doctor` shows what it is"
        )


def _require_large_enough(host: Host, domain: libvirt.virDomain, top: str | None, base: str) -> None:
    """Raises BusyError if `base` is a block device that is smaller than `top`. QEMU makes a file larger, but no device."""
    if not host.is_device(base):
        return
    kind, flags = libvirt.VIR_DOMAIN_STATS_BLOCK, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
    ((_, found),) = host.connection.domainListGetStats([domain], kind, flags)
    sizes = {}
    for number in range(int(found["block.count"])):
        path, name = host.spell(str(found.get(f"block.{number}.path", ""))), f"block.{number}"
        # The capacity is what QEMU saw when it opened the device; the physical size is what the device has now.
        sizes[path] = int(found.get(f"{name}.physical" if path == base else f"{name}.capacity", 0))
    if sizes.get(base, 0) < sizes.get(str(top), 0):
        raise BusyError(
            f"the block device {base} has {sizes.get(base, 0)} bytes, and the disk has {sizes[str(top)]} by now; enlarge the"
            " device, for example with lvextend"
        )


@contextmanager
def _merging(domain: libvirt.virDomain, target: str) -> Iterator[None]:
    """Aborts the block job if the block raises, also when the user presses Ctrl-C."""
    with translated(f"merging disk {target}"):
        try:
            yield
        except BaseException as error:
            with suppress(libvirt.libvirtError):
                if domain.blockJobInfo(target, 0):
                    domain.blockJobAbort(target, 0)
            if isinstance(error, libvirt.libvirtError) and _is_locked(error):
                raise BusyError(f"another VM or program uses an image that is to be merged on disk {target}") from error
            raise


class Helper:
    """A paused domain that opens images, so that QEMU merges or copies them; its processor never runs. It is started when it is
    first needed, and ends with `close` or with our libvirt connection (VIR_DOMAIN_START_AUTODESTROY)."""

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
        """Commits `image` into `base`, an image in its chain. Calls `then` while both are still open, so that nobody can start
        a VM with them. Raises BusyError if somebody else has one of them open."""
        with self.disk(image) as (domain, target):
            commit_active(self._host, domain, target, base, progress)
            if then:
                then()

    def commit(self, image: str, top: str, base: str, progress: ReportProgress) -> None:
        """Commits `top` into `base`, both in the chain of `image`. Raises BusyError as `commit_active`."""
        with self.disk(image) as (domain, target):
            commit(self._host, domain, target, top, base, progress)

    def copy(self, image: str, format: str, size: int, destination: str, progress: ReportProgress) -> None:
        """Copies the content of `image`, which has this format, backing files included, into the existing image `destination`.
        `size`: its virtual size, in bytes; a block device may be larger. Raises BusyError as `commit_active`."""
        with self._copying(image, destination, progress, 0, format, size):
            pass

    def copy_top(self, image: str, destination: str, progress: ReportProgress, then: Callable[[], None] | None = None) -> None:
        """Copies `image`, without its backing files, into the existing overlay `destination`, whose backing file has the same
        content as that of `image`. Calls `then` as `commit_active`. Raises BusyError as `commit_active`."""
        with self._copying(image, destination, progress, libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW):
            if then:
                then()

    def pull(self, image: str, base: str | None, progress: ReportProgress) -> None:
        """Copies what the images between `image` and `base` have into `image`, which then has `base` as its backing file. When
        this returns, QEMU has closed the image. Errors as merge.pull; BusyError as `commit_active`."""
        with self.disk(image) as (domain, target):
            pull(self._host, domain, target, base, progress)

    @contextmanager
    def _copying(
        self, image: str, destination: str, progress: ReportProgress, flags: int, format: str = "qcow2", size: int = 0
    ) -> Iterator[None]:
        """Copies the image; during the block it is complete, and the image still open."""
        with self.disk(image, format, size, read_only=True) as (domain, target), _merging(domain, target):
            _mirror(self._host, domain, target, destination, progress, flags)
            domain.blockJobAbort(target, 0)  # without PIVOT: the ready copy is complete, and the domain keeps its image
            yield

    @contextmanager
    def disk(
        self, image: str, format: str = "qcow2", size: int = 0, *, read_only: bool = False
    ) -> Iterator[tuple[libvirt.virDomain, str]]:
        """Opens the image as a disk of the helper during the block. Returns the domain and the disk's target. `size`: so many
        bytes of a block device are opened; 0: all."""
        domain = self._domain = self._domain or self._start()
        device = self._host.is_device(image)
        source = domain_xml.Source(image, format, device, size if device else 0)
        xml = domain_xml.helper_disk(TARGET, source, read_only=read_only)
        with translated(f"opening {image}"):
            try:
                domain.attachDevice(xml)
            except libvirt.libvirtError as error:
                if _is_locked(error):
                    raise BusyError(f"a VM or program uses {image} or one of its backing files") from error
                raise
        try:
            yield domain, TARGET
        finally:
            try:
                present = next(disk for disk in domain_xml.disks(domain.XMLDesc(0)) if disk.target == TARGET)
                left = domain_xml.Source(str(present.path), present.format, present.source_type == "block")
                domain.detachDevice(domain_xml.helper_disk(TARGET, left, read_only=read_only))
            except (libvirt.libvirtError, StopIteration):
                self.close()  # so that nothing stays open

    def _start(self) -> libvirt.virDomain:
        xml = domain_xml.helper(f"{HELPER_PREFIX}{secrets.token_hex(4)}", self._host.emulated_kind())
        with translated("starting a domain to merge images in"):
            flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
            return self._host.connection.createXML(xml, flags)


def _mirror(host: Host, domain: libvirt.virDomain, target: str, destination: str, progress: ReportProgress, flags: int) -> None:
    """Starts the copy of a disk into the existing image `destination`, and waits until the copy is complete. From then on QEMU
    writes whatever it writes to both, until the job is aborted. `flags`: of virDomainBlockCopy."""
    flags |= libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    domain.blockCopy(target, domain_xml.copy_target(destination), None, flags)
    while not _disk(host, domain, target).mirror_ready:
        info = domain.blockJobInfo(target, 0)
        if not info:
            raise HypervisorError(f"the copy to {destination} ended before it was complete")
        progress(info["cur"], info["end"])
        time.sleep(POLL_S)


def end_job(domain: libvirt.virDomain, target: str) -> None:
    """Aborts a merge or copy that a killed process left running on this disk, and waits until the job has ended. The domain
    keeps an intact chain. Raises RefusedError if the job does not end within 60 s."""
    ours = (
        libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT,
        libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT,
        libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY,
    )
    if domain.blockJobInfo(target, 0).get("type") not in ours:
        return
    with suppress(libvirt.libvirtError):  # the job may have ended by itself
        domain.blockJobAbort(target, 0)
    deadline = time.monotonic() + 60
    while domain.blockJobInfo(target, 0):
        if time.monotonic() > deadline:
            raise RefusedError(
                f"an interrupted merge on disk {target} was aborted, but still runs after 60 s",
                hint="see `virsh blockjob VM DISK`, and try again when it has ended",
            )
        time.sleep(POLL_S)


def _pivot_when_ready(domain: libvirt.virDomain, target: str, progress: ReportProgress) -> None:
    while True:
        info = domain.blockJobInfo(target, 0)
        if not info:
            raise HypervisorError(f"the merge of disk {target} ended before it was complete")
        progress(info["cur"], info["end"])
        if info["cur"] == info["end"]:
            # They are equal just after the start, too; libvirt refuses to pivot until the mirror is ready.
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
    """Whether one of QEMU's image locks is held by somebody else; libvirt passes on QEMU's message."""
    message = error.get_error_message() or ""
    return "Failed to get " in message and " lock" in message

"""Merging an overlay into the image below it: in the running VM, or in a domain that exists only for that."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import libvirt

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.errors import HypervisorError

HELPER_PREFIX = "quiesce-merge-"
ReportProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def commit_active(domain: libvirt.virDomain, target: str, base: str, progress: ReportProgress) -> None:
    """Merges what `domain` writes on a disk into the image `base` in its chain, and lets it write there.

    When this returns the overlays above `base` are no longer in use. After an error the domain still writes where it did, on
    a good chain; `base` may hold part of what was merged, so only its overlays show the right content. Can be repeated.
    Source: notes/libvirt-qemu.md 2.1.
    """
    with translated(f"merging disk {target}"):
        try:
            domain.blockCommit(target, base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
            _pivot_when_ready(domain, target, progress)
        except BaseException:
            with suppress(libvirt.libvirtError):
                if domain.blockJobInfo(target, 0):
                    domain.blockJobAbort(target, 0)
            raise
        found = {disk.target: disk.path for disk in domain_xml.disks(domain.XMLDesc(0))}
    if found.get(target) != base:
        raise HypervisorError(f"disk {target} did not come to rest on {base} after its merge")


@contextmanager
def helper_domain(host: Host, images: Mapping[str, str]) -> Iterator[libvirt.virDomain]:
    """A paused domain that has these images open and runs nothing; it dies with the block, and with our connection."""
    xml = domain_xml.helper(f"{HELPER_PREFIX}{secrets.token_hex(4)}", images, host.emulated_kind())
    with translated("starting a domain to merge images in"):
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        domain = host.connection.createXML(xml, flags)
    try:
        yield domain
    finally:
        with suppress(libvirt.libvirtError):
            domain.destroy()


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
        time.sleep(0.02)

"""storage/directories.py, as far as it needs no libvirt: tests/disks/test_pools.py has one."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from quiesce.model.errors import BusyError, HypervisorError
from quiesce.storage import directories
from quiesce.storage.directories import Directory


def refusal(message: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(message)
    error.err = (libvirt.VIR_ERR_OPERATION_INVALID, 0, message, 0, "", "", "", 0, 0)
    return error


class Pool:
    """A pool with one volume, whose deletion libvirt refuses so many times."""

    def __init__(self, times: int, message: str) -> None:
        self.left, self.message = times, message

    def storageVolLookupByName(self, _name: str) -> Pool:  # noqa: N802 - libvirt's name
        return self

    def delete(self, _flags: int) -> None:
        if self.left:
            self.left -= 1
            raise refusal(self.message)


def directory(times: int, message: str) -> tuple[Directory, Any]:
    pool: Any = Pool(times, message)
    return Directory("/images", pool), pool


def test_a_file_that_libvirt_still_has_in_use_is_deleted_when_it_has_not():
    """Broken: a deletion would fail where somebody else reads the pool at that moment."""
    place, pool = directory(3, "Requested operation is not valid: volume 'a' is still in use.")
    place.delete("a")
    assert pool.left == 0


def test_a_file_that_stays_in_use_and_any_other_refusal_are_said(monkeypatch):
    """Broken: a deletion would wait for ever, or a refusal would be taken for a passing one."""
    monkeypatch.setattr(directories, "PATIENCE_S", 0.1)
    place, _ = directory(10**6, "volume 'a' is still in use.")
    with pytest.raises(BusyError, match="/images/a"):
        place.delete("a")
    place, pool = directory(2, "cannot unlink file: Permission denied")
    with pytest.raises(HypervisorError, match="Permission denied"):
        place.delete("a")
    assert pool.left == 1

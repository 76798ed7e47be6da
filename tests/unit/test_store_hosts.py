"""catalog/hosts.py: by what a host is known again, on real SQLite files."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from quiesce.catalog.store import Catalog
from quiesce.model.keys import HostIdentity


def test_a_host_keeps_its_id_under_another_name_or_another_uuid(url, catalog):
    """Broken: after a DHCP lease, a new board or a machine that was installed anew, all checkpoints would be gone."""
    id = catalog.hosts.identify(HostIdentity("u-1", "kvm1"))
    assert (catalog.hosts.identify(HostIdentity("u-1", "kvm1")), catalog.hosts.name(id)) == (id, "kvm1")
    assert (catalog.hosts.identify(HostIdentity("u-1", "kvm1.example.org")), catalog.hosts.name(id)) == (id, "kvm1.example.org")
    assert catalog.hosts.identify(HostIdentity("u-9", "kvm1.example.org")) == id
    again = Catalog(url)
    assert again.hosts.identify(HostIdentity("u-9", "kvm1")) == id
    again.close()


def test_two_hosts_stay_two(catalog):
    """Broken: the checkpoints of two hosts would be mixed, and images of one be looked for on the other. The UUID counts for
    more than the name: a host may take the name that another one had."""
    first, second = (catalog.hosts.identify(HostIdentity(f"u-{number}", f"kvm{number}")) for number in (1, 2))
    assert first != second
    assert catalog.hosts.identify(HostIdentity("u-1", "kvm2")) == first
    assert catalog.hosts.identify(HostIdentity("u-2", "kvm2")) == second
    assert catalog.hosts.identify(HostIdentity("u-3", "kvm3")) not in (first, second)
    assert catalog.hosts.name("never seen") == "never seen"


def test_hosts_that_have_no_uuid_are_told_apart_by_name(catalog):
    """Broken: all hosts whose libvirt tells no UUID would be one."""
    first, second = (catalog.hosts.identify(HostIdentity("", name)) for name in ("kvm1", "kvm2"))
    assert first != second
    assert catalog.hosts.identify(HostIdentity("u-1", "kvm1")) == first


@pytest.mark.parametrize("attempt", range(5))
def test_a_new_host_that_many_see_at_once_gets_one_id(attempt, url):
    """Broken: one host would be two, and half of what is recorded of its VMs, checkpoints and locks not be seen."""
    catalogs = [Catalog(url) for _ in range(4)]
    barrier = threading.Barrier(len(catalogs))

    def identify(catalog: Catalog) -> str:
        barrier.wait()
        return catalog.hosts.identify(HostIdentity("u-1", "kvm1"))

    with ThreadPoolExecutor(len(catalogs)) as pool:
        assert len(set(pool.map(identify, catalogs))) == 1
    for catalog in catalogs:
        catalog.close()

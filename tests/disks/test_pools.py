"""Directories of images as storage pools, used by several operations at once."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from lab.bare import directory, pool
from lab.standstill import wait_for
from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import Host
from quiesce.storage import pools

ROUNDS = 25


def test_an_administrators_pool_is_listed_while_others_write_to_it() -> None:
    """Broken: libvirt refuses to read a pool anew while a file is made in it, and one VM's operation would end another's."""
    failures: list[Exception] = []

    def use(path: Path, name: str) -> None:
        host = Host("qemu:///system")
        try:
            for _ in range(ROUNDS):
                if name:
                    pools.write(host, str(path / name), b"x" * 300_000)
                with pools.directory(host, str(path)) as place:
                    if name:
                        place.create_flat(f"{name}.qcow2", 1024 * 1024)
                        place.delete(f"{name}.qcow2")
                        place.delete(name)
                    else:
                        place.volumes()
        except Exception as error:  # told below, by the thread that can fail the test
            failures.append(error)
        finally:
            host.close()

    with directory() as path, pool(path):
        threads = [threading.Thread(target=use, args=(path, name)) for name in ("", "one", "", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_the_last_to_use_a_pool_removes_all_that_were_made() -> None:
    """Broken: whoever ends while another operation runs would leave a pool on the host for good."""

    def ours() -> list[str]:
        with contextlib.closing(Host("qemu:///system")) as host:
            found = [pool.XMLDesc(0) for pool in host.connection.listAllStoragePools()]
        return [path.name for path in paths if any(f"<path>{path}</path>" in xml for xml in found)]

    def use_until_told() -> None:
        with contextlib.closing(Host("qemu:///system")) as host, pools.directory(host, str(paths[0])):
            in_use.set()
            told.wait(60)

    in_use, told = threading.Event(), threading.Event()
    with directory() as first, directory() as second, contextlib.closing(Host("qemu:///system")) as host:
        paths = (first, second)
        longer = threading.Thread(target=use_until_told)
        longer.start()
        assert in_use.wait(60)
        # Made by hand: to make it as an operation does is to wait until nobody uses any.
        name = f"{pools.POOL_PREFIX}of-one-who-is-done"
        host.connection.storagePoolCreateXML(storage_xml.directory_pool(name, str(second)), 0)
        with pools.directory(host, str(second)):
            assert ours() == [first.name, second.name]
        assert ours() == [first.name, second.name]
        told.set()
        longer.join()
        wait_for(lambda: ours() == [], 60)  # other tests beside this one use pools too


def test_what_a_killed_process_left_in_the_staging_directory_is_removed() -> None:
    """Broken: every process killed while libvirt makes an image would leave a file in memory until the host restarts."""
    with contextlib.closing(Host("qemu:///system")) as host, pools.staging(host) as staging:
        left = Path(staging.create_flat(f"left{pools.STAGED}", 1 << 20))
    assert not left.exists()

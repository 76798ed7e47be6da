"""A VM on real disks that keeps count of what ought to be."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection
from pathlib import Path

import libvirt

from lab.forest import TARGETS, Disks, Forest, check, read
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import Deleted, delete
from quiesce.operations.doctor import Diagnosis, doctor
from quiesce.operations.restore import restore


class Scene(Forest):
    """A forest that keeps count of what ought to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.nodes: dict[str, Disks] = {}
        self.head: Disks = {}
        self._number = 0
        self.change()

    def keep(self) -> None:
        """All as it is, for `begin_again`. The VM is off."""
        self.save("grown")
        self._kept = dict(self.nodes), dict(self.head), self._number

    def begin_again(self) -> None:
        """Whatever became of it, and of its VM."""
        with contextlib.suppress(libvirt.libvirtError):
            found = self.bare.connection.lookupByName(self.name)
            with contextlib.suppress(libvirt.libvirtError):  # off
                found.destroy()
            found.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        nodes, head, self._number = self._kept
        self.nodes, self.head = dict(nodes), dict(head)
        self.put_back("grown")

    def reference(self, name: str) -> CheckpointReference:
        return CheckpointReference(self.name, name)

    def change(self) -> None:
        self._number += 1
        for target, at in zip(TARGETS, (self._number % 7, self._number % 5), strict=True):
            self.write(target, at * 128 * 1024, 64 * 1024, self._number)
        self.look()

    def look(self) -> None:
        self.flush()
        self.head = {target: read(path) for target, path in self.sources().items()}

    def create(self, name: str, **options: object) -> None:
        checkpoint(self.context, self.name, **({"name": name, "required": Consistency.CRASH} | options))  # type: ignore[arg-type]
        self.nodes[name] = dict(self.head)
        self.change()

    def back(self, name: str) -> None:
        restore(self.context, self.reference(name), discard_current=True)
        self.head = dict(self.nodes[name])
        self.change()

    def delete(self, *names: str, subtree: bool = False) -> Deleted:
        done = delete(self.context, [self.reference(name) for name in names], subtree=subtree)
        for node in done.checkpoints:
            del self.nodes[node.name]
        return done

    def check(self) -> None:
        check(self, self.nodes, self.head)

    def check_contents(self, *names: str) -> None:
        """Asserts that these checkpoints have the right content, whatever else there is."""
        for name in names:
            for disk in self.tree().find(name).disks:
                assert read(disk.path) == self.nodes[name][disk.target], name

    def hidden(self) -> set[str]:
        return {node.name for node in self.tree().nodes if node.hidden}

    def complaints(self, *, repair: bool = False, give_up: Collection[str] = ()) -> tuple[str, ...]:
        return self.examine(repair=repair, give_up=give_up).found

    def examine(self, *, repair: bool = False, give_up: Collection[str] = ()) -> Diagnosis:
        (found,) = doctor(self.context, self.name, repair=repair, give_up=give_up)
        return found

    def virsh(self, *arguments: str) -> None:
        subprocess.run(["virsh", "-q", "-c", "qemu:///system", *arguments], check=True, stdout=subprocess.DEVNULL)

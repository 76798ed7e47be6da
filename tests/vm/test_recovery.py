"""Whatever is killed when: every checkpoint keeps its content, the VM its state, and no file is left over."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from quiesce.catalog.journal import Journal
from quiesce.catalog.store import Catalog
from quiesce.hypervisor import domain_xml
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Kind, Tree
from quiesce.operations.context import Context
from quiesce.operations.delete import delete
from quiesce.operations.doctor import Diagnosis, doctor
from quiesce.operations.tree import tree
from tests.vm.bare import Bare, directory
from tests.vm.conftest import Quiesce

KILLED_AT = """
import os, signal, sys
from quiesce.catalog import journal

left = int(sys.argv[1])

def deadly(function):
    def wrapper(*arguments, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **named)
    return wrapper

journal.Journal.intend = deadly(journal.Journal.intend)
journal.Journal.done = deadly(journal.Journal.done)
journal.finish = deadly(journal.finish)
sys.argv = ["quiesce", *sys.argv[2:]]
from quiesce.cli import main
main.main()
"""
"""The real program, killed just before it writes to the journal for the nth time: so between any two steps."""


class Scene:
    """A VM with two checkpoints, two disks, and something written after each; saved once, put back for every kill."""

    def __init__(self, path: Path, quiesce: Quiesce) -> None:
        self.quiesce = quiesce
        self.catalog = Path(quiesce.environment["QUIESCE_CATALOG"]).parent
        self.saved = path.parent / f".{path.name}.saved"
        self.bare = Bare(path, disks=2, start=False)
        self.write(1)
        for number, name in ((2, "one"), (3, "two")):
            self.bare.domain.create()
            quiesce("checkpoint", self.bare.name, "--name", name, "--require", "crash")
            self.bare.domain.destroy()
            self.write(number)
        self.xml = self.bare.domain.XMLDesc(2)
        self.expected = {node.name: content(paths(node)) for node in self.tree().checkpoints}
        self.present = self.content()
        assert len({*self.expected.values(), self.present}) == 3
        shutil.copytree(path, self.saved / "vm")
        shutil.copytree(self.catalog, self.saved / "catalog")

    def put_back(self, *, running: bool) -> None:
        if self.bare.domain.isActive():
            self.bare.domain.destroy()
        for source, target in ((self.saved / "vm", self.bare.directory), (self.saved / "catalog", self.catalog)):
            for file in target.iterdir():
                if file.name != "owner.lock":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("owner.lock"))
        self.bare.domain = self.bare.connection.defineXML(self.xml)
        if running:
            self.bare.domain.create()

    def write(self, number: int) -> None:
        """Leaves a mark of this number on both disks of the VM, which is off."""
        for path in self.sources():
            command = f"write -P {number} {number}M 64k"
            subprocess.run(["qemu-io", "-c", command, path], check=True, stdout=subprocess.DEVNULL)

    def sources(self) -> list[str]:
        return [str(disk.path) for disk in domain_xml.disks(self.bare.domain.XMLDesc(2))]

    def content(self) -> str:
        return content(self.sources())

    @contextmanager
    def context(self) -> Iterator[Context]:
        """Opened afresh each time, as the catalog's file is exchanged in between."""
        catalog = Catalog(f"sqlite:///{self.quiesce.environment['QUIESCE_CATALOG']}")
        yield Context("qemu:///system", catalog, lambda _: None)
        catalog.close()

    def tree(self) -> Tree:
        with self.context() as context:
            return tree(context, self.bare.name)

    def doctor(self, *, repair: bool = False) -> Diagnosis:
        with self.context() as context:
            return doctor(context, self.bare.name, repair=repair)

    def images(self) -> set[str]:
        return {str(path) for path in self.bare.directory.glob("*.qcow2")}

    def remove(self) -> None:
        self.bare.remove()
        shutil.rmtree(self.saved, ignore_errors=True)


def content(paths: list[str]) -> str:
    """A hash of what a guest would read from these images."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            raw = Path(scratch) / "raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
            digest.update(raw.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def scene(quiesce: Quiesce) -> Iterator[Scene]:
    with directory() as path:
        scene = Scene(path, quiesce)
        yield scene
        scene.remove()


VERBS = {
    "create": ["checkpoint", "{}", "--name", "three", "--require", "crash"],
    "restore": ["restore", "{}@one"],
    "restore-and-discard": ["restore", "{}@one", "--discard-current"],
    "delete": ["delete", "{}@two"],
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("verb", "running"),
    [("create", True), ("restore", True), ("restore-and-discard", False), ("delete", True), ("delete", False)],
)
def test_killed_at_every_step(scene: Scene, quiesce: Quiesce, verb: str, running: bool) -> None:
    """Killed before any write to its journal, an operation is afterwards either wholly done or wholly undone."""
    kills = 0
    while True:
        scene.put_back(running=running)
        arguments = [word.format(scene.bare.name) for word in VERBS[verb]]
        finished = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(kills), *arguments],
            env=quiesce.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if finished.returncode != -signal.SIGKILL:
            break
        kills += 1
        assert scene.doctor().found
        assert scene.doctor(repair=True).mended
        assert scene.doctor().found == ()
        check(scene, verb, kills)
    assert finished.returncode == 0, finished
    assert kills > 5
    check(scene, verb, kills)
    print(f"{verb}: killed at {kills} steps, nothing lost")


def test_a_merge_left_running(scene: Scene, quiesce: Quiesce) -> None:
    """Killed in the middle of a merge, QEMU goes on with it: the next operation ends it, and nothing is lost."""
    scene.bare.domain.create()
    node = scene.tree().find("two")
    with scene.context() as context:
        journal = Journal(context.catalog, node.host, node.vm_uuid, "delete")
        journal.intend("merge", target="vda", base=paths(node)[0], top=scene.sources()[0])
    scene.bare.domain.blockCommit("vda", paths(node)[0], None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    assert scene.bare.domain.blockJobInfo("vda", 0)
    quiesce("delete", f"{scene.bare.name}@two")
    scene.bare.domain.destroy()
    assert scene.content() == scene.present
    assert [node.name for node in scene.tree().checkpoints] == ["one"]


def check(scene: Scene, verb: str, kills: int) -> None:
    nodes = scene.tree().checkpoints
    if verb == "delete" and any(node.name == "two" for node in nodes):
        # An interrupted deletion is finished by calling it again.
        with scene.context() as context:
            delete(context, CheckpointReference(scene.bare.name, "two"))
        nodes = scene.tree().checkpoints
    if scene.bare.domain.isActive():
        scene.bare.domain.destroy()
    names = {node.name for node in nodes}
    for node in nodes:
        if node.name in scene.expected:
            assert content(paths(node)) == scene.expected[node.name], (node.name, kills)
    if verb.startswith("restore"):
        safety = [node for node in nodes if node.kind is Kind.SAFETY]
        if scene.content() == scene.present:
            assert not safety
        else:
            assert scene.content() == scene.expected["one"]
            assert [content(paths(node)) for node in safety] == [scene.present] * (verb == "restore")
    else:
        assert scene.content() == scene.present, kills
        assert names == ({"one"} if verb == "delete" else {"one", "two", *(names & {"three"})})
    assert scene.images() == {path for node in nodes for path in paths(node)} | set(scene.sources()), kills
    manifests = {path.name for path in scene.bare.directory.glob("quiesce-*.json")}
    assert manifests == {f"quiesce-{node.id}.json" for node in nodes}, kills
    scene.bare.domain.create()  # bootable: QEMU opens every image of the chain


def paths(node: Checkpoint) -> list[str]:
    return [disk.path for disk in node.disks]

"""storage/files.py and storage/local.py keep the contract of every storage: real files, real libvirt, real QEMU."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.bare import directory
from lab.machine import URI
from quiesce.hypervisor.connection import Host
from quiesce.storage.files import FileStorage
from quiesce.storage.local import LocalStorage
from quiesce.storage.port import Storage
from tests.storage_contract import StorageContract
from tests.storage_scene import CAPACITY, Scene

BLOCK = 65536


class FileScene:
    """A directory on a filesystem of its own, so that it can be filled."""

    def __init__(self, root: Path, storage: Storage, stack: contextlib.ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._path = root / "images"
        self._path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256M,mode=755", "none", self._path], check=True)
        stack.callback(subprocess.run, ["umount", self._path], check=True)
        (root / "link").symlink_to(self._path)
        (root / "bound").mkdir()
        self.storage = storage
        self.place = str(self._path)

    def base(self, name: str) -> str:
        path = self._path / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(CAPACITY)], check=True)
        return str(path)

    def write(self, image: str, block: int, value: int) -> None:
        subprocess.run(["qemu-io", "-c", f"write -q -P {value} {block * BLOCK} {BLOCK}", image], check=True)

    def content(self, image: str) -> dict[int, int]:
        raw = self._root / "read.raw"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, raw], check=True)
        values = raw.read_bytes()[::BLOCK]
        raw.unlink()
        return {block: value for block, value in enumerate(values) if value}

    def other_spelling(self, image: str) -> str:
        return f"{self._root}/link/..//images/../link/{Path(image).name}"

    def bind_mount(self) -> Path:
        """Another directory that is the same one."""
        subprocess.run(["mount", "--bind", self._path, self._root / "bound"], check=True)
        self._stack.callback(subprocess.run, ["umount", self._root / "bound"], check=True)
        return self._root / "bound"

    def fill(self) -> None:
        with (self._path / "filler").open("wb") as file:
            free = os.statvfs(self._path)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)

    def put_back(self, image: str) -> None:
        aside = self._root / "aside"
        subprocess.run(["cp", "-a", "--sparse=never", image, aside], check=True)
        Path(image).unlink()
        subprocess.run(["cp", "-a", aside, image], check=True)

    def open_elsewhere(self, image: str) -> None:
        command = ["qemu-io", image]
        program = self._stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("read -v 0 1\n")
        program.stdin.flush()
        program.stdout.readline()  # it is open

    def unreadable(self) -> str:
        return str(self._root / "gone")


@contextlib.contextmanager
def _scene(kind: Callable[[Host], Storage]) -> Iterator[FileScene]:
    with directory() as root, contextlib.closing(Host(URI)) as host, contextlib.ExitStack() as stack:
        yield FileScene(root, kind(host), stack)


class Files(StorageContract):
    def test_a_bind_mount_is_no_other_directory(self, scene: FileScene) -> None:
        """Broken: a VM that was defined by way of a bind mount would seem to have no checkpoints."""
        base = scene.base("base.qcow2")
        there = scene.bind_mount()
        assert scene.storage.identity(str(there / "base.qcow2")) == scene.storage.identity(base)

    def test_shared_memory_is_no_device(self, scene: FileScene) -> None:
        """Broken: images in /dev/shm would be taken for block devices, and checkpoints of them be unknown."""
        assert scene.storage.knows("/dev/shm/vda.qcow2")
        assert not scene.storage.knows("/dev/vg/data")


class TestPools(Files):
    @pytest.fixture
    def scene(self) -> Iterator[FileScene]:
        with _scene(FileStorage) as found:
            yield found


class TestLocal(Files):
    @pytest.fixture
    def scene(self) -> Iterator[FileScene]:
        with _scene(LocalStorage) as found:
            yield found


def _is_a_scene(scene: FileScene) -> Scene:
    return scene

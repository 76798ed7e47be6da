"""storage/memory.py keeps the contract of every storage, so that tests in memory mean something."""

from __future__ import annotations

import copy

import pytest

from quiesce.storage.memory import MemoryStorage
from tests.storage_contract import StorageContract
from tests.storage_scene import CAPACITY, Scene


class MemoryScene:
    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.storage.links["/link"] = "/i"
        self.place = "/i"

    def base(self, name: str) -> str:
        path = self.storage.make(f"/i/{name}")
        self.storage.files[path].capacity = CAPACITY
        return path

    def write(self, image: str, block: int, value: int) -> None:
        self.storage.files[image].blocks[block] = str(value)
        self.storage.touch(image)

    def content(self, image: str) -> dict[int, int]:
        return {block: int(value) for block, value in self.storage.blocks(image).items()}

    def other_spelling(self, image: str) -> str:
        return image.replace("/i/", "//link/../link//")

    def fill(self) -> None:
        self.storage.free = 0

    def put_back(self, image: str) -> None:
        self.storage.files[image] = copy.deepcopy(self.storage.files[image])
        written = self.storage.files[image].written
        self.storage.touch(image)
        self.storage.files[image].written = written

    def open_elsewhere(self, image: str) -> None:
        self.storage.open_by_others = lambda: [image]

    def unreadable(self) -> str:
        self.storage.unreadable["/gone"] = "cannot open directory '/gone'"
        return "/gone"


@pytest.fixture
def scene() -> Scene:
    return MemoryScene()


class TestMemory(StorageContract):
    pass

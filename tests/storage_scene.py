"""A place of a storage with what guests and strangers do there: what tests/storage_contract.py is played on."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from quiesce.model.fingerprints import Fingerprint
from quiesce.storage.port import Storage

CAPACITY = 2**20


def fingerprint(scene: Scene, image: str) -> Fingerprint:
    return Fingerprint.of(replace(scene.storage.image(image), tables=scene.storage.tables(image, "qcow2")))


def digest(scene: Scene, image: str) -> str:
    return scene.storage.content(image, no_progress)


class Scene(Protocol):
    """A storage with one place that is there and empty, and the means to do what guests and strangers do."""

    storage: Storage
    place: str

    def base(self, name: str) -> str:
        """An image without a backing file, as an administrator made it: CAPACITY bytes, qcow2."""

    def write(self, image: str, block: int, value: int) -> None:
        """As a guest does. `block`: of 64 KiB. `value`: 1 to 255."""

    def content(self, image: str) -> dict[int, int]:
        """What a guest would read: the value of each block that was written."""

    def other_spelling(self, image: str) -> str:
        """Another name that leads to the same image."""

    def fill(self) -> None:
        """Nothing more can be written to the place."""

    def put_back(self, image: str) -> None:
        """The file is gone, and comes back from a backup that keeps the time of the last write."""

    def open_elsewhere(self, image: str) -> None:
        """A program has the image open for writing, until the end of the test."""

    def unreadable(self) -> str:
        """A place that is not there."""


def no_progress(_done: int, _total: int) -> None:
    pass

"""storage/files.py on directories that a test makes up. tests/disks holds it to the contract on real files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from quiesce.model.chains import Image
from quiesce.model.errors import HypervisorError
from quiesce.storage import files as module
from quiesce.storage.files import FileStorage


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    """/link is a symbolic link to /a. The disk is in /a, its backing file in /b, that one's in /gone."""
    found: Mapping[str, dict[str, str | None]] = {
        "/a": {"/a/disk": "/link/../b/below"},
        "/b": {"/b/below": "/gone/last", "/b/other": None},
        "/c": {"/c/far": None},
    }

    @contextmanager
    def directory(_host: object, place: str, *, build: bool = False) -> Iterator[Any]:
        assert not build
        if place not in found:
            raise HypervisorError(f"{place} is not there")
        yield SimpleNamespace(
            volumes=lambda: [Image(path, "qcow2", backing, 0, 0, "") for path, backing in found[place].items()]
        )

    monkeypatch.setattr(module.pools, "directory", directory)
    spell = {"/link/../b/below": "/b/below", "/link/disk": "/a/disk"}
    return FileStorage(SimpleNamespace(spell=lambda path: spell.get(path, path), is_device=lambda _: False))  # type: ignore[arg-type]


def test_backing_files_are_looked_for_in_their_own_directories(storage):
    """Broken: a backing file in another directory would count as gone, and its checkpoint be given up."""
    found = storage.look(["/a/disk"])
    assert set(found.images) == {"/a/disk", "/b/below"}
    assert found.chains.chain("/a/disk") == ("/a/disk", "/b/below", "/gone/last")
    assert set(found.unreadable) == {"/gone"}


def test_an_image_has_one_name_whatever_path_leads_to_it(storage):
    """Broken: an image that a VM has by another path would be removed as nobody's."""
    assert storage.identity("/link/disk") == "/a/disk"
    assert storage.look(["/link/disk"]) == storage.look(["/a/disk"])
    assert storage.look(["/a/disk"]).images["/a/disk"].backing == "/b/below"

"""What every storage is held to: tests/unit/test_storage.py runs it on the one in memory, tests/disks/test_storage.py on files
of a real libvirt host. A storage of another kind gets a Scene of its own and the same suite."""

from __future__ import annotations

import hashlib

import pytest

from quiesce.model.chains import Readers
from quiesce.model.errors import BusyError, HypervisorError, NameTakenError, NoSpaceError, NotFoundError, RefusedError
from quiesce.storage.port import START, minding_room, require_room
from tests.storage_scene import CAPACITY, Scene, digest, fingerprint, no_progress


class StorageContract:
    """`scene` is a fixture of the module that inherits this."""

    def overlay(self, scene: Scene, name: str, backing: str) -> str:
        path = scene.storage.inside(scene.place, name)
        scene.storage.make_overlay(path, CAPACITY, backing, "qcow2")
        return path

    def chain(self, scene: Scene) -> tuple[str, str, str]:
        """base <- middle <- top, each with a block of its own and one that all wrote."""
        base = scene.base("base.qcow2")
        scene.write(base, 0, 1)
        scene.write(base, 9, 1)
        middle = self.overlay(scene, "middle.qcow2", base)
        scene.write(middle, 1, 2)
        scene.write(middle, 9, 2)
        top = self.overlay(scene, "top.qcow2", middle)
        scene.write(top, 2, 3)
        scene.write(top, 9, 3)
        return base, middle, top

    # -- identity

    def test_an_image_has_one_identity_whatever_name_leads_to_it(self, scene: Scene) -> None:
        """Broken: a deleted checkpoint would never be merged, for an image of its own under another name."""
        base = scene.base("base.qcow2")
        other = scene.other_spelling(base)
        assert other != base
        assert scene.storage.identity(other) == scene.storage.identity(base) == base
        assert scene.storage.identity(scene.storage.inside(scene.place, "else.qcow2")) != base
        assert scene.storage.place(other) == scene.storage.place(base) == scene.place
        assert scene.storage.image(other) == scene.storage.image(base)

    def test_an_overlay_on_another_name_has_the_image_as_its_backing_file(self, scene: Scene) -> None:
        """Broken: a chain would seem to end where somebody wrote the path differently, and what it needs be removed."""
        base = scene.base("base.qcow2")
        overlay = self.overlay(scene, "over.qcow2", scene.other_spelling(base))
        assert scene.storage.image(overlay).backing == base
        assert scene.storage.look([overlay]).chains.chain(overlay) == (overlay, base)

    def test_what_is_no_image_of_this_storage_is_not_looked_for(self, scene: Scene) -> None:
        """Broken: every operation on a VM with a base on NBD would fail, for a directory of that name cannot be read."""
        assert scene.storage.knows(scene.base("base.qcow2"))
        assert not scene.storage.knows("nbd://127.0.0.1:10889/base")
        found = scene.storage.look(["nbd://127.0.0.1:10889/base"])
        assert (dict(found.images), dict(found.unreadable)) == ({}, {})

    def test_an_overlay_records_the_format_of_its_backing_file(self, scene: Scene) -> None:
        """Broken: libvirt would refuse to guess the format, and the VM not start."""
        base, middle, top = self.chain(scene)
        assert [scene.storage.backing_format(path) for path in (base, middle, top)] == [None, "qcow2", "qcow2"]

    # -- finding

    def test_an_image_is_found_with_its_backing_files(self, scene: Scene) -> None:
        """Broken: it would be unknown what a checkpoint needs."""
        base, middle, top = self.chain(scene)
        scene.storage.write(scene.storage.inside(scene.place, "note.json"), b"{}")
        found = scene.storage.look([top])
        assert found.images.keys() == {base, middle, top}
        assert not found.unreadable
        assert {path: found.images[path].backing for path in (base, middle, top)} == {base: None, middle: base, top: middle}
        assert {found.images[path].capacity for path in (base, middle, top)} == {CAPACITY}
        assert scene.storage.look([middle, scene.storage.inside(scene.place, "gone")]).images.keys() == {base, middle}

    def test_everything_in_a_place_is_found(self, scene: Scene) -> None:
        """Broken: an export would be written over what is there."""
        base, middle, top = self.chain(scene)
        note = scene.storage.inside(scene.place, "note.json")
        scene.storage.write(note, b"{}")
        found = scene.storage.contents(scene.place)
        assert found.keys() == {base, middle, top, note}
        assert {path: found[path] for path in (base, middle, top)} == scene.storage.look([top]).images
        assert list(scene.storage.names(scene.place, "note", ".json")) == [note]
        assert list(scene.storage.names(scene.place, "note", ".qcow2")) == []

    def test_overlays_of_others_are_found_beside_an_image_and_where_others_have_theirs(self, scene: Scene) -> None:
        """Broken: somebody's clone would not be seen, and its backing file be removed."""
        base, middle, top = self.chain(scene)
        elsewhere = scene.storage.inside(scene.place, "elsewhere")
        scene.storage.contents(elsewhere, make=True)
        clone = scene.storage.inside(elsewhere, "clone.qcow2")
        scene.storage.make_overlay(clone, CAPACITY, top, "qcow2")
        found = scene.storage.overlays([scene.place], [])
        assert found.below == {middle: base, top: middle}
        assert Readers(found.below).of([base]) == {middle, top}
        assert Readers(found.below).of([top]) == set()
        found = scene.storage.overlays([scene.place], [clone, "nbd://127.0.0.1:10889/base"])
        assert found.below == {middle: base, top: middle, clone: top}
        assert Readers(found.below).of([middle]) == {top, clone}
        assert found.named == {clone: clone}
        beside = self.overlay(scene, "beside.qcow2", base)
        assert Readers(scene.storage.overlays([scene.place], [], again=True).below).of([base]) == {middle, top, beside}
        scene.storage.remove(beside)
        assert Readers(scene.storage.overlays([scene.place], [], again=True).below).of([base]) == {middle, top}
        assert scene.storage.overlays([scene.unreadable()], []).unreadable.keys() == {scene.unreadable()}

    def test_a_place_that_is_not_there_is_said(self, scene: Scene) -> None:
        """Broken: an unmounted directory would pass for an empty one, and its checkpoints be given up."""
        place = scene.unreadable()
        found = scene.storage.look([scene.storage.inside(place, "vda.qcow2")])
        assert found.unreadable.keys() == {place}
        with pytest.raises(HypervisorError):
            scene.storage.contents(place)

    def test_a_place_can_be_made(self, scene: Scene) -> None:
        """Broken: nobody could export into a new directory."""
        place = scene.storage.inside(scene.place, "new")
        assert scene.storage.contents(place, make=True) == {}
        deeper = scene.storage.inside(scene.place, "newer")
        scene.storage.write(scene.storage.inside(deeper, "state"), b"x", make_place=True)
        assert scene.storage.read(scene.storage.inside(deeper, "state")) == b"x"

    def test_an_image_that_is_not_there(self, scene: Scene) -> None:
        """Broken: what is gone would pass for empty."""
        path = scene.storage.inside(scene.place, "gone.qcow2")
        for ask in (scene.storage.image, scene.storage.read, scene.storage.size):
            with pytest.raises(NotFoundError):
                ask(path)
        assert not scene.storage.has(path)

    # -- making and removing

    def test_an_overlay_reads_as_its_backing_file_until_it_is_written(self, scene: Scene) -> None:
        """Broken: a checkpoint would change with what the VM writes, or not have what was there."""
        base, middle, top = self.chain(scene)
        assert scene.content(base) == {0: 1, 9: 1}
        assert scene.content(middle) == {0: 1, 1: 2, 9: 2}
        assert scene.content(top) == {0: 1, 1: 2, 2: 3, 9: 3}

    def test_nothing_is_made_over_what_is_there(self, scene: Scene) -> None:
        """Broken: somebody's image would be lost."""
        base = scene.base("base.qcow2")
        scene.write(base, 0, 7)
        for make in (
            lambda: scene.storage.make_flat(base, CAPACITY),
            lambda: scene.storage.make_overlay(base, CAPACITY, base, "qcow2"),
            lambda: scene.storage.create(base, b"state"),
            lambda: scene.storage.copy_file(scene.base("other.qcow2"), base, 4096, no_progress),
        ):
            with pytest.raises(NameTakenError):
                make()
        assert scene.content(base) == {0: 7}

    def test_a_write_shows_in_when_it_was_written(self, scene: Scene) -> None:
        """Broken: a VM that ran since would keep a label that it lost."""
        base = scene.base("base.qcow2")
        before = scene.storage.image(base).written
        assert scene.storage.image(base).written == before
        scene.write(base, 0, 1)
        assert scene.storage.image(base).written != before

    def test_whatever_changes_an_image_changes_its_fingerprint(self, scene: Scene) -> None:
        """Broken: a checkpoint would keep its label although another program wrote to its image."""
        base, middle, top = self.chain(scene)
        before = {path: fingerprint(scene, path) for path in (base, middle, top)}
        with scene.storage.merger() as merger:
            merger.commit(top, middle, base, no_progress)
        after = {path: fingerprint(scene, path) for path in (base, top)}
        for path in (base, top):
            found = before[path].difference(after[path])
            assert found is not None
            assert found.spoilt
        assert before[top].header != after[top].header  # it has another backing file
        scene.write(top, 4, 1)
        assert after[top].difference(fingerprint(scene, top))

    def test_a_write_in_place_leaves_the_tables_and_changes_the_content(self, scene: Scene) -> None:
        """Broken: a checkpoint would be called spoilt for certain although only its times are others; or a digest of all bytes
        not tell that they are others."""
        base = scene.base("base.qcow2")
        scene.write(base, 3, 1)
        before, tables, content = fingerprint(scene, base), scene.storage.tables(base, "qcow2"), digest(scene, base)
        scene.write(base, 3, 2)
        found = before.difference(fingerprint(scene, base))
        assert found is not None
        assert not found.spoilt
        assert scene.storage.tables(base, "qcow2") == tables
        assert digest(scene, base) != content
        scene.write(base, 3, 1)
        assert digest(scene, base) == content
        scene.write(base, 4, 1)
        assert scene.storage.tables(base, "qcow2") != tables
        assert digest(scene, base) != content

    def test_what_is_no_image_has_tables_and_content_too(self, scene: Scene) -> None:
        """Broken: a raw template could not be looked after; or a look at an empty file fail."""
        path, found = scene.storage.inside(scene.place, "state"), set()
        for content in (b"", b"a", bytes(200_000), bytes(199_999) + b"a"):
            scene.storage.write(path, content)
            found.add((scene.storage.tables(path, "raw"), digest(scene, path)))
        assert len(found) == 4
        assert len({tables for tables, _ in found}) == 4

    def test_a_file_that_is_gone_has_neither(self, scene: Scene) -> None:
        """Broken: a look at a checkpoint would end with a traceback."""
        path = scene.storage.inside(scene.place, "gone.qcow2")
        with pytest.raises(NotFoundError):
            scene.storage.tables(path, "qcow2")
        with pytest.raises(NotFoundError):
            digest(scene, path)

    def test_whoever_only_reads_an_image_leaves_its_fingerprint(self, scene: Scene) -> None:
        """Broken: checkpoints would lose their labels by being exported or started on, or be called spoilt because they were
        copied back from a backup."""
        base, middle, top = self.chain(scene)
        before = {path: fingerprint(scene, path) for path in (base, middle)}
        content = digest(scene, middle)
        scene.content(top)
        scene.write(top, 5, 7)
        copy = scene.storage.inside(scene.place, "copy.qcow2")
        scene.storage.make_flat(copy, CAPACITY)
        with scene.storage.merger() as merger:
            merger.copy(middle, "qcow2", CAPACITY, copy, no_progress)
        self.overlay(scene, "beside.qcow2", middle)
        for path in before:
            assert before[path].difference(fingerprint(scene, path)) is None
        now = fingerprint(scene, middle)  # the copy gave it to QEMU's user
        scene.put_back(middle)
        found = now.difference(fingerprint(scene, middle))
        assert found is not None
        assert not found.spoilt
        assert digest(scene, middle) == content

    def test_small_files(self, scene: Scene) -> None:
        """Broken: manifests and TPM states would not be what was written; a shorter one would keep the end of the longer."""
        path = scene.storage.inside(scene.place, "state")
        for content in (b"long enough to be seen", b"", b"short"):
            scene.storage.write(path, content)
            assert scene.storage.read(path) == content
            assert scene.storage.size(path) == len(content)
            assert scene.storage.sha256(path, no_progress) == hashlib.sha256(content).hexdigest()

    def test_a_file_is_copied_byte_by_byte(self, scene: Scene) -> None:
        """Broken: an imported disk would not be what was checked, or a file that grows meanwhile fill the storage."""
        base = scene.base("base.qcow2")
        scene.write(base, 0, 7)
        content = scene.storage.read(base)
        for name, size in (("copy.qcow2", len(content)), ("part", 100)):
            copy = scene.storage.inside(scene.place, name)
            copied = scene.storage.copy_file(base, copy, size, no_progress)
            assert copied.size == size
            assert copied.sha256 == hashlib.sha256(content[:size]).hexdigest()
            assert copied.start == content[: min(size, START)]
        assert scene.storage.read(scene.storage.inside(scene.place, "copy.qcow2")) == content
        assert scene.content(scene.storage.inside(scene.place, "copy.qcow2")) == {0: 7}
        assert scene.storage.read(base) == content

    def test_no_more_is_read_than_was_asked_for(self, scene: Scene) -> None:
        """Broken: a stranger's manifest of some gigabytes would fill the memory."""
        path = scene.storage.inside(scene.place, "state")
        scene.storage.create(path, b"x" * 100)
        assert scene.storage.read(path, 100) == scene.storage.start(path) == b"x" * 100
        with pytest.raises(RefusedError):
            scene.storage.read(path, 99)
        assert scene.storage.read_each([path, scene.storage.inside(scene.place, "gone")], 100) == {path: b"x" * 100}
        assert scene.storage.read_each([path], 99) == {}

    def test_what_was_removed_is_gone_and_removing_it_again_is_no_error(self, scene: Scene) -> None:
        """Broken: a recovery that is called again would fail for what it had done."""
        base = scene.base("base.qcow2")
        for _ in range(2):
            scene.storage.remove(base)
            assert not scene.storage.has(base)

    def test_without_room_nothing_is_made_and_nothing_left(self, scene: Scene) -> None:
        """Broken: an overlay would be left that nobody knows of, or a VM be switched to one that cannot grow."""
        base = scene.base("base.qcow2")
        scene.fill()
        path = scene.storage.inside(scene.place, "over.qcow2")
        with pytest.raises(NoSpaceError):
            scene.storage.make_overlay(path, CAPACITY, base, "qcow2")
        assert not scene.storage.has(path)
        room = scene.storage.room(scene.place)
        assert room.usable <= room.free
        with pytest.raises(NoSpaceError):
            require_room(scene.storage, scene.place, room.free + 1, "a test")
        with pytest.raises(NoSpaceError), minding_room(scene.storage, scene.place, room.usable + 1, "a test"):
            raise HypervisorError("no space left")

    # -- merging

    def test_the_topmost_is_committed(self, scene: Scene) -> None:
        """Broken: what the VM wrote would be lost with a deleted checkpoint."""
        base, middle, top = self.chain(scene)
        before = scene.content(top)
        called = []
        with scene.storage.merger() as merger:
            merger.commit_active(top, middle, no_progress, lambda: called.append("while it is open"))
        assert called == ["while it is open"]
        assert scene.content(middle) == scene.content(top) == before
        assert scene.content(base) == {0: 1, 9: 1}

    def test_one_in_the_middle_is_committed_and_the_one_above_reads_the_same(self, scene: Scene) -> None:
        """Broken: a checkpoint would change when the one below it is deleted."""
        base, middle, top = self.chain(scene)
        before = scene.content(top), scene.content(middle)
        with scene.storage.merger() as merger:
            merger.commit(top, middle, base, no_progress)
        assert (scene.content(top), scene.content(base)) == before
        assert scene.storage.image(top).backing == base
        assert scene.content(middle) == before[1]  # whoever else has it as a backing file reads the right content

    def test_a_copy_has_everything_and_no_backing_file(self, scene: Scene) -> None:
        """Broken: an export could not be read elsewhere."""
        _, _, top = self.chain(scene)
        copy = scene.storage.inside(scene.place, "copy.qcow2")
        scene.storage.make_flat(copy, CAPACITY)
        with scene.storage.merger() as merger:
            merger.copy(top, "qcow2", CAPACITY, copy, no_progress)
        assert scene.content(copy) == scene.content(top)
        assert scene.storage.image(copy).backing is None

    def test_what_is_pulled_into_an_overlay_is_not_read_below_any_more(self, scene: Scene) -> None:
        """Broken: the copy that makes a chain shorter would not be what the checkpoint is."""
        base, middle, top = self.chain(scene)
        before = [scene.content(image) for image in (base, middle, top)]
        pulled = {below: scene.storage.inside(scene.place, f"{below is None}.qcow2") for below in (base, None)}
        with scene.storage.merger() as merger:
            for below, copy in pulled.items():
                scene.storage.make_overlay(copy, CAPACITY, top, "qcow2")
                merger.pull(copy, below, no_progress)
        for below, copy in pulled.items():
            assert scene.content(copy) == before[2]
            assert scene.storage.image(copy).backing == below
        assert [scene.content(image) for image in (base, middle, top)] == before

    def test_a_copy_of_the_topmost_alone_goes_on_another_backing_file(self, scene: Scene) -> None:
        """Broken: the VM would go on without what it wrote after the checkpoint."""
        _, middle, top = self.chain(scene)
        before, called = scene.content(top), []
        flat, overlay = (scene.storage.inside(scene.place, name) for name in ("flat.qcow2", "overlay.qcow2"))
        scene.storage.make_flat(flat, CAPACITY)
        with scene.storage.merger() as merger:
            merger.copy(middle, "qcow2", CAPACITY, flat, no_progress)
            scene.storage.make_overlay(overlay, CAPACITY, flat, "qcow2")
            merger.copy_top(top, overlay, no_progress, lambda: called.append("while it is open"))
        assert called == ["while it is open"]
        assert scene.content(overlay) == scene.content(top) == before
        assert scene.storage.image(overlay).backing == flat

    def test_what_somebody_has_open_is_not_merged(self, scene: Scene) -> None:
        """Broken: two would write one image, and ruin it."""
        base, middle, top = self.chain(scene)
        contents = [scene.content(image) for image in (base, middle, top)]
        scene.open_elsewhere(top)
        with scene.storage.merger() as merger:
            with pytest.raises(BusyError):
                merger.commit(top, middle, base, no_progress)
            with pytest.raises(BusyError):
                merger.commit_active(top, middle, no_progress)
        assert [scene.content(image) for image in (base, middle, top)] == contents

"""What others do to the images of a checkpoint, between two of our operations, with the real programs: whoever then asks for
the checkpoint gets what was checkpointed, or is told that it is spoilt or unknown; never other bytes in silence."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.bare import directory
from lab.forest import faults, read
from quiesce.model.errors import RefusedError
from quiesce.model.grades import Consistency
from quiesce.operations.content import ContentState, verify_content
from quiesce.operations.export import export
from quiesce.operations.restore import restore
from tests.disks.scene import Scene

NAMES = ("a", "b", "c", "d")
SPOILT, UNKNOWN, SAME = "spoilt", "unknown", "same"


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


class Hands:
    """A VM with the checkpoints a - b - c - d - now, and what others do to its first disk."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def image(self, name: str) -> str:
        if name == "now":
            return self.scene.sources()["vda"]
        found = self.scene.tree().find(name).image("vda")
        assert found is not None
        return found.path

    def known(self, path: str) -> str:
        found = self.scene.survey().discrepancies.get(path)
        return SAME if found is None else SPOILT if found.spoilt else UNKNOWN

    def readers(self, path: str) -> set[str]:
        found = self.scene.survey()
        return {node.name for node in found.tree.checkpoints if path in found.chains.needed(disk.path for disk in node.disks)}

    def restored(self) -> set[str]:
        """Restores every checkpoint. Fails the test if one has other bytes than were checkpointed; returns the names of those
        that are not refused."""
        given = set()
        for node in self.scene.tree().checkpoints:
            try:
                restore(self.scene.context, self.scene.reference(node.name), discard_current=True)
            except RefusedError as error:
                assert repr(node.name) in error.message
                assert "vda" in error.message
                with pytest.raises(RefusedError, match=f"{node.name!r} cannot be exported"):
                    export(self.scene.context, self.scene.reference(node.name), str(self.scene.bare.directory / "export"))
                continue
            assert {target: read(path) for target, path in self.scene.sources().items()} == self.scene.nodes[node.name]
            given.add(node.name)
        return given

    def aside(self, name: str) -> Path:
        return Path(self.image(name)).with_suffix(".aside")

    def virsh(self, *words: str) -> None:
        self.scene.virsh(words[0], self.scene.name, "vda", *words[1:])


def keeping_time(hands: Hands, name: str, change: Callable[[], None]) -> None:
    """As a careful program, or a malicious one: the file has the time of its last write again."""
    before = os.stat(hands.image(name))  # noqa: PTH116 - the same call as below
    change()
    os.utime(hands.image(name), ns=(before.st_atime_ns, before.st_mtime_ns))


def blockcommit_active(hands: Hands) -> None:
    hands.virsh("blockcommit", "--active", "--pivot", "--shallow", "--wait")


def blockcommit_active_and_write(hands: Hands) -> None:
    hands.virsh("blockcommit", "--active", "--pivot", "--shallow", "--wait")
    hands.scene.write("vda", 0, 4096, 201)


def blockcommit_between(hands: Hands) -> None:
    hands.virsh("blockcommit", "--top", hands.image("c"), "--base", hands.image("b"), "--wait")


def blockcommit_all(hands: Hands) -> None:
    hands.virsh("blockcommit", "--active", "--pivot", "--base", hands.image("b"), "--wait")


def blockpull(hands: Hands) -> None:
    hands.virsh("blockpull", "--wait")


def blockcopy(hands: Hands) -> None:
    copy = Path(hands.image("now")).with_name("copy.qcow2")
    hands.virsh("blockcopy", str(copy), "--transient-job", "--wait", "--pivot", "--format", "qcow2")


RUNNING: dict[str, tuple[Callable[[Hands], None], dict[str, str]]] = {
    "blockcommit --active --pivot --shallow": (blockcommit_active, {"d": SPOILT}),
    "blockcommit --active --pivot --shallow, and the guest writes": (blockcommit_active_and_write, {"d": SPOILT}),
    "blockcommit --top c --base b": (blockcommit_between, {"b": SPOILT, "d": SPOILT}),  # d has another backing file
    "blockcommit --active --pivot --base b": (blockcommit_all, {"b": SPOILT}),
    "blockpull": (blockpull, {}),
    "blockcopy --pivot": (blockcopy, {}),
}
"""What is done while the VM runs, and the images that are not the same afterwards: the checkpoints that have them."""


def qemu_img(*words: str) -> Callable[[Hands], None]:
    """`{a}` is the image of checkpoint a, `{aside}` a file beside it."""

    def act(hands: Hands) -> None:
        images = {name: hands.image(name) for name in (*NAMES, "now")}
        run("qemu-img", *(word.format(**images, aside=hands.aside("a")) for word in words))

    return act


def qemu_io(name: str, offset: int) -> Callable[[Hands], None]:
    return lambda hands: run("qemu-io", "-c", f"write -q -P 99 {offset} 4096", hands.image(name))


def copied_over(name: str, other: str) -> Callable[[Hands], None]:
    return lambda hands: run("cp", hands.image(other), hands.image(name))


def brought_back(name: str, *copy: str) -> Callable[[Hands], None]:
    """From a backup of the file."""

    def act(hands: Hands) -> None:
        run("cp", "-a", hands.image(name), hands.aside(name))
        Path(hands.image(name)).unlink()
        run(*copy, hands.aside(name), hands.image(name))
        hands.aside(name).unlink()

    return act


def converted(name: str) -> Callable[[Hands], None]:
    def act(hands: Hands) -> None:
        run("qemu-img", "convert", "-O", "qcow2", hands.image(name), hands.aside(name))
        run("mv", hands.aside(name), hands.image(name))

    return act


def with_the_file(*command: str) -> Callable[[Hands], None]:
    return lambda hands: run(*command, hands.image("b"))


def other_rights_and_back(hands: Hands) -> None:
    path = Path(hands.image("b"))
    mode = path.stat().st_mode
    path.chmod(mode ^ 0o040)
    path.chmod(mode)


def back_and_forth(*commands: tuple[str, ...]) -> Callable[[Hands], None]:
    def act(hands: Hands) -> None:
        for command in commands:
            run(*command, hands.image("b"))

    return act


def moved_and_back(hands: Hands) -> None:
    run("mv", hands.image("b"), hands.aside("b"))
    run("mv", hands.aside("b"), hands.image("b"))


def linked(hands: Hands) -> None:
    run("ln", hands.image("b"), hands.aside("b"))
    hands.aside("b").unlink()


def customized(hands: Hands) -> None:
    """As virt-customize or guestfish do it: a program with a QEMU of its own opens the image and writes here and there."""
    commands = [word for at in range(0, 1024 * 1024, 128 * 1024) for word in ("-c", f"write -q -P 7 {at} 8192")]
    run("qemu-io", *commands, "-c", "flush", hands.image("b"))


NEW, OLD = 960 * 1024, 128 * 1024
"""Places where no checkpoint has data, and where the first has."""

OFF: dict[str, tuple[Callable[[Hands], None], str, str]] = {
    "qemu-img commit": (qemu_img("commit", "-q", "{now}"), "d", SPOILT),
    "qemu-img commit -d": (qemu_img("commit", "-q", "-d", "{now}"), "d", SPOILT),
    "qemu-img commit -b": (qemu_img("commit", "-q", "-b", "{b}", "{now}"), "b", SPOILT),
    "qemu-img commit of c": (qemu_img("commit", "-q", "{c}"), "b", SPOILT),
    "qemu-io into a place without data": (qemu_io("b", NEW), "b", SPOILT),
    "qemu-io in place": (qemu_io("a", OLD), "a", UNKNOWN),
    "virt-customize": (customized, "b", SPOILT),
    "qemu-img rebase": (qemu_img("rebase", "-q", "-b", "{a}", "-F", "qcow2", "{c}"), "c", SPOILT),
    "qemu-img rebase -u": (qemu_img("rebase", "-q", "-u", "-b", "{a}", "-F", "qcow2", "{c}"), "c", SPOILT),
    "qemu-img rebase to nothing": (qemu_img("rebase", "-q", "-b", "", "{c}"), "c", SPOILT),
    "qemu-img resize": (qemu_img("resize", "-q", "{b}", "+1M"), "b", SPOILT),
    "qemu-img snapshot -c": (qemu_img("snapshot", "-c", "x", "{b}"), "b", SPOILT),
    "qemu-img amend": (qemu_img("amend", "-q", "-o", "lazy_refcounts=on", "{b}"), "b", SPOILT),
    "qemu-img bitmap --add": (qemu_img("bitmap", "--add", "{b}", "x"), "b", SPOILT),
    "qemu-img convert over the file": (converted("b"), "b", SPOILT),
    "qemu-img create over the file": (qemu_img("create", "-q", "-f", "qcow2", "{b}", "1M"), "b", SPOILT),
    "cp of another image over it": (copied_over("b", "a"), "b", SPOILT),
    "truncate": (with_the_file("truncate", "-s", "-65536"), "b", SPOILT),
    "truncate, longer": (with_the_file("truncate", "-s", "+65536"), "b", SPOILT),
    "touch": (with_the_file("touch"), "b", UNKNOWN),
    "cp from a backup": (brought_back("b", "cp"), "b", UNKNOWN),
    "cp -a from a backup": (brought_back("b", "cp", "-a"), "b", UNKNOWN),
    "cp -a --sparse=never": (brought_back("b", "cp", "-a", "--sparse=never"), "b", UNKNOWN),
    "a hard link and gone again": (linked, "b", UNKNOWN),
    "mv away and back": (moved_and_back, "b", UNKNOWN),
    "chattr +i, chattr -i": (back_and_forth(("chattr", "+i"), ("chattr", "-i")), "b", UNKNOWN),
    "chmod and back": (other_rights_and_back, "b", UNKNOWN),
    "chown, as libvirt at the start of a VM": (with_the_file("chown", "libvirt-qemu"), "b", SAME),
    "qemu-img check": (qemu_img("check", "-q", "{b}"), "b", SAME),
    "qemu-img info": (qemu_img("info", "{b}"), "b", SAME),
    "read": (with_the_file("sha256sum"), "b", SAME),
}
"""What is done while the VM is off; the checkpoint whose own image it is done to; and what is known of this image then. Two
images that were exchanged: test_exchanged_images.py."""


@pytest.fixture(scope="module")
def kept() -> Iterator[Scene]:
    with directory() as path:
        scene = Scene(path)
        for name in NAMES:
            scene.create(name)
        scene.keep()
        yield scene
        scene.begin_again()
        scene.remove()


@pytest.fixture
def hands(kept: Scene) -> Hands:
    kept.begin_again()
    return Hands(kept)


@pytest.mark.parametrize("careful", [False, True], ids=["as it is", "the time put back"])
@pytest.mark.parametrize(("act", "name", "expected"), OFF.values(), ids=OFF.keys())
def test_what_others_do_to_an_image_while_the_vm_is_off(
    act: Callable[[Hands], None], name: str, expected: str, careful: bool, hands: Hands
) -> None:
    """Broken: a checkpoint would be restored or exported with bytes that it never had, before a repair or after it; or one that
    nobody touched be refused."""
    scene, path = hands.scene, hands.image(name)
    readers = hands.readers(path)
    if careful:
        keeping_time(hands, name, lambda: act(hands))
    else:
        act(hands)
    if careful and expected == SAME and hands.known(path) == UNKNOWN:
        pytest.skip("putting back a time that is the same changes the inode, too")
    assert hands.known(path) == expected
    lowered = {node.name for node in scene.tree().checkpoints if path in node.changed}
    assert lowered <= readers | hands.readers(path)
    assert (name in lowered) == (expected != SAME)
    assert any(path in text for text in scene.complaints()) == (expected != SAME)
    given = hands.restored()
    assert given >= set(NAMES) - readers - hands.readers(path)
    assert (name in given) == (expected == SAME)
    scene.complaints(repair=True)
    found = scene.tree().find(name)
    assert bool(found.spoilt) == (expected != SAME)
    assert path not in found.changed or found.consistency is Consistency.CRASH
    assert (name in hands.restored()) == (expected == SAME)


@pytest.mark.parametrize(("act", "spoilt"), RUNNING.values(), ids=RUNNING.keys())
def test_what_others_do_with_virsh_while_the_vm_runs(
    act: Callable[[Hands], None], spoilt: dict[str, str], hands: Hands
) -> None:
    """Broken: `restore` or `export` would return 0 with the content of another checkpoint, or doctor bless it."""
    scene = hands.scene
    images = {name: hands.image(name) for name in NAMES}
    scene.start()
    act(hands)
    assert {name: known for name in NAMES if (known := hands.known(images[name])) != SAME} == spoilt
    for name in spoilt:
        with pytest.raises(RefusedError, match=f"{name!r} cannot be restored"):
            restore(scene.context, scene.reference(name), discard_current=True)
        with pytest.raises(RefusedError, match=f"{name!r} cannot be exported"):
            export(scene.context, scene.reference(name), str(scene.bare.directory / "export"))
        assert any(images[name] in text for text in scene.complaints())
    scene.complaints(repair=True)
    assert not hands.restored() & spoilt.keys()


def test_what_quiesce_and_libvirt_do_with_the_images_leaves_them_the_same(scene: Scene) -> None:
    """Broken: after an export, a start or a deletion, checkpoints that nobody touched would be called unknown."""
    for name in NAMES:
        scene.create(name)

    def content() -> None:
        assert scene.complaints() == ()
        found = {node.name: (node.changed, node.spoilt) for node in scene.tree().checkpoints}
        assert found == dict.fromkeys(scene.nodes, ((), None))

    for name in ("b", "d"):
        export(scene.context, scene.reference(name), str(scene.bare.directory / f"export-{name}"))
        content()
    for _ in range(2):
        scene.start()
        content()
        scene.stop()
        content()
    for name in ("d", "b"):
        export(scene.context, scene.reference(name), str(scene.bare.directory / f"again-{name}"))
        content()
    scene.start()
    scene.create("e")
    content()
    scene.delete("b")
    content()
    scene.stop()
    scene.delete("c")
    content()
    scene.create("f")
    scene.back("a")
    content()
    scene.delete("f")
    content()
    assert not faults(scene, scene.nodes, scene.head).lost


BACK = {
    "cp": brought_back("b", "cp"),
    "cp -a": brought_back("b", "cp", "-a", "--sparse=never"),
    "touch": with_the_file("touch"),
    "chattr": back_and_forth(("chattr", "+i"), ("chattr", "-i")),
}


@pytest.mark.parametrize("act", BACK.values(), ids=BACK.keys())
def test_a_digest_settles_whether_a_copy_is_the_same(act: Callable[[Hands], None], hands: Hands) -> None:
    """Broken: whoever moves his images to another filesystem would lose all labels; or a wrong copy be taken for right."""
    scene, path = hands.scene, hands.image("b")
    assert states(scene, "c") == dict.fromkeys("abc", ContentState.RECORDED)
    act(hands)
    assert hands.known(path) == UNKNOWN
    scene.complaints(repair=True)
    assert scene.tree().find("b").spoilt is None  # a digest can settle it
    assert states(scene, "c") == dict.fromkeys("abc", ContentState.SAME)
    assert hands.known(path) == SAME
    assert scene.complaints() == ()
    assert hands.restored() == set(NAMES)


@pytest.mark.parametrize("careful", [False, True])
def test_a_digest_tells_a_write_in_place(careful: bool, hands: Hands) -> None:
    """Broken: bytes that were written over others, with the time put back, would be restored as what was checkpointed."""
    scene, act = hands.scene, qemu_io("a", OLD)
    states(scene, "b")
    if careful:
        keeping_time(hands, "a", lambda: act(hands))
    else:
        act(hands)
    found = verify_content(scene.context, scene.reference("b"))
    assert [image.outcome for image in found.images if image.path == hands.image("a")] == [ContentState.SPOILT]
    with pytest.raises(RefusedError, match=hands.image("a")):
        found.require()
    assert scene.tree().find("a").spoilt
    assert scene.tree().find("d").spoilt
    assert hands.restored() == set()


def test_a_checkpoint_with_its_digests(scene: Scene) -> None:
    """Broken: the digest that an administrator asked for would not be there when it is needed."""
    scene.start()
    scene.create("a", digest=True)
    assert set(states(scene, "a").values()) == {ContentState.SAME}


def states(scene: Scene, name: str) -> dict[str, ContentState]:
    """What is found of the images of the first disk, by the checkpoint that has each."""
    owners = {node.image("vda").path: node.name for node in scene.tree().checkpoints}  # type: ignore[union-attr]
    found = verify_content(scene.context, scene.reference(name)).images
    return {owners[image.path]: image.outcome for image in found if image.path in owners}

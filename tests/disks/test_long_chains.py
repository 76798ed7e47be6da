"""Many checkpoints in a row: the limit is libvirt's own, so real VMs show whether our chains stay below it."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab.forest import SIZE, faults
from quiesce.disks import merges, shortening, shortening_plan
from quiesce.model.errors import RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import parse_reference
from quiesce.operations import shorten
from quiesce.operations.checkpoint import checkpoint
from quiesce.taking import requirements
from tests.disks.scene import Scene


def on_golden_image(scene: Scene, images: int) -> None:
    """Puts so many images below the disk vda. The lowest has a bitmap, which nests deepest in QEMU's answer."""
    below: Path | None = None
    for number in range(images):
        path = scene.bare.directory / f"golden{number}.qcow2"
        make_image(path, below)
        below = path
    disk = scene.bare.directory / "vda.qcow2"
    disk.unlink()
    make_image(disk, below)
    lowest = scene.bare.directory / ("golden0.qcow2" if images else "vda.qcow2")
    subprocess.run(["qemu-img", "bitmap", "--add", lowest, "b"], check=True)
    scene.look()


def make_image(path: Path, below: Path | None) -> None:
    backing = ["-b", str(below), "-F", "qcow2"] if below else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, str(SIZE)], check=True)


def restart(scene: Scene) -> None:
    scene.stop()
    scene.start()


def lengths(scene: Scene) -> dict[str, int]:
    """How many images the VM opens for each disk."""
    found = scene.survey()
    return {target: len(found.chains.chain(path)) for target, path in found.head.items()}


def check(scene: Scene) -> None:
    """As Scene.check; files that an administrator made are left though the VM needs them no longer."""
    found = faults(scene, scene.nodes, scene.head)
    left = {Path(path).name for path in found.orphans}
    assert found.lost == ()
    assert left <= {"vda.qcow2", "vdb.qcow2", *(f"golden{number}.qcow2" for number in range(20))}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("checkpoints", "below"),
    [(30, 0), (12, 20), pytest.param(100, 0, marks=pytest.mark.long), pytest.param(100, 20, marks=pytest.mark.long)],
)
def test_checkpoints_in_a_row(scene: Scene, checkpoints: int, below: int) -> None:
    """Broken: after some number of checkpoints no more could be taken, or the VM would not start any more."""
    random_ = random.Random(checkpoints + below)  # noqa: S311
    on_golden_image(scene, below)
    scene.start()
    for number in range(checkpoints):
        if number % 10 == 9:
            restart(scene)
        if number % 20 == 14:
            scene.stop()  # the next ones while it is off
        elif not scene.running:
            scene.start()
        scene.create(f"c{number:03}")
        assert max(lengths(scene).values()) < shortening_plan.LONG
        if random_.random() < 0.3:
            scene.delete(random_.choice(sorted(scene.nodes)))
    check(scene)
    for name in random_.sample(sorted(scene.nodes), len(scene.nodes) // 3):
        if name not in scene.nodes:
            continue  # deleted meanwhile
        scene.back(name)
        scene.start()
        if random_.random() < 0.3:
            scene.delete(random_.choice(sorted(scene.nodes)))
        scene.stop()
    check(scene)
    assert scene.complaints() == ()


def full(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """The storage has no room for copies."""
    patch.setattr(shortening, "MIN_FREE", 2**50)


def create_until_refused(scene: Scene, prefix: str) -> tuple[int, list[str]]:
    """How many were taken, and which checkpoints the refusal names."""
    for number in range(60):
        try:
            scene.create(f"{prefix}{number:02}")
        except RefusedError as error:
            named = shlex.split((error.hint or "").partition("quiesce delete ")[2])
            return number, [parse_reference(text)[0].checkpoint for text in named]
    raise AssertionError("never refused")


@pytest.mark.timeout(600)
def test_without_room_the_longest_chain_starts_and_the_refusal_helps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the VM would not start any more after its next power-off, and nothing could be deleted."""
    on_golden_image(scene, 12)
    scene.start()
    with monkeypatch.context() as patch:
        full(scene, patch)
        taken, named = create_until_refused(scene, "a")
        assert taken == shortening_plan.STARTABLE - 13
        assert lengths(scene)["vda"] == shortening_plan.STARTABLE
        assert named == ["a00"]
        restart(scene)
        scene.delete(*named)
        scene.create("next")
        restart(scene)
        check(scene)
    scene.create("room again")
    assert lengths(scene)["vda"] <= shortening_plan.SHORT
    check(scene)


@pytest.mark.timeout(300)
def test_a_chain_that_is_too_long_already_can_be_shortened(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a VM that does not start, as earlier versions made them, could not be brought back."""
    with monkeypatch.context() as patch:
        full(scene, patch)
        patch.setattr(requirements, "STARTABLE", 26)
        assert create_until_refused(scene, "a")[0] == 25
    with pytest.raises(Exception, match="nesting too deep"):
        scene.start()
    taken, named = create_until_refused(scene, "x")
    assert (taken, len(named)) == (0, 5)
    scene.delete(*named)
    check(scene)
    scene.create("x")
    scene.start()
    assert max(lengths(scene).values()) <= shortening_plan.SHORT
    check(scene)


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_what_the_guest_flushed_is_there_after_qemu_is_killed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """Broken: QEMU killed just after the VM has the shorter chain: its disk would be empty where the tables were not written
    yet. So it is if the VM's own image is pulled into."""
    monkeypatch.setattr(shortening_plan, "LONG", 4)
    if running:
        scene.start()
    for number in range(2):
        scene.create(f"c{number}")
    head = scene.sources()["vda"]
    kill = Path("/run/libvirt/qemu") / f"{scene.name}.pid"
    real = merges.merge_hidden

    def merge_hidden(*arguments: object) -> object:
        assert scene.sources()["vda"] != head
        if running and kill.exists():
            os.kill(int(kill.read_text()), signal.SIGKILL)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shorten, "merge_hidden", merge_hidden)
    before = scene.head
    checkpoint(scene.context, scene.name, name="c2", required=Consistency.CRASH)
    scene.nodes["c2"] = before
    while running and scene.running:
        time.sleep(0.05)
    check(scene)
    monkeypatch.setattr(shorten, "merge_hidden", real)
    scene.start()
    assert scene.complaints(repair=True) is not None
    check(scene)

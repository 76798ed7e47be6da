"""Two images of a chain were exchanged, or one was rebased onto an overlay of its own: the chain leads back to itself."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.model.errors import QuiesceError
from quiesce.operations.export import export
from quiesce.operations.restore import restore
from tests.disks.scene import Scene


def swap(lower: str, upper: str) -> None:
    between = Path(f"{lower}.swap")
    Path(lower).rename(between)
    Path(upper).rename(lower)
    between.rename(upper)


def rebase(lower: str, upper: str) -> None:
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", upper, lower], check=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("exchange", [swap, rebase])
def test_every_verb_refuses_and_doctor_says_which_images(scene: Scene, exchange: Callable[[str, str], None]) -> None:
    """Broken: the verb never ends, and its `qemu-img create` takes the host's memory."""
    for name in ("one", "two", "three"):
        scene.create(name)
    lower, upper = (scene.tree().find(name).disks[0].path for name in ("one", "three"))
    exchange(lower, upper)
    for verb in (
        lambda: restore(scene.context, scene.reference("two"), accept_changed=True),
        lambda: restore(scene.context, scene.reference("three"), discard_current=True, accept_changed=True),
        lambda: scene.create("four"),
        lambda: scene.delete("one"),
        lambda: export(scene.context, scene.reference("two"), str(scene.bare.directory / "export")),
    ):
        with pytest.raises(QuiesceError, match="lead back to it") as refused:
            verb()
        assert lower in refused.value.message
    assert any("lead back to it" in text and lower in text for text in scene.complaints())
    if exchange is swap:
        exchange(lower, upper)
        scene.vouch()  # a new name changes the time of the inode
        scene.back("two")
        scene.check()
        exchange(lower, upper)
    before = scene.files()
    scene.complaints(repair=True)
    assert {"one", "two", "three"} <= {node.name for node in scene.tree().checkpoints}
    assert scene.files() == before

"""Settings of a VM, as `quiesce checkpoint` heeds them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.bare import Bare, directory
from tests.host import Quiesce


@pytest.fixture
def bare() -> Iterator[Bare]:
    """Two disks, running, no agent."""
    with directory() as path:
        bare = Bare(path, disks=2)
        yield bare
        bare.remove()


def test_a_checkpoint_is_taken_as_the_vm_is_set(bare: Bare, quiesce: Quiesce) -> None:
    """Broken: settings would be shown and not heeded, or a call could not say otherwise."""
    vm = bare.name
    quiesce.fails("checkpoint", vm, code=5)  # nobody has said that crash-consistent is enough, and there is no agent
    quiesce("settings", vm, "--require", "crash", "--exclude", "vdb")
    node = quiesce("checkpoint", vm, "--name", "as set")
    assert (node["required"], node["excluded"], len(node["disks"])) == ("crash", ["vdb"], 1)
    quiesce.fails("checkpoint", vm, "--require", "application", code=5)

    quiesce("settings", vm, "--type", "standard", "--no-exclude")
    node = quiesce("checkpoint", vm, "--name", "with memory")
    assert (node["kind"], node["excluded"], len(node["disks"])) == ("standard", [], 2)

    quiesce("settings", vm, "--type", "disabled")
    assert "quiesce settings" in quiesce.fails("checkpoint", vm, code=4)
    assert quiesce("checkpoint", vm, "--name", "all the same", "--type", "production")["kind"] == "production"


def test_an_unknown_disk_is_refused_and_nothing_changed(bare: Bare, quiesce: Quiesce) -> None:
    """Broken: every later checkpoint would fail."""
    before = quiesce("settings", bare.name, "--require", "crash")
    assert "no disk vdc" in quiesce.fails("settings", bare.name, "--automatic", "--exclude", "vdc", code=2)
    assert quiesce("settings", bare.name) == before


def test_settings_are_the_vms_not_its_names(bare: Bare, quiesce: Quiesce) -> None:
    """Broken: a VM that is renamed would lose its settings, or one that takes its name inherit them."""
    quiesce("settings", bare.name, "--require", "crash")
    assert quiesce("settings", bare.domain.UUIDString())["require"] == "crash"

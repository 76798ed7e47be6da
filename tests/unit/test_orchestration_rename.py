"""A rename on a host in memory."""

from __future__ import annotations

from quiesce.catalog import manifest
from quiesce.disks import images
from quiesce.model.names import CheckpointReference
from quiesce.operations.rename import rename


def test_a_new_name_is_in_the_manifest(world):
    """Broken: a catalog that is made again would bring the old name back."""
    vm = world.vm()
    node = world.take(vm)
    rename(world.context, CheckpointReference("web1", "a"), "b")
    path = images.manifest_path(world.context, vm, node)
    assert manifest.load(world.host.storage.read(path), world.catalog.seal).manifest.checkpoint.name == "b"

"""What the tests of images that another program changed have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quiesce.model.grades import Consistency
from quiesce.operations.doctor import doctor
from quiesce.operations.tree import tree
from tests.unit.fake_host import FakeVm
from tests.unit.world import World

IMAGE = "/i/web1.qcow2"
"""The image of the first checkpoint."""


def change(world: World, path: str = IMAGE) -> None:
    """Another program writes into an image."""
    world.host.storage.files[path].blocks[9] = "theirs"
    world.host.storage.touch(path)


def labels(world: World) -> dict[str, Consistency]:
    return {node.name: node.consistency for node in tree(world.context, "web1").checkpoints}


def found(world: World, *, repair: bool = False) -> tuple[str, ...]:
    return doctor(world.context, "web1", repair=repair)[0].found


def vm_with(world: World, *names: str) -> FakeVm:
    """A running VM with these checkpoints, each on the one before."""
    vm = world.vm()
    for name in names:
        vm.write("vda", 1, f"before {name}")
        world.take(vm, name)
    return vm


def writing_before(world: World, look: Callable[..., Any]) -> Callable[..., Any]:
    """`look`, while another program writes again and again."""

    def looked(*arguments: Any, **named: Any) -> Any:
        change(world)
        return look(*arguments, **named)

    return looked

"""disks/shortening_plan.py, disks/shortening.py and operations/shorten.py on a host in memory. tests/model/test_merges.py tries
any order, and kills it anywhere; tests/disks/test_long_chains.py has real images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import journal
from quiesce.catalog.steps import Shorten
from quiesce.disks.shortening_plan import LONG, SHORT, STARTABLE, length, shortenings
from quiesce.disks.survey import survey
from quiesce.model.errors import RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.delete import delete
from quiesce.operations.diff import diff
from quiesce.operations.doctor import doctor
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.rebuild import rebuild
from quiesce.storage.port import MIN_FREE
from tests.strategies import examples
from tests.unit.fake_host import FakeVm
from tests.unit.test_survey import at, surveyed
from tests.unit.world import WINDOW_S, World

# -- what is copied


@given(st.lists(st.integers(0, 2**20), min_size=3, max_size=40), st.integers(0, 3), st.booleans())
def test_what_is_copied_makes_the_chain_short_and_nothing_is_copied_twice(sizes, unknown, urgent):
    """Broken: after the copy the chain would be as long as before, or the copy lack an image."""
    paths = [f"/i/{number}" for number in range(len(sizes))]
    below = dict(zip(paths, [None, *paths], strict=False))
    if unknown:
        below |= {"/i/0": "/dev/vg/unknown"}
    nodes = [at(f"c{number}", path, f"c{number - 1}" if number else None) for number, path in enumerate(paths[:-1])]
    found = surveyed(below, nodes, {"vda": paths[-1]}, sizes=dict(zip(paths, sizes, strict=True)))
    chain = found.chains.chain(paths[-2])
    possible = shortenings(found, "vda", paths[-2], urgent=urgent)
    for one in possible:
        assert one.head == paths[-1]
        assert [*one.copied, one.base] == [*chain, None][: len(one.copied) + 1]
        assert one.left == len(chain) - len(one.copied) + 2 == length(found, paths[-1]) - one.gained
        assert urgent or one.left <= SHORT
        assert one.gained >= 1
        assert not unknown or one.base is not None  # what nobody can measure is not copied
    assert possible or unknown or len(chain) < 2
    short = [one for one in possible if one.left <= SHORT]
    assert possible[: len(short)] == short
    assert short == sorted(short, key=lambda one: one.bytes / one.gained)


@given(st.integers(1, 80), st.integers(0, 30))
@examples(12)
def test_a_large_template_is_copied_at_most_once(checkpoints, template):
    """Broken: every few checkpoints would take the space of the whole disk."""
    sizes, below, owned, head = {"/t/0": 2**33}, {"/t/0": None}, [], "/t/0"
    for number in range(1, template):
        sizes[f"/t/{number}"], below[f"/t/{number}"] = 2**20, f"/t/{number - 1}"
        head = f"/t/{number}"
    copied = 0
    for number in range(checkpoints):
        image, new = head, f"/i/{number}"
        below[new], sizes[new] = image, 2**20
        owned.append(at(f"c{number}", image, f"c{number - 1}" if number else None))
        found = surveyed(below, owned, {"vda": new}, sizes=sizes)
        head = new
        if length(found, new) >= LONG:
            chosen = shortenings(found, "vda", image)[0]
            copied += chosen.bytes
            below |= {f"{image}.copy": chosen.base, f"{new}.new": f"{image}.copy"}
            sizes |= {f"{image}.copy": chosen.bytes, f"{new}.new": 2**20}
            owned[-1] = at(f"c{number}", f"{image}.copy", owned[-1].parent)
            head = f"{new}.new"
        assert length(surveyed(below, owned, {"vda": head}, sizes=sizes), head) < LONG
    assert copied < 2**33
    assert copied <= (template + 8 * checkpoints) * 2**20


# -- how


def row(world: World, vm: FakeVm, checkpoints: int, *, prefix: str = "c") -> dict[str, dict[int, str]]:
    """So many checkpoints in a row; what each has."""
    contents = {}
    for number in range(checkpoints):
        name = f"{prefix}{number}"
        if vm.active():
            vm.write("vda", number % 5, name)
        world.take(vm, name, Consistency.CRASH)
        contents[name] = world.content(vm)
    return contents


def chain(world: World, vm: FakeVm) -> list[str]:
    return world.host.storage.chain(vm.sources()["vda"])


def same(world: World, vm: FakeVm, contents: dict[str, dict[int, str]]) -> bool:
    nodes = {node.name: node for node in world.tree(vm).checkpoints}
    return contents == {name: world.host.storage.blocks(node.disks[0].path) for name, node in nodes.items()}


@pytest.mark.parametrize("running", [True, False])
def test_any_number_of_checkpoints(world, running):
    """Broken: the VM would not start any more, or could not be checkpointed."""
    vm = world.vm(running=running)
    many = 2 * STARTABLE
    contents = row(world, vm, many)
    assert len(chain(world, vm)) < LONG
    assert same(world, vm, contents)
    assert not any("shorter" in text for text in world.warnings())
    assert doctor(world.context, "web1", repair=False)[0].found == ()
    parents = {node.name: node.parent for node in world.tree(vm).checkpoints}
    ids = {node.name: node.id for node in world.tree(vm).checkpoints}
    assert parents == {"c0": None} | {f"c{number}": ids[f"c{number - 1}"] for number in range(1, many)}
    assert world.tree(vm).head_parent == ids[f"c{many - 1}"]


def test_the_images_before_a_copy_are_only_removed(world):
    """Broken: the deletion of a checkpoint before the cut would merge, or keep, what nothing needs."""
    vm = world.vm()
    contents = row(world, vm, LONG)
    found = survey(world.context, vm)
    node = next(
        node for node in reversed(found.tree.checkpoints) if not found.chains.dependents(node.disks[0].path, found.owners())
    )
    assert node.name == f"c{LONG - 3}"
    done = delete(world.context, [CheckpointReference("web1", node.name)])
    assert done.waiting == ()
    assert not world.host.storage.has(node.disks[0].path)
    del contents[node.name]
    assert same(world, vm, contents)


def test_a_vm_whose_copied_checkpoint_is_deleted_is_based_on_the_one_before(world):
    """Broken: every verb would say that somebody changed the chain."""
    vm = world.vm()
    contents = row(world, vm, LONG)
    names = list(contents)
    copied = next(node for node in world.tree(vm).checkpoints if "-copy" in node.disks[0].path)
    for name in [name for name in names if name > copied.name] + [copied.name]:
        delete(world.context, [CheckpointReference("web1", name)])
        del contents[name]
    parent = world.tree(vm).get(world.tree(vm).head_parent)
    assert parent
    assert parent.name == names[names.index(copied.name) - 1]
    assert doctor(world.context, "web1", repair=False)[0].found == ()
    assert same(world, vm, contents | row(world, vm, 1, prefix="next"))
    again = CheckpointReference("web1", copied.name)
    assert again.checkpoint not in world.names(vm)


def test_without_room_checkpoints_go_on_until_the_limit_and_then_say_what_to_delete(world):
    """Broken: a full disk would end in a VM that does not start; or a checkpoint that was taken would be called a failure."""
    vm = world.vm()
    world.host.storage.free = MIN_FREE + 1
    contents = row(world, vm, STARTABLE - 1)
    assert len(chain(world, vm)) == STARTABLE
    warned = [text for text in world.warnings() if "could not be made shorter" in text]
    assert len(warned) >= STARTABLE - LONG
    assert warned[0].endswith(f"may need; {STARTABLE - LONG} checkpoints more can follow")
    with pytest.raises(RefusedError, match=f"has {STARTABLE} images and could not be made shorter") as refused:
        world.take(vm, "more", Consistency.CRASH)
    assert refused.value.hint == "delete the oldest checkpoint that it is based on: quiesce delete web1@c0"
    delete(world.context, [CheckpointReference("web1", "c0")])
    del contents["c0"]
    world.take(vm, "more", Consistency.CRASH)
    world.host.storage.free = 2**40
    assert any(
        "has 22 images and was not made shorter yet" in text for text in doctor(world.context, "web1", repair=False)[0].found
    )
    assert doctor(world.context, "web1", repair=True)[0].mended == ("the backing chain of disk vda was made shorter",)
    assert len(chain(world, vm)) <= SHORT
    assert same(world, vm, contents | {"more": world.content(vm)})
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_a_restore_of_a_deep_checkpoint_begins_with_a_copy_of_it(world):
    """Broken: a checkpoint could be kept, and not be restored."""
    vm = world.vm()
    world.host.storage.free = MIN_FREE + 1
    contents = row(world, vm, STARTABLE - 1)
    world.restore(vm, "c20", discard_current=True)
    assert len(chain(world, vm)) == STARTABLE
    safety = world.restore(vm, "c0").safety
    assert safety
    contents[safety.name] = contents["c20"]
    with pytest.raises(RefusedError, match="could not be made shorter"):
        world.restore(vm, safety.name)
    world.host.storage.free = 2**40
    world.restore(vm, safety.name, discard_current=True)
    assert len(chain(world, vm)) <= SHORT
    assert world.content(vm) == contents["c20"]
    assert same(world, vm, contents)


def test_a_guest_that_shut_down_keeps_its_label(world):
    """Broken: after the copy, the disks of a VM that is off would count as those of a crash."""
    vm = world.vm()
    contents = row(world, vm, LONG - 2)
    vm.power_off(clean=True)
    node = world.take(vm, "off")
    assert node.consistency is Consistency.APPLICATION
    assert len(chain(world, vm)) <= SHORT
    again = world.take(vm, "again")
    assert again.consistency is Consistency.APPLICATION
    assert same(world, vm, contents | {"off": world.content(vm), "again": world.content(vm)})


def test_an_image_that_was_changed_does_not_become_right_in_the_copy(world):
    """Broken: the copy would launder what another program wrote into an image of a checkpoint."""
    vm = world.vm()
    row(world, vm, LONG - 2)
    spoilt = world.tree(vm).find("c8")
    world.host.storage.touch(spoilt.disks[0].path)
    world.take(vm, "last", Consistency.CRASH)
    found = {node.name: (node.consistency, node.changed) for node in world.tree(vm).checkpoints}
    assert "-copy" in world.tree(vm).find("last").disks[0].path
    for name in ("c8", "c11", "last"):
        assert found[name] == (Consistency.CRASH, (spoilt.disks[0].path,))
    assert found["c7"][1] == ()


def test_whose_branch_needs_the_copied_image_keeps_it(world):
    """Broken: a checkpoint of another branch would lose an image that it reads through."""
    vm = world.vm()
    contents = row(world, vm, LONG - 1)
    vm.power_off()
    world.host.storage.free = MIN_FREE + 1  # so that nothing is copied yet
    last = list(contents)[-1]
    for name in ("left", "right"):
        world.restore(vm, last, discard_current=True)
        vm.start()
        vm.write("vda", 9, name)
        contents |= {name: world.content(vm)}
        world.take(vm, name, Consistency.CRASH)
        vm.power_off()
    world.host.storage.free = 2**40
    world.restore(vm, last, discard_current=True)
    assert len(chain(world, vm)) <= SHORT
    assert same(world, vm, contents)
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_while_libvirt_runs_a_job_on_the_vm_nothing_is_copied(world):
    """Broken: a checkpoint would fail because a backup runs, or the backup because of the copy."""
    vm = world.vm()
    row(world, vm, LONG - 2)
    vm.on_switch = lambda: setattr(vm, "job", "a backup")
    world.take(vm, "last", Consistency.CRASH)
    assert len(chain(world, vm)) == LONG
    assert "a backup is running" in world.warnings()[-1]
    vm.on_switch, vm.job = lambda: None, None
    world.take(vm, "next", Consistency.CRASH)
    assert len(chain(world, vm)) <= SHORT


def test_killed_between_the_vm_and_the_catalog_it_is_recorded(world):
    """Broken: the VM would write an image that nobody knows, or go back to what it was before."""
    vm = world.vm()
    contents = row(world, vm, LONG - 2)
    vm.write("vda", 0, "last")

    def kill() -> None:
        if "-copy" in "".join(chain(world, vm)):
            raise KeyboardInterrupt

    world.host.on_step = kill
    vm.on_copied = lambda: vm.write("vda", 1, "meanwhile")
    world.take(vm, "last", Consistency.CRASH)
    contents["last"] = world.content(vm) | {1: contents["c11"][1]}
    world.host.on_step = vm.on_copied = lambda: None
    assert any("interrupted" in text for text in world.warnings())
    vm.write("vda", 2, "later")
    doctor(world.context, "web1", repair=True)
    assert len(chain(world, vm)) <= SHORT
    assert same(world, vm, contents)
    assert world.content(vm)[2] == "later"
    assert world.content(vm)[1] == "meanwhile"
    assert journal.interrupted(world.catalog, vm.key) == []
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_a_group_makes_the_chains_of_its_members_shorter(world):
    """Broken: a group's servers would not start any more."""
    vms = world.vm("web1"), world.vm("web2")
    world.group("web1", "web2")
    for number in range(LONG):
        group_checkpoint(world.context, "shop", name=f"g{number}", required=Consistency.CRASH, window_s=WINDOW_S)
    for vm in vms:
        assert len(chain(world, vm)) < LONG
        assert len(world.names(vm)) == LONG
    for node in world.tree(vms[0]).nodes:
        assert node.hidden or len(world.catalog.checkpoints.parts(node.group.id)) == 2  # type: ignore[union-attr]


def test_a_catalog_that_is_rebuilt_knows_the_tree_across_a_copy(world, tmp_path):
    """Broken: after the loss of the catalog, a VM that writes a copy would be nobody's."""
    vm = world.vm()
    contents = row(world, vm, LONG)
    lost = world.without_catalog(tmp_path / "another")
    rebuild(lost.context)
    before, after = world.tree(vm), lost.tree(vm)
    assert [(node.name, node.parent) for node in after.nodes] == [(node.name, node.parent) for node in before.nodes]
    assert after.head_parent == before.head_parent
    assert same(lost, vm, contents)
    assert doctor(lost.context, "web1", repair=False)[0].found == ()
    lost.catalog.close()


def test_a_difference_across_a_copy_counts_both_sides(world):
    """Broken: two checkpoints would seem to be on different disks."""
    vm = world.vm()
    row(world, vm, LONG)
    found = diff(world.context, CheckpointReference("web1", "c2"), f"c{LONG - 1}")
    assert found.one_line
    assert found.common_ancestor
    assert found.common_ancestor.name == "c2"
    (disk,) = found.disks
    images = [side.image for side in (disk.first, disk.second) if side]
    common = [path for path in world.host.storage.chain(images[0]) if path in world.host.storage.chain(images[1])]
    assert disk.common_image == (common[0] if common else None)
    assert disk.second
    assert disk.second.written
    assert disk.second.written >= 2 * 65536  # what c13 wrote, and the whole copy


def test_the_step_says_what_a_recovery_needs(world):
    """Broken: a recovery would look at the wrong files."""
    vm = world.vm()
    row(world, vm, LONG - 2)
    steps: list[Shorten] = []
    real = journal.Journal.intend

    def intend(self: journal.Journal, step: object) -> int:
        steps.extend([step] if isinstance(step, Shorten) else [])
        return real(self, step)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "intend", intend)
        node = world.take(vm, "last", Consistency.CRASH)
    (step,) = steps
    assert (step.owner, step.target, step.overlay) == (node.id, "vda", vm.sources()["vda"])
    assert world.tree(vm).find("last").disks[0].path == step.copy

"""Groups from end to end on a host in memory: one instant or none, all back or none. Each test fails if one check of the host
side is left out."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from datetime import UTC, datetime

import pytest

from quiesce.catalog import journal
from quiesce.guests import scripted
from quiesce.hypervisor.events import Lifecycle, PowerChange
from quiesce.model.errors import BusyError, ConsistencyError, HypervisorError, RefusedError
from quiesce.model.grades import Consistency, Level
from quiesce.model.groups import Group, Tier
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor, exit_code
from quiesce.operations.group import delete_checkpoint, forget
from quiesce.operations.group_checkpoint import Taken, group_checkpoint
from quiesce.operations.group_restore import GroupRestored, group_restore
from quiesce.operations.restore import restore
from quiesce.server import watch
from tests.unit.fake_host import FakeVm
from tests.unit.world import WINDOW_S, World


def take(world: World, name: str = "g", required: Consistency | None = None, window_s: float = WINDOW_S) -> Taken:
    return group_checkpoint(world.context, "shop", name=name, required=required, window_s=window_s)


def back(world: World, *, start: bool = False) -> GroupRestored:
    return group_restore(world.context, "shop@g", start=start)


@pytest.fixture
def shop(world: World) -> dict[str, FakeVm]:
    """Three members, one of each tier."""
    vms = {name: world.vm(name) for name in ("web", "app", "db")}
    world.group("web", "app", "db", web=Tier.FRONT, app=Tier.MIDDLE)
    return vms


# -- checkpoints


def test_a_group_is_of_one_instant(world):
    """Broken: members would be held and let go one after the other, and their checkpoints disagree."""
    vms = [world.vm(name) for name in ("one", "two", "three")]
    world.group("one", "two", "three")
    story: list[str] = []
    for vm in vms:
        world.guests[vm.name].on_step = story.append
        vm.on_switch = lambda: story.append("switch")
    taken = group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    kinds = [step.split()[0] for step in story if step not in ("prepare", "post-checkpoint")]
    assert kinds == [step for step in ("hold", "freeze", "switch", "thaw", "release") for _ in vms]
    assert {node.consistency for node in taken.checkpoints} == {Consistency.APPLICATION}
    assert taken.part.members == tuple(node.id for node in taken.checkpoints)


@pytest.mark.parametrize("step", ["prepare", "hold back-end", "freeze", "thaw"])
def test_a_group_is_taken_whole_or_not_at_all(world, step):
    """Broken: a group's checkpoint would lack a member, or members stay on overlays of one that does not exist."""
    vms = [world.vm(name) for name in ("one", "two")]
    world.group("one", "two")

    def fail(name: str) -> None:
        if name == step:
            raise HypervisorError("the guest is gone")

    world.guests["two"].on_step = fail
    with pytest.raises((ConsistencyError, HypervisorError)):
        group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    world.guests["two"].on_step = lambda _: None
    for vm in vms:
        world.nothing_left(vm)


def test_a_member_that_was_off_and_is_started_meanwhile_is_noticed(world):
    """Broken: a member that has gone on since would be called of one instant with the others."""
    running, off = world.vm("one"), world.vm("two", running=False)
    off.clean = True
    world.group("one", "two")
    started = []

    def start_the_other(name: str) -> None:
        if name == "freeze" and not started:
            started.append(off.start())

    world.guests["one"].on_step = start_the_other
    with pytest.raises(RefusedError, match="somebody started two"):
        group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    assert (world.names(running), world.names(off)) == ([], [])
    assert world.host.storage.blocks(off.sources()["vda"]) == {0: "at first"}


def test_an_external_server_is_only_asked(world):
    """Broken: the server of somebody else would be held, and later thrown back with the group."""
    world.vm("one")
    other = world.vm("two")
    world.group("one", "two", two=Tier.EXTERNAL)
    taken = take(world)
    assert [node.vm_name for node in taken.checkpoints] == ["one"]
    assert [seen.vm_name for seen in taken.part.witnesses] == ["two"]
    assert world.guests["two"].story == ["identify"]
    world.nothing_left(other)


def test_a_member_with_something_unfinished_is_mended_first(world):
    """Broken: a checkpoint would be taken on images that the next operation brings back."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    operation = journal.Journal(world.catalog, two.key, "frobnicate")
    with pytest.raises(RefusedError, match="a newer quiesce began it"):
        take(world)
    assert (world.names(one), world.names(two)) == ([], [])
    operation.finish("done")
    journal.Journal(world.catalog, two.key, "rename")
    take(world)
    assert journal.interrupted(world.catalog, two.key) == []


def test_a_member_that_somebody_else_is_at_is_left_alone(world):
    """Broken: its images would be merged and switched at once."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    with world.context.locked(two, "delete"), pytest.raises(BusyError, match="quiesce delete two"):
        take(world)
    assert (world.names(one), world.names(two)) == ([], [])
    taken = take(world)
    with world.context.locked(two, "delete"), pytest.raises(BusyError, match="quiesce delete two"):
        back(world)
    assert one.active()
    assert world.names(one) == [taken.part.name]


def test_members_that_were_not_all_switched_in_the_window_are_no_group(world):
    """Broken: a member whose switch came after the others had gone on would be called of one instant with them."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    two.on_switch = lambda: time.sleep(1.6)
    with pytest.raises(ConsistencyError, match="libvirt did not return from the switch in time"):
        take(world, required=Consistency.CRASH, window_s=1.0)
    two.on_switch = lambda: None
    world.nothing_left(one)
    world.nothing_left(two)


def test_a_member_is_let_go_before_it_is_prepared_again(world):
    """Broken: its agent would refuse a second attempt beside the first, or stay held by it."""
    world.vm("one")
    world.vm("two")
    world.group("one", "two")
    world.guests["one"].writers = (scripted.writer("system", Level.SYSTEM),)
    failed: list[str] = []

    def fail(step: str) -> None:
        if step == "hold back-end":
            failed.append(step)
            raise HypervisorError("the guest is gone")

    world.guests["two"].on_step = fail
    take(world, required=Consistency.CRASH)
    assert failed == ["hold back-end"]
    story = world.guests["one"].story
    assert story[:3] == ["prepare", "abort", "prepare"]
    assert story[-1] == "post-checkpoint"


# -- restores


def test_a_group_goes_back_whole(world):
    """Broken: some members would be put back and others not, and nobody be told."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    for vm in (one, two):
        vm.write("vda", 1, "later")
    result = group_restore(world.context, "shop@g")
    assert [restored.checkpoint.vm_name for restored in result.restored] == ["one", "two"]
    for vm in (one, two):
        assert not vm.active()
        assert world.host.storage.blocks(vm.sources()["vda"]) == {0: "at first"}
        assert journal.interrupted(world.catalog, vm.key) == []


def test_what_would_be_refused_of_one_member_is_refused_before_any_is_touched(world):
    """Broken: half of an application would be put back, and the other half stay where it is."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    world.host.storage.files[two.sources()["vda"]].below = None  # somebody pulled the chain into the overlay
    with pytest.raises(RefusedError, match="somebody changed the backing chain of disk vda"):
        group_restore(world.context, "shop@g")
    assert one.active()
    assert two.active()
    assert (world.names(one), world.names(two)) == (["g"], ["g"])


def test_a_group_of_which_a_part_is_gone_does_not_go_back(world):
    """Broken: the others would go back to an instant that the last one is not at."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    take(world)
    world.take(one, "later")
    restore(world.context, CheckpointReference("one", "g"), accept_divergence=True)
    # from now on two states of it are based on its part, which stays, hidden
    delete(world.context, [CheckpointReference("one", "g")], break_group=True)
    assert [node.hidden for node in world.tree(one).nodes if node.name == "g"] == [True]
    two.write("vda", 1, "later")
    with pytest.raises(RefusedError, match="shop@g cannot be restored as a whole: 1 of its 2 parts were deleted"):
        back(world)
    assert two.active()
    assert world.content(two) == {0: "at first", 1: "later"}
    delete(world.context, [CheckpointReference("two", "g")])  # nothing of it is left to break
    assert world.names(two) == []


def test_what_one_member_refuses_is_refused_before_any_is_touched(world):
    """Broken: half of the application would be at the checkpoint, stopped, and the other half running on."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    take(world)
    two.job = "a block job on disk vda"
    with pytest.raises(BusyError):
        back(world)
    assert (one.active(), two.active()) == (True, True)
    assert (world.names(one), world.names(two)) == (["g"], ["g"])


def test_back_ends_are_started_first_and_waited_for(world, shop):
    """Broken: front ends would come up without their database, and stay in error."""
    take(world)
    story: list[str] = []

    def tell_start(vm: FakeVm) -> None:
        start = vm.start
        vm.start = lambda: (story.append(f"start {vm.name}"), start())  # type: ignore[method-assign, assignment]

    def tell_asked(name: str) -> None:
        world.guests[name].on_step = lambda step: step == "identify" and story.append(f"{name} answers")

    for name, vm in shop.items():
        tell_start(vm)
        tell_asked(name)
    restored = group_restore(world.context, "shop@g", start=True, accept_divergence=True)
    assert [each.checkpoint.vm_name for each in restored.restored] == ["web", "app", "db"]
    assert story == ["start db", "db answers", "start app", "app answers", "start web", "web answers"]


def test_a_group_restore_that_is_called_again_goes_on_with_those_that_are_left(world, shop):
    """Broken: members that stand there already would be put back again, each leaving a checkpoint of nothing."""
    take(world)
    assert len(back(world).restored) == 3
    names = {name: world.names(vm) for name, vm in shop.items()}
    assert back(world).restored == ()
    assert {name: world.names(vm) for name, vm in shop.items()} == names


def test_a_member_that_was_started_already_is_not_thrown_back(world, shop):
    """Broken: orders that the started half of the application has taken since would be lost."""
    take(world)
    back(world)
    shop["db"].start()
    shop["db"].write("vda", 1, "an order")
    again = group_restore(world.context, "shop@g", start=True, accept_divergence=True)
    assert again.restored == ()
    assert all(vm.active() for vm in shop.values())
    assert world.content(shop["db"]) == {0: "at first", 1: "an order"}


def test_a_group_restore_that_stops_in_the_middle_is_remembered(world, shop):
    """Broken: nobody would be told that the front end went back and its database did not."""
    take(world)

    def fail(xml: str) -> None:
        raise HypervisorError("libvirt is gone")

    redefine = shop["db"].redefine
    shop["db"].redefine = fail  # type: ignore[method-assign]
    with pytest.raises(HypervisorError):
        back(world)
    shop["db"].redefine = redefine  # type: ignore[method-assign]
    assert [each.verb for each in journal.interrupted(world.catalog, shop["db"].key)] == ["group restore"]
    assert journal.interrupted(world.catalog, shop["web"].key) == []
    assert [each.checkpoint.vm_name for each in back(world).restored] == ["db"]
    assert any("`quiesce group restore shop@g` restores the rest" in text for text in world.warnings())


# -- groups


def test_a_group_that_another_one_needs_is_not_forgotten(world):
    """Broken: no checkpoint of the outer group could be taken or restored any more."""
    world.vm("one")
    world.group("one")
    world.catalog.groups.put(Group("all", groups=("shop",)), new=True)
    with pytest.raises(RefusedError, match="shop is in group all"):
        forget(world.context, "shop")
    assert group_checkpoint(world.context, "all", name="g", window_s=WINDOW_S).checkpoints


# -- automatic checkpoints


def test_automatic_checkpoints_of_two_vms_do_not_lengthen_each_other(world):
    """Broken: when a host boots all its VMs, each window would share the processors with all the others."""
    story: list[str] = []

    def tell(name: str) -> None:
        def told(step: str) -> None:
            story.append(name)
            if step == "hold back-end":
                time.sleep(0.2)

        world.guests[name].on_step = told

    lock, stop = threading.Lock(), threading.Event()
    threads = []
    for name in ("one", "two"):
        vm = world.vm(name)
        world.catalog.settings.put(vm.key, Settings(automatic=True))
        tell(name)
        event = Lifecycle(vm.uuid, name, PowerChange.STARTED, datetime.now(UTC))
        handler = watch._Handler(world.context, "host1", event, stop, lambda _: None, lock)
        threads.append(threading.Thread(target=handler.handle))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(story) == 12
    assert len(list(itertools.groupby(story))) == 2


# -- deletions


def test_an_interrupted_deletion_takes_all_parts_or_none_and_doctor_names_the_rest(world, shop):
    """Broken: after Ctrl-C one part is gone and two are there, and `doctor` is silent."""
    for stop_at in itertools.count():
        take(world)
        left = stop_at

        def stop() -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise KeyboardInterrupt

        world.host.on_step = stop
        finished = False
        with contextlib.suppress(KeyboardInterrupt):
            delete_checkpoint(world.context, "shop@g")
            finished = True
        world.host.on_step = lambda: None
        parts = [world.names(vm) for vm in shop.values()]
        assert parts in ([["g"]] * 3, [[]] * 3)
        found = {item.vm: item for item in doctor(world.context, None, repair=False)}
        if not finished and not parts[0]:
            assert any(item.found for item in found.values()) or not any(world.tree(vm).nodes for vm in shop.values())
        doctor(world.context, None, repair=True)
        assert exit_code(doctor(world.context, None, repair=True)) == 0
        if parts[0]:
            delete_checkpoint(world.context, "shop@g")
        for vm in shop.values():
            world.nothing_left(vm)
        if finished:
            break
    assert stop_at > 5


def test_doctor_names_a_group_checkpoint_that_lacks_a_part(world, shop):
    """Broken: nobody learns that the group cannot be restored; or the VMs count as broken for ever."""
    take(world)
    delete(world.context, [CheckpointReference("web", "g")], break_group=True)
    (found,) = doctor(world.context, "db", repair=False)
    assert [(item.fault.kind, item.fault.subject, item.remedy.wrong) for item in found.items] == [
        ("incomplete-group", "shop@g", False)
    ]
    assert exit_code([found]) == 0


def test_checkpoints_without_names_in_one_second(world, monkeypatch):
    """Broken: the second `quiesce checkpoint web` of a second would be refused, because of a name that nobody gave."""
    vm = world.vm()
    for module in ("checkpoint", "group_checkpoint"):
        monkeypatch.setattr(f"quiesce.operations.{module}.default_checkpoint_name", lambda _: "now")
    for _ in range(3):
        checkpoint(world.context, vm.name, window_s=WINDOW_S)
    world.group(vm.name)
    group_checkpoint(world.context, "shop", window_s=WINDOW_S)
    assert [node.name for node in world.tree(vm).nodes] == ["now", "now-2", "now-3", "now-4"]

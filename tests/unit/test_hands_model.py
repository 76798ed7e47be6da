"""lab/hands/model.py: what counts as a fault after others acted, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.hands.model import Asked, Contents, Fault, Model, Seen, Shown, after_hand, after_verb, unnamed

A: Contents = {"vda": "a"}
B: Contents = {"vda": "b"}
NOW: Contents = {"vda": "now"}
MODEL = Model({"1": A, "2": B}, frozenset({"1", "2"}), NOW, NOW)
SEEN = Seen({"1": Shown("one", A, honest=False), "2": Shown("two", B, honest=False)}, NOW, frozenset({"a", "b", "now"}))


def kinds(faults: tuple[Fault, ...]) -> list[str]:
    return [fault.kind for fault in faults]


def showing(**contents: Contents | None) -> dict[str, Shown]:
    """The checkpoints `one` and `two`; without one whose content is None."""
    found = {"one": A, "two": B} | contents
    return {
        id: Shown(name, shown, honest=False) for id, name in (("1", "one"), ("2", "two")) if (shown := found[name]) is not None
    }


def test_nothing_happened():
    """Broken: the campaign would find faults everywhere."""
    assert after_hand(MODEL, SEEN, wrote=False) == (MODEL, ())
    assert after_verb(MODEL, SEEN, SEEN, Asked()) == (MODEL, ())


@pytest.mark.parametrize("wrong", [{"vda": "x"}, {"vda": None}, {}])
def test_a_wrong_content_that_nothing_tells_of(wrong):
    """Broken: the campaign would be blind to what it is for."""
    seen = replace(SEEN, shown=showing(one=wrong))
    assert kinds(after_hand(MODEL, seen, wrote=False)[1]) == ["silent"]
    honest = {"1": Shown("one", wrong, honest=True), "2": Shown("two", B, honest=False)}
    assert after_hand(MODEL, replace(SEEN, shown=honest), wrote=False)[1] == ()
    assert after_hand(MODEL, replace(SEEN, shown=None), wrote=False)[1] == ()


def test_a_checkpoint_that_a_verb_gave_up_although_its_data_are_there():
    """Broken: a repair that throws away what could be restored would count as one that mends."""
    seen = replace(SEEN, shown=showing(one=None))
    model, faults = after_verb(MODEL, SEEN, seen, Asked())
    assert kinds(faults) == ["lost"]
    assert model.wanted == {"2"}
    assert after_verb(MODEL, SEEN, seen, Asked(deletes=frozenset({"1"})))[1] == ()
    gone = replace(SEEN, shown=showing(one={"vda": None}), there=frozenset({"b", "now"}))
    assert after_verb(MODEL, gone, replace(gone, shown=showing(one=None)), Asked())[1] == ()


def test_data_that_a_verb_removed():
    """Broken: a file that the last data are in could be removed, and nobody see it."""
    less = replace(SEEN, there=frozenset({"a", "now"}), shown=showing(two=None))
    assert kinds(after_verb(MODEL, SEEN, less, Asked())[1]) == ["lost", "lost"]
    assert after_verb(MODEL, SEEN, less, Asked(deletes=frozenset({"2"})))[1] == ()
    assert kinds(after_verb(MODEL, SEEN, replace(SEEN, there=frozenset({"a", "b"})), Asked())[1]) == ["lost"]


def test_a_restore():
    """Broken: the VM's data of before could be thrown away by a restore that was not asked to."""
    restored = Seen(showing() | {"3": Shown("safety", NOW, honest=False)}, A, SEEN.there)
    model, faults = after_verb(MODEL, SEEN, restored, Asked(restores=(A,)))
    assert faults == ()
    assert (model.newest, model.checkpoints["3"]) == (A, NOW)
    without = Seen(showing(), A, frozenset({"a", "b"}))
    assert kinds(after_verb(MODEL, SEEN, without, Asked(restores=(A,)))[1]) == ["lost"]
    assert after_verb(MODEL, SEEN, without, Asked(restores=(A,), discards=True))[1] == ()
    assert "lost" in kinds(after_verb(MODEL, SEEN, replace(restored, vm=B), Asked(restores=(A,)))[1])


def test_somebody_gave_the_vm_other_disks():
    """Broken: the newest data could lie in a file that nobody names, or be removed once the VM is written to again."""
    elsewhere = replace(SEEN, vm=A)
    model, faults = after_hand(MODEL, elsewhere, wrote=False)
    assert kinds(faults) == ["lost"]
    assert after_hand(MODEL, replace(elsewhere, named=frozenset({"now"})), wrote=False)[1] == ()
    warned = replace(elsewhere, warned=True)
    assert after_hand(MODEL, warned, wrote=False)[1] == ()
    assert kinds(unnamed(MODEL, warned, mended=True)) == ["lost"]
    assert unnamed(MODEL, replace(elsewhere, shown=showing(one=NOW)), mended=True) == ()
    assert after_verb(model, elsewhere, SEEN, Asked(mends=True))[1] == ()
    assert "lost" in kinds(after_verb(model, elsewhere, replace(SEEN, vm=B), Asked(mends=True))[1])
    written = replace(SEEN, vm={"vda": "new"}, there=SEEN.there | {"new"}, shown=showing(one={"vda": "new"}))
    model, _ = after_hand(model, written, wrote=True)
    assert (model.newest, model.older) == ({"vda": "new"}, (NOW,))
    assert "lost" in kinds(after_verb(model, written, replace(written, there=frozenset({"a", "b", "new"})), Asked())[1])


def test_a_disk_that_was_detached_is_back():
    """Broken: doctor could give the VM any image as that disk, or take the other away, and nobody would call it lost."""
    both, other = {"vda": "now", "vdb": "b"}, {"vda": "now", "vdb": "x"}
    model = replace(MODEL, vm=other, older=({"vda": "a", "vdb": "b"},))
    seen = replace(SEEN, vm=other, there=SEEN.there | {"x", "y"})

    def mended(vm: Contents) -> list[str]:
        return kinds(after_verb(model, seen, replace(seen, vm=vm), Asked(mends=True))[1])

    assert mended(both) == []
    for vm in ({"vda": "now", "vdb": "y"}, {"vda": "a", "vdb": "b"}, {"vdb": "b"}):
        assert "lost" in mended(vm), vm


def test_somebody_changed_the_vms_own_disks():
    """Broken: what was said, and mended, would count as lost for ever; or a file with the old data could be removed."""
    changed = replace(SEEN, vm={"vda": "changed"}, warned=True, told=frozenset({"vda"}))
    model, faults = after_hand(MODEL, changed, wrote=False)
    assert faults == ()
    assert unnamed(model, replace(changed, told=frozenset()), mended=True) != ()
    model, faults = after_verb(model, changed, changed, Asked(mends=True))
    assert (faults, model.newest, model.older) == ((), {"vda": "changed"}, (NOW,))


def test_a_new_checkpoint_is_what_the_vm_had():
    """Broken: a checkpoint of something else would pass."""
    seen = replace(SEEN, shown=showing() | {"3": Shown("new", NOW, honest=False)})
    model, faults = after_verb(MODEL, SEEN, seen, Asked())
    assert (faults, model.checkpoints["3"]) == ((), NOW)
    assert model.wanted == {"1", "2", "3"}
    wrong = replace(SEEN, shown=showing() | {"3": Shown("new", B, honest=False)})
    assert kinds(after_verb(MODEL, SEEN, wrong, Asked())[1]) == ["silent"]

"""window/machine.py: its promises, checked over random members and random failures by what was asked of each member."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from quiesce.model.grades import Level
from quiesce.window.machine import Action, StepAnswer, WindowMember, WindowOutcome, WindowStep, window
from tests.strategies import examples

EARLY = "early freeze"
LEVEL_ORDER = [Level.FRONT_END, Level.BACK_END, Level.SYSTEM]

_MEMBERS = st.lists(
    st.builds(WindowMember, st.sampled_from("abcde"), st.frozensets(st.sampled_from(Level)), st.booleans(), st.booleans()),
    max_size=4,
    unique_by=lambda member: member.name,
)
_FAILURES = st.lists(st.tuples(st.sampled_from(Action), st.sampled_from("abcde"), st.sampled_from([*Level, None])), max_size=4)


def run(members: list[WindowMember], failing: list[tuple]) -> tuple[list[dict[WindowStep, StepAnswer]], WindowOutcome]:
    """Every batch with the answers it got, and the outcome. A failing entry without a level fails at every level."""
    history: list[dict[WindowStep, StepAnswer]] = []
    machine = window(members)
    try:
        batch = next(machine)
        while True:
            assert len(history) < 20, "it does not end"
            answers = {}
            for step in batch:
                fails = {(step.action, step.member, step.level), (step.action, step.member, None)} & set(failing)
                answers[step] = StepAnswer(failure=RuntimeError(repr(step))) if fails else StepAnswer(value=repr(step))
            history.append(answers)
            batch = machine.send(answers)
    except StopIteration as finished:
        return history, finished.value


def failed(batch: dict[WindowStep, StepAnswer]) -> list[WindowStep]:
    return [step for step, answer in batch.items() if answer.failure]


@given(_MEMBERS, _FAILURES)
@examples(400)
def test_the_window_keeps_its_promises(members, failing):
    """Broken: a member would be switched unfrozen, thawed while another is being switched, or left frozen."""
    history, outcome = run(members, failing)
    everybody = [member.name for member in members]
    quiesced = {member.name for member in members if member.quiesced}
    early = {member.name for member in members if member.quiesced and member.early}
    levels = {member.name: member.levels for member in members}

    # Every batch is one action at one level, on each member once.
    for batch in history:
        assert batch
        assert len({(step.action, step.level) for step in batch}) == 1
        assert len({step.member for step in batch}) == len(batch)
    kinds = [(next(iter(batch)).action, next(iter(batch)).level) for batch in history]
    first = [(EARLY, None)] if early else []
    kinds = first + kinds[len(first) :]
    assert len(set(kinds)) == len(kinds)

    # The order of the way forward.
    full = [(EARLY, None), *((Action.HOLD, level) for level in LEVEL_ORDER)]
    full += [(Action.FREEZE, None), (Action.SWITCH, None), (Action.THAW, None)]
    full += [(Action.RELEASE, level) for level in reversed(LEVEL_ORDER)]
    ranks = [full.index(kind) for kind in kinds if kind[0] is not Action.ABORT]
    assert ranks == sorted(ranks)

    # Who takes part in what: all of those concerned, nobody else.
    for (action, level), batch in zip(kinds, history, strict=True):
        taking_part = {step.member for step in batch}
        if action in (Action.HOLD, Action.RELEASE):
            assert taking_part == {name for name in quiesced if level in levels[name]}
        elif action is EARLY:
            assert taking_part == early
        elif action is Action.FREEZE:
            assert taking_part == quiesced - early
        elif action is Action.THAW:
            assert taking_part == quiesced
        elif action is Action.SWITCH:
            assert taking_part == set(everybody)

    # No member is switched before every member is held and frozen; none is thawed or released before all were switched.
    done: set[WindowStep] = set()
    for (action, _), batch in zip(kinds, history, strict=True):
        if action is Action.SWITCH:
            assert {WindowStep(Action.FREEZE, name) for name in quiesced} <= done
            assert {WindowStep(Action.HOLD, name, level) for name in quiesced for level in levels[name]} <= done
        if action in (Action.THAW, Action.RELEASE):
            assert {WindowStep(Action.SWITCH, name) for name in everybody} <= done
        done |= {step for step, answer in batch.items() if not answer.failure}

    # A failure ends the way forward; exactly those touched are aborted, at once.
    forward = [batch for batch in history if next(iter(batch)).action is not Action.ABORT]
    touched = {step.member for batch in forward for step in batch if step.action in (Action.HOLD, Action.FREEZE)}
    bad = [index for index, batch in enumerate(forward) if failed(batch)]
    aborted = {step.member for batch in history for step in batch if step.action is Action.ABORT}
    if bad:
        assert bad == [len(forward) - 1]
        assert aborted == touched
        assert len(history) == len(forward) + bool(touched)
        earliest = min(failed(forward[-1]), key=lambda step: everybody.index(step.member))
        assert outcome.failed_step == earliest
        assert outcome.failure is forward[-1][earliest].failure
    else:
        assert aborted == set()
        assert outcome.failure is outcome.failed_step is None
        assert {WindowStep(Action.SWITCH, name) for name in everybody} <= done
    event("completed" if not bad else f"failed to {outcome.failed_step.action.value}")

    # Nobody is left: whoever was touched was thawed and released at every level it held, or aborted.
    for name in touched:
        released = WindowStep(Action.THAW, name) in done and all(
            WindowStep(Action.RELEASE, name, level) in done
            for level in levels[name]
            if WindowStep(Action.HOLD, name, level) in done
        )
        assert released or name in aborted

    # The outcome is the answers, nothing else.
    assert dict(outcome.answers) == {step: answer for batch in history for step, answer in batch.items()}
    switched = {name for name in everybody if WindowStep(Action.SWITCH, name) in done}
    assert outcome.all_switched == (bool(members) and switched == set(everybody))


def test_the_whole_way_of_two_members():
    """Broken: tiers would be held in the wrong order, or a VM without an agent would be asked something."""
    front = WindowMember("front", frozenset({Level.FRONT_END}))
    back = WindowMember("back", frozenset({Level.BACK_END, Level.SYSTEM}))
    silent = WindowMember("silent", frozenset(Level), quiesced=False)
    history, outcome = run([front, back, silent], [])
    assert [[(step.action.value, step.member) for step in batch] for batch in history] == [
        [("hold", "front")],
        [("hold", "back")],
        [("hold", "back")],
        [("freeze", "front"), ("freeze", "back")],
        [("switch", "front"), ("switch", "back"), ("switch", "silent")],
        [("thaw", "front"), ("thaw", "back")],
        [("release", "back")],
        [("release", "back")],
        [("release", "front")],
    ]
    assert outcome.all_switched
    assert outcome.value(Action.RELEASE, "front", Level.FRONT_END) == repr(WindowStep(Action.RELEASE, "front", Level.FRONT_END))
    assert outcome.value(Action.ABORT, "front") is None


def test_a_failed_switch_thaws_everybody_and_says_so():
    """Broken: after a failed switch the group would stay frozen, or be taken for switched."""
    history, outcome = run([WindowMember("a"), WindowMember("b")], [(Action.SWITCH, "b", None), (Action.ABORT, "a", None)])
    assert [sorted(step.member for step in batch) for batch in history][-1] == ["a", "b"]
    assert outcome.failed_step == WindowStep(Action.SWITCH, "b")
    assert not outcome.all_switched
    assert outcome.value(Action.SWITCH, "a") is not None

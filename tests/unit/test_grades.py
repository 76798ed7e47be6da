"""model/grades.py"""

from __future__ import annotations

import itertools

from quiesce.model.grades import LEVELS, Consistency, Grade, Level, judge

VOUCHED = {Grade.CLEAN, Grade.NIL_REDO, Grade.HELD, Grade.STANDS_STILL}


def test_a_label_is_what_the_evidence_bears():
    """Broken: a checkpoint would be called better than it is, or worse."""
    for size in range(4):
        for frozen, grades in itertools.product([True, False], itertools.product(Grade, repeat=size)):
            label = judge(frozen_unbroken=frozen, writer_grades=iter(grades))
            if not frozen:
                assert label is Consistency.CRASH
            elif set(grades) <= VOUCHED:
                assert label is Consistency.APPLICATION
            else:
                assert label is Consistency.FILESYSTEM


def test_one_more_bad_writer_never_raises_a_label():
    """Broken: an application that failed could be hidden by others that did not."""
    for frozen, grades, bad in itertools.product(
        [True, False], itertools.product(Grade, repeat=2), [Grade.CRASH, Grade.REFUSED]
    ):
        before = judge(frozen_unbroken=frozen, writer_grades=grades)
        after = judge(frozen_unbroken=frozen, writer_grades=[*grades, bad])
        assert before.satisfies(after)
        assert after is not Consistency.APPLICATION


def test_a_higher_label_satisfies_the_lower_ones_and_not_the_other_way():
    """Broken: --require would let a lesser checkpoint pass."""
    order = [Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION]
    for (low, lower), (high, higher) in itertools.product(enumerate(order), repeat=2):
        assert higher.satisfies(lower) == (high >= low)


def test_only_what_stood_at_a_boundary_is_vouched_for():
    """Broken: an application that recovers as after a power failure would count as quiesced."""
    assert {grade for grade in Grade if grade.vouched} == VOUCHED


def test_front_ends_hold_first():
    """Broken: a front end would go on writing to a back end that is held."""
    assert LEVELS == (Level.FRONT_END, Level.BACK_END, Level.SYSTEM)

"""lab/doors.py: the doors that `script/fuzz` fuzzes with coverage. Here each is tried with what it is meant for, and with a few
changes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.doors import DOORS
from lab.standstill import within
from tests.strategies import examples

ANSWERED = ("postgresql", "pgbouncer", "mariadb", "redis")


@pytest.mark.parametrize("name", sorted(set(DOORS) - {"agent", *ANSWERED}))
def test_a_door_reads_what_it_is_meant_for(name):
    """Broken: the fuzz would change bytes that are refused at the first look, and never reach what lies behind."""
    for seed in DOORS[name].seeds:
        DOORS[name].read(seed)


@pytest.mark.parametrize("name", DOORS)
@examples(15)
@given(data=st.data())
@pytest.mark.timeout(120)
def test_a_door_holds(name, data):
    """Broken: a reader would raise what its caller does not expect, or wait, for bytes that a stranger sent."""
    seed = data.draw(st.sampled_from(DOORS[name].seeds))
    at = data.draw(st.integers(0, len(seed)))
    with within(30):
        DOORS[name].try_(seed[:at] + data.draw(st.binary(max_size=40)) + seed[at + data.draw(st.integers(0, 40)) :])

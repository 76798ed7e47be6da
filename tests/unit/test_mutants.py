"""tests/mutants.toml: script/mutants would say nothing if its mutants no longer fitted the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lab.mutants import ROOT, Mutant, mutants


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.says)
def test_a_mutant_can_be_made(mutant: Mutant) -> None:
    """Broken: a mutant would be counted as dead that was never alive."""
    source = (ROOT / "src" / "quiesce" / mutant.file).read_text()
    made = mutant.made_in(source)
    assert ast.dump(ast.parse(made)) != ast.dump(ast.parse(source))
    for tests in mutant.tests.split():
        assert Path(ROOT / tests.partition("::")[0]).exists()


def test_there_are_enough() -> None:
    """Broken: the list would shrink unnoticed."""
    found = mutants()
    assert len(found) >= 38
    assert len({mutant.says for mutant in found}) == len(found)

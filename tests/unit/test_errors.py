"""model/errors.py"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quiesce.cli.main import app
from quiesce.cli.verb import INTERRUPTED
from quiesce.model import errors
from quiesce.model.errors import QuiesceError
from quiesce.operations.doctor import LEFT, MENDED

CODES = {
    "QuiesceError": (1, "quiesce"),
    "CatalogDamagedError": (1, "catalogdamaged"),
    "CatalogReadOnlyError": (1, "catalogreadonly"),
    "UsageError": (2, "usage"),
    "NotFoundError": (3, "notfound"),
    "RefusedError": (4, "refused"),
    "NameTakenError": (4, "nametaken"),
    "DivergenceError": (4, "divergence"),
    "AgentError": (5, "agent"),
    "ConsistencyError": (6, "consistency"),
    "NoSpaceError": (7, "nospace"),
    "HypervisorError": (8, "hypervisor"),
    "OutcomeUnknownError": (8, "outcomeunknown"),
    "SilentStorageError": (8, "silentstorage"),
    "BusyError": (9, "busy"),
    "ProofError": (12, "proof"),
    "CancelledError": (130, "cancelled"),
}


def test_the_table_is_complete():
    """Broken: a new error would have a code nobody promised."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, QuiesceError)}
    assert defined == set(CODES)


@pytest.mark.parametrize(("name", "expected"), CODES.items(), ids=CODES)
def test_each_error_keeps_its_exit_code_and_kind(name, expected):
    """Broken: scripts that tell errors apart by code or by kind would do the wrong thing."""
    error = getattr(errors, name)("what happened", hint="what to do", details={"a": 1})
    assert (error.exit_code, error.kind) == expected
    assert (str(error), error.message, error.hint, error.details) == ("what happened", "what happened", "what to do", {"a": 1})


def test_hint_and_details_may_be_missing():
    """Broken: an error without a hint could not be shown."""
    assert (QuiesceError("m").hint, QuiesceError("m").details) == (None, {})


def test_the_docstring_tells_the_same_codes():
    """Broken: the one page that documents the codes would lie."""
    told = re.findall(r"(\w+Error) \.+ (\d+)", errors.__doc__ or "")
    assert {name: int(code) for name, code in told} == {name: code for name, (code, _) in CODES.items()}


ROW = re.compile(r"^\| (\d+) \| (?:`(\w+)`)? *\| (.+?) \| (.*?) *\| (.+) \|$", re.MULTILINE)
"""Of docs/exit-codes.md: code, kind, meaning, example, what to do."""


def test_the_documentation_tells_the_same_codes():
    """Broken: the page that script authors read would lie, or leave an error out."""
    rows = ROW.findall((Path(__file__).parents[2] / "docs/exit-codes.md").read_text())
    told = [(int(code), kind) for code, kind, *_ in rows]
    classes = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, QuiesceError)}
    assert sorted((code, kind) for code, kind in told if kind) == sorted((each.exit_code, each("m").kind) for each in classes)
    assert {code for code, _ in told} == {0, MENDED, LEFT, INTERRUPTED} | {each.exit_code for each in classes}
    assert all(example for _, kind, _, example, _ in rows if kind)


def test_help_tells_the_same_codes():
    """Broken: an administrator would be told other codes than a script gets."""
    told = {int(code) for code in re.findall(r"\b\d+\b", str(app.info.epilog))}
    assert told == {0, MENDED, LEFT, INTERRUPTED} | {code for code, _ in CODES.values()}

"""results.py: the JSON of each verb's result and of errors, to the letter, in golden/.

A change of a golden file is a change of what scripts read: it belongs in the changelog.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quiesce.cli.main import app
from tests.unit.result_samples import ERRORS, RESULTS

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.json").read_text()


def printed(arguments: list[str], tmp_path: Path) -> tuple[int, str]:
    """Exit code and standard output of the program with --json."""
    result = CliRunner().invoke(app, [*arguments, "--json", "--catalog", str(tmp_path / "catalog.db")])
    return result.exit_code, result.stdout


@pytest.mark.parametrize("name", RESULTS)
def test_a_verb_prints_its_result(name, tmp_path, monkeypatch):
    """Broken: a script that reads --json would find a field gone, renamed, or of another form."""
    arguments, work, result = RESULTS[name]

    def done(*_: Any, **__: Any) -> Any:
        return result

    monkeypatch.setattr(f"quiesce.cli.{work}", done)
    assert printed(arguments, tmp_path) == (0, golden(name))


@pytest.mark.parametrize("name", ERRORS)
def test_a_verb_prints_its_error(name, tmp_path, monkeypatch):
    """Broken: a script would not learn why a command failed."""

    def fail(*_: Any) -> None:
        raise ERRORS[name]

    monkeypatch.setattr("quiesce.cli.vms.vms", fail)
    assert printed(["vms"], tmp_path) == (ERRORS[name].exit_code, golden(name))


def test_every_golden_file_is_compared():
    """Broken: a file would stand there that nothing is held against."""
    assert {path.stem for path in GOLDEN.iterdir()} == RESULTS.keys() | ERRORS.keys()

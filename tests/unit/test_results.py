"""results.py: the JSON of each verb's result and of errors, to the letter, in golden/.

A change of a golden file is a change of what scripts read: it belongs in the changelog.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quiesce.cli.main import app
from quiesce.model.errors import QuiesceError
from quiesce.results import to_json
from tests.unit.result_samples import ERRORS, RESULTS
from tests.unit.test_cli import VERBS

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
    assert printed(arguments, tmp_path) == (11 if name == "doctor" else 0, golden(name))  # something is left


@pytest.mark.parametrize("name", [*RESULTS, *ERRORS])
def test_a_result_is_the_same_for_every_reader(name):
    """Broken: a server would answer something else than the command line prints."""
    result = RESULTS[name][2] if name in RESULTS else ERRORS[name]
    assert to_json(result) == json.loads(golden(name))


def test_every_verb_and_every_result_has_a_sample():
    """Broken: the JSON of a new verb or of a new result could change unnoticed."""
    assert {_verb(arguments) for arguments, _, _ in RESULTS.values()} == VERBS.keys()
    shown = {kind for _, _, result in RESULTS.values() for kind in _kinds(result)}
    assert to_json.registry.keys() - shown == {object, list, tuple, type(None), QuiesceError}


def _verb(arguments: list[str]) -> str:
    return " ".join(arguments[:2] if arguments[0] in ("catalog", "group", "guest") else arguments[:1])


def _kinds(value: Any) -> Iterator[type]:
    """The dataclasses that a result consists of."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _kinds(item)
    elif dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _kinds(getattr(value, field.name))


def test_other_objects_are_no_results():
    """Broken: an operation's new result would be printed as whatever json makes of it."""
    with pytest.raises(TypeError, match="object is not the result of an operation"):
        to_json(object())


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


@pytest.mark.parametrize("name", RESULTS)
def test_a_verb_shows_its_result_to_people(name, tmp_path, monkeypatch):
    """Broken: a command would do its work and then end in a traceback, or say nothing."""
    arguments, work, result = RESULTS[name]
    monkeypatch.setattr(f"quiesce.cli.{work}", lambda *_, **__: result)
    shown = CliRunner().invoke(app, [*arguments, "--catalog", str(tmp_path / "catalog.db")])
    assert (shown.exit_code, shown.stderr) == (11 if name == "doctor" else 0, "")
    assert shown.stdout.strip()
    assert not shown.stdout.startswith(("{", "["))
    assert "[/]" not in shown.stdout


@pytest.mark.parametrize(("options", "said"), [([], "deleted web1@n0\n"), (["--dry-run"], "would delete web1@n0\n")])
@pytest.mark.parametrize("verb", ["delete", "group-delete"])
def test_a_dry_run_is_called_so(verb, options, said, tmp_path, monkeypatch):
    """Broken: a person would believe that checkpoints are gone that are not, or the other way round."""
    arguments, work, result = RESULTS[verb]
    monkeypatch.setattr(f"quiesce.cli.{work}", lambda *_, **__: result)
    shown = CliRunner().invoke(app, [*arguments, *options, "--catalog", str(tmp_path / "catalog.db")])
    assert said in shown.stdout

"""cli/terminal.py: whatever a name, a path or a message contains, it commands no terminal, forges no line, and ends in no
traceback."""

from __future__ import annotations

import ast
import dataclasses
import io
import itertools
import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import quiesce.cli
from quiesce.cli import render, terminal
from quiesce.cli.main import app
from quiesce.model.errors import QuiesceError
from quiesce.model.events import PhaseFinished, PhaseStarted, Progress, Warned
from quiesce.server.said import Said, Severity
from tests.strategies import NASTY, examples
from tests.unit.result_samples import RESULTS

pytestmark = pytest.mark.usefixtures("own_run")
STYLES = re.compile(r"\x1b\[[0-9;]*m")
EVIL = [
    "\x1b[31mred\x1b]0;title\x07", "\x9b2J", "a\nfake: line", "a\rb", "\u202eevil\u2066", "[bold]x[/]", "[/", "]", "[/]",
    "\\", "\\\\[red]", "[link=file:///etc]x", "\ue000\ue001", "\ud800", "\x00", "\u2028", "[", "@click[", "[@click=app.bell]",
]  # fmt: skip
TEXTS = NASTY | st.sampled_from(EVIL) | st.text("[]/\\ab@ \x1b", max_size=12)


def poisoned(value: Any, texts: Any) -> Any:
    """`value` with another text for each of its own."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return next(texts)
    if dataclasses.is_dataclass(value):
        given = {
            field.name: poisoned(getattr(value, field.name), texts)
            for field in dataclasses.fields(value)
            if field.name not in ("created", "tried", "spoilt", "parent", "head_parent")
        }
        return dataclasses.replace(value, **given)
    if isinstance(value, dict):
        return {poisoned(key, texts): poisoned(item, texts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(item, texts) for item in value)
    return value


def printed(name: str, texts: list[str]) -> str:
    """What the verb prints on a terminal, without rich's own styles."""
    arguments, work, result = RESULTS[name]
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for console in ("out", "err"):
            forced = terminal._Console(file=file, force_terminal=True, color_system="truecolor", width=300, soft_wrap=True)
            patch.setattr(terminal, console, forced)
        evil = poisoned(result, itertools.cycle(texts))

        def done(context: Any, *_: Any, **__: Any) -> Any:
            for text in texts:
                context.emit(Warned(text))
                context.emit(PhaseStarted(text))
                context.emit(Progress(text, 1, 2))
                context.emit(PhaseFinished(text, 0.1))
            return evil

        patch.setattr(f"quiesce.cli.{work}", done)
        ended = CliRunner().invoke(app, [*arguments, "--catalog", "sqlite://"])
    # An exit code of doctor's tells what it found.
    assert ended.exception is None or isinstance(ended.exception, SystemExit), f"{name}: {ended.exception!r}"
    return file.getvalue()


def require_harmless(shown: str) -> None:
    """But for what rich's display of progress does: it moves the cursor, and shows no text that is not visible()."""
    left = re.sub(r"\x1b\[(\?25[lh]|[0-9;]*m|[12]?[KAG])|\r", "", shown)
    assert [sign for sign in left if not sign.isprintable() and sign != "\n"] == []


@pytest.mark.parametrize("name", RESULTS)
def test_every_verb_shows_a_hostile_text_as_text(name):
    """Broken: a guest, or who writes beside the images, could command the terminal of root, or end a command in a traceback."""
    for evil in ("", "[/]", "[link=file:///etc]\x1b[2J", "\ud800\u202e\n"):
        require_harmless(printed(name, [evil]))


@given(st.sampled_from(sorted(RESULTS)), st.lists(TEXTS, min_size=1, max_size=8))
@examples(40)
def test_every_verb_shows_any_texts(name, texts):
    """Broken: as above, for two texts that are harmless alone."""
    require_harmless(printed(name, texts))


@given(TEXTS, TEXTS)
def test_a_text_is_shown_as_it_is_and_in_one_line(first, second):
    """Broken: two names together would make a tag of rich's, and vanish; or a line be forged."""
    file = io.StringIO()
    console = terminal._Console(file=file, force_terminal=True, color_system="truecolor", width=300, soft_wrap=True)
    console.print(f"[bold]{terminal.text(first)}@{terminal.text(second)}[/] [red]x[/]", highlight=False)
    assert STYLES.sub("", file.getvalue()) == f"{terminal.visible(first)}@{terminal.visible(second)} x\n"
    assert terminal.visible(first).isprintable()


@given(TEXTS)
def test_what_nobody_made_harmless_is_stopped_at_the_console(text):
    """Broken: one call that forgets `text` would let a guest command the terminal."""
    file = io.StringIO()
    terminal._Console(file=file, soft_wrap=True, markup=False).print(text)
    require_harmless(file.getvalue())


@given(TEXTS, TEXTS)
def test_errors_and_the_log_of_the_service_are_text(message, hint):
    """Broken: a message of a guest could forge another line of the journal, or its priority."""
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "err", terminal._Console(file=file, width=300, soft_wrap=True))

        def fail(*_: Any, **__: Any) -> Any:
            raise QuiesceError(message, hint=hint)

        patch.setattr("quiesce.cli.vms.vms", fail)
        assert CliRunner().invoke(app, ["vms", "--catalog", "sqlite://"]).exit_code == 1
        lines = file.getvalue().splitlines()
        assert lines == [f"error: {terminal.visible(message)}", *([f"hint:  {terminal.visible(hint)}"] if hint else [])]
        quiesce.cli.watch._say(Said(Severity.WARNING, message))
    require_harmless(file.getvalue())
    assert len(file.getvalue().splitlines()) == len(lines) + 1


def test_only_the_terminal_knows_how_text_is_escaped():
    """Broken: two ways, of which one would be forgotten or wrong, as rich's escape() is."""
    for path in Path(quiesce.cli.__file__).parent.glob("*.py"):
        imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert "rich.markup" not in imported, path


def test_json_is_not_touched():
    """Broken: a script would not get the name that is recorded."""
    _, work, result = RESULTS["rename"]
    evil = dataclasses.replace(result, name=EVIL[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"quiesce.cli.{work}", lambda *_, **__: evil)
        ended = CliRunner().invoke(app, ["rename", "web1@n1", "new", "--json", "--catalog", "sqlite://"])
    assert '"name": "\\u001b[31mred\\u001b]0;title\\u0007"' in ended.stdout


def test_a_time_that_is_shown_is_one():
    """Broken: the tree would end in a traceback."""
    assert re.fullmatch(r"[-0-9: ]{19}", render.local_time("2026-01-01T00:00:00+00:00"))

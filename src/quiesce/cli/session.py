"""Runs an operation for the terminal: shows its phases, prints its result or its error, and sets the exit code."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from quiesce.cli import options
from quiesce.context import Context, default_uri
from quiesce.model import events
from quiesce.model.errors import QuiesceError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

PIPE_WIDTH = 10_000
"""Columns where nobody looks: a pipe gets every row on one line."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """The phases as they come. Events are only queued; another thread draws, so that a terminal that does not take our output
    never holds up the window."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._events: queue.SimpleQueue[events.Event | None] = queue.SimpleQueue()
        self.warnings: list[str] = []

    def __enter__(self) -> Display:
        if err.is_terminal:
            self._painter = threading.Thread(target=self._paint, daemon=True)
            self._painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._events.put(None)
            self._painter.join()
            self._progress.stop()
        for warning in dict.fromkeys(self.warnings):
            err.print(f"[yellow]warning:[/] {escape(warning)}")

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.Warned):
            self.warnings.append(event.message)
        else:
            self._events.put(event)

    def _paint(self) -> None:
        while (event := self._events.get()) is not None:
            self._draw(event)

    def _draw(self, event: events.Event) -> None:
        match event:
            case events.PhaseStarted(phase):
                self._progress.start()
                self._tasks[phase] = self._progress.add_task(phase, total=None)
            case events.PhaseFinished(phase, _):
                self._progress.update(self._tasks[phase], total=1, completed=1)
            case events.Progress(phase, done, total):
                if phase in self._tasks:
                    self._progress.update(self._tasks[phase], completed=done, total=total or None)


def run(
    work: Callable[[Context], Any],
    *,
    connect: str | None,
    catalog: str | None,
    as_json: bool,
    to_json: Callable[[Any], Any],
    show: Callable[[Any], None],
) -> None:
    """Does `work` and prints what came of it. Ends the program with the error's exit code if it fails."""
    with _failing_politely(as_json):
        store = options.catalog(catalog)
        try:
            with Display() as display:
                result = work(Context(connect or default_uri(), store, display.emit))
        finally:
            store.close()
        if as_json:
            print_json(to_json(result))
        else:
            show(result)


@contextmanager
def _failing_politely(as_json: bool) -> Iterator[None]:
    try:
        yield
    except QuiesceError as error:
        if as_json:
            print_json({"error": {"kind": error.kind, "message": error.message, "hint": error.hint,
                                  "exit_code": error.exit_code, "details": error.details}})  # fmt: skip
        else:
            err.print(f"[red]error:[/] {escape(error.message)}")
            if error.hint:
                err.print(f"[dim]hint:[/]  {escape(error.hint)}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")

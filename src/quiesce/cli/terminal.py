"""The terminal: the consoles everything is printed on, and the phases of an operation as they come."""

from __future__ import annotations

import queue
import sys
import threading

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from quiesce.model import events

PIPE_WIDTH = 10_000
"""The width, in columns, of output that goes to a pipe or a file: a program then finds each row of a table on one line."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """Shows an operation's phases while it runs, and its warnings at the end.

    `emit` only queues an event. Another thread draws it, so that a terminal that is slow to take our output never holds up the
    window, while a guest's writes wait.
    """

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

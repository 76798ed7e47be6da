"""The terminal: the consoles everything is printed on, and the phases of an operation as they come.

Names, paths and messages come from guests, manifests, exports, libvirt and other users. Each passes through `text` on its way
into what is printed, and there alone is it made harmless. `--json` does not come here."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from quiesce.model import events

PIPE_WIDTH = 10_000
"""The width, in columns, of output that goes to a pipe or a file: a program then finds each row of a table on one line."""

_BRACKET, _BACKSLASH = "\ue000", "\ue001"
"""Stand for [ and \\ of a text until it is printed. rich's own escape() is not enough: it looks at one text, and a tag can be
made of two, as `[/` and `]` are in `[bold]{vm}@{name}[/]`."""
_STAND_INS = str.maketrans({"[": _BRACKET, "\\": _BACKSLASH})
_MEANT = str.maketrans({_BRACKET: "[", _BACKSLASH: "\\"})


def visible(text: str) -> str:
    """`text` in one line, with each control, format (as U+202E, which reverses the direction of writing) and separator
    character except the space spelled as in Python: `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def text(value: str) -> str:
    """`value` for rich's markup: shown as it is, in one line, whatever is in it."""
    return visible(value).translate(_STAND_INS)


class _Console(Console):
    """Prints nothing that could command the terminal, but for rich's own styles. So a text that nobody passed through `text`
    can at most spoil its own line."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(_harmless(segment.text.translate(_MEANT)), segment.style)


def _harmless(text: str) -> str:
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


out = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else PIPE_WIDTH)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """Shows an operation's phases while it runs, and its warnings at the end.

    `emit` only queues an event. Another thread draws it, so that a terminal that is slow to take our output never holds up the
    window, while a guest's writes wait.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
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
            err.print(f"[yellow]warning:[/] {text(warning)}")

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
                self._tasks[phase] = self._progress.add_task(visible(phase), total=None)
            case events.PhaseFinished(phase, _):
                self._progress.update(self._tasks[phase], total=1, completed=1)
            case events.Progress(phase, done, total):
                if phase in self._tasks:
                    self._progress.update(self._tasks[phase], completed=done, total=total or None)

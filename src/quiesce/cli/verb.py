"""What all verbs have in common: --json, --connect and --catalog, the printed result or error, and the exit code."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, TypeVar

import typer

from quiesce.catalog import unusable
from quiesce.catalog.store import Catalog
from quiesce.cli import options, terminal
from quiesce.cli.options import CatalogUrl, Connect, Json
from quiesce.context import Context, default_uri
from quiesce.model.errors import CatalogDamagedError, CatalogReadOnlyError, QuiesceError
from quiesce.model.events import Emit, Warned
from quiesce.operations.substitute import substitute
from quiesce.results import to_json

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Result = TypeVar("Result")
Work = Callable[Concatenate[Context, ...], Result]


def _zero(_result: Any) -> int:
    return 0


def verb(
    show: Callable[Concatenate[Result, ...], None],
    exit_code: Callable[[Result], int] = _zero,
    *,
    only_reads: bool = False,
    renews: bool = False,
) -> Callable[[Work[Result]], Callable[..., None]]:
    """Makes a command for typer out of a function that does a verb's work and returns the result.

    The function takes a Context, then the verb's own arguments, annotated for typer. The command takes these arguments, then
    --json, --connect and --catalog. It prints the result as JSON, or calls `show` with it. If `show` has a parameter with the
    name of one of the verb's arguments, it gets that argument too: `def show(result, dry_run)`. The program ends with the
    `exit_code` of the result. `only_reads`: the verb works without a catalog that can be written. `renews`: the verb makes a
    damaged catalog anew. A QuiesceError is printed and ends the program with the error's exit code.
    """

    def decorate(work: Work[Result]) -> Callable[..., None]:
        def command(*, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None, **own: Any) -> None:
            with _errors_printed(as_json):
                uri = connect or default_uri()
                with terminal.Display() as display:
                    try:
                        with _catalog(catalog, display.emit, renews=renews) as store:
                            result = work(Context(uri, store, display.emit), **own)
                    except (CatalogDamagedError, CatalogReadOnlyError) as error:
                        if not only_reads:
                            raise
                        with substitute(error, uri, display.emit) as context:
                            result = work(context, **own)
                if as_json:
                    _print_json(result)
                else:
                    show(result, **{name: value for name, value in own.items() if name in shown})
            if code := exit_code(result):
                raise typer.Exit(code)

        _, *own_parameters = inspect.signature(work, eval_str=True).parameters.values()
        *common, _ = inspect.signature(command, eval_str=True).parameters.values()
        _, *shown = inspect.signature(show).parameters
        command.__signature__ = inspect.Signature([*own_parameters, *common])  # type: ignore[attr-defined]
        command.__doc__ = work.__doc__
        return command

    return decorate


@contextmanager
def _catalog(url: str | None, emit: Emit, *, renews: bool) -> Iterator[Catalog]:
    """The catalog. `renews`: a damaged one is moved away first."""
    file = options.catalog_file(url) if renews else None
    if file and file.exists():
        try:
            unusable.require_usable(file)
            unusable.examine(file)
        except CatalogDamagedError as error:
            emit(Warned(f"{error.message}; it is now {unusable.move_away(file)}"))
    store = options.open_catalog(url)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _errors_printed(as_json: bool) -> Iterator[None]:
    try:
        yield
    except QuiesceError as error:
        if as_json:
            _print_json(error)
        else:
            terminal.err.print(f"[red]error:[/] {terminal.text(error.message)}")
            if error.hint:
                terminal.err.print(f"[dim]hint:[/]  {terminal.text(error.hint)}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        terminal.err.print("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def _print_json(value: Any) -> None:
    json.dump(to_json(value), sys.stdout, indent=2)
    sys.stdout.write("\n")

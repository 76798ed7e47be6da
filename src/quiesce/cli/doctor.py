"""quiesce doctor"""

from __future__ import annotations

import shlex
import sys
from datetime import timedelta
from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import OptionalVm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.errors import UsageError
from quiesce.operations.doctor import Diagnosis, Kept, Treated, doctor, exit_code
from quiesce.repair.faults import Undefined

_INDENT = "    "


def _show(found: list[Diagnosis], repair: bool) -> None:
    for diagnosis in found:
        if not diagnosis.items:
            terminal.out.print(f"{terminal.text(diagnosis.vm)}: nothing is wrong")
        for item in diagnosis.items:
            _show_item(diagnosis.vm, item, repair)
        for kept in diagnosis.quarantine:
            _show_kept(diagnosis.vm, kept)


def _show_item(vm: str, item: Treated, repair: bool) -> None:
    out, text, plan = terminal.out, terminal.text, item.remedy
    out.print(f"{text(vm)}: {'[yellow]' if plan.wrong else '[dim]'}{text(item.fault.text)}[/]")
    for known in item.fault.known:
        out.print(f"{_INDENT}known: {text(known)}")
    if item.done:
        out.print(f"{_INDENT}[green]done:[/] {text(item.done)}")
        return
    if item.problem:
        out.print(f"{_INDENT}[red]not mended:[/] {text(item.problem)}")
    if plan.does and not repair:
        out.print(f"{_INDENT}--repair: {text(plan.does)}; nothing is lost")
    for choice in plan.choices:
        out.print(f"{_INDENT}--repair --give-up {text(shlex.quote(choice.give_up))}: {text(choice.does)}")
        out.print(f"{_INDENT}    loses: {text(choice.loses)}")
    if plan.advice:
        out.print(f"{_INDENT}to do: {text(plan.advice)}")


def _show_kept(vm: str, kept: Kept) -> None:
    aside = kept.aside
    back = f"mv -n {shlex.quote(aside.path)} {shlex.quote(aside.original)}"
    until = f"{aside.since + timedelta(days=kept.days):%Y-%m-%d}"
    terminal.out.print(f"{terminal.text(vm)}: [dim]in quarantine until {until}; to get it back: {terminal.text(back)}[/]")


@verb(_show, exit_code)
def command(
    context: Context,
    vm: OptionalVm = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Do what the plan says and loses nothing. Without it nothing is changed.")
    ] = False,
    give_up: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --repair: also give up this checkpoint or file, as the plan says. Can be given several times.",
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="With --repair and without VM: define again every VM that libvirt lost and the plan lists."),
    ] = False,
) -> list[Diagnosis]:
    """Find what is wrong with the checkpoints of a VM, or of all VMs, and show a plan. With --repair, mend it.

    For each fault the command shows what is known, what --repair does, and what would be lost. --repair alone loses nothing.
    Whatever gives something up needs --give-up with the name that the plan shows, or your answer at the terminal. Files are not
    removed but moved into a quarantine beside the images (see `quiesce settings --quarantine-days`).

    Exit codes: 0 nothing is wrong, 10 all was mended, 11 something is left.

    Example: quiesce doctor db1 --repair
    """
    if (give_up or yes) and not repair:
        raise UsageError("--give-up and --yes need --repair")
    if give_up and not vm:
        raise UsageError("--give-up needs the VM", hint="two VMs may have checkpoints of one name")
    if vm and yes:
        raise UsageError("--yes is for all VMs; a VM that is named needs no further word")
    names = set(give_up or ())
    found = doctor(context, vm, repair=repair, give_up=names, define_lost=yes)
    if repair and sys.stdin.isatty() and terminal.err.is_terminal and (more := _asked(found, names, one_vm=vm is not None)):
        lost = any(isinstance(item.fault, Undefined) and item.fault.subject in more for one in found for item in one.items)
        again = doctor(context, vm, repair=True, give_up=names | more, define_lost=yes or lost)
        found = [_together(first, second) for first, second in zip(found, again, strict=False)] or again
    if unknown := names - {choice.give_up for one in found for item in one.items for choice in item.remedy.choices}:
        raise UsageError(
            f"no plan gives up {', '.join(sorted(unknown))}",
            hint=f"`quiesce doctor{f' {vm}' if vm else ''}` shows what can be given up; all else was done",
        )
    return found


def _asked(found: list[Diagnosis], named: set[str], *, one_vm: bool) -> set[str]:
    """What the user gives up at the terminal, if one VM was named; and the UUIDs of the VMs to define again."""
    chosen: set[str] = set()
    for diagnosis in found:
        for item in diagnosis.items:
            if not item.left:
                continue
            for choice in item.remedy.choices if one_vm else ():
                if choice.give_up in named | chosen:
                    continue
                _show_item(diagnosis.vm, item, repair=True)
                if typer.confirm(terminal.visible(f"Give up {choice.give_up}?"), default=False, err=True):
                    chosen.add(choice.give_up)
                    break
            if isinstance(item.fault, Undefined) and not item.fault.wanted:
                _show_item(diagnosis.vm, item, repair=True)
                if typer.confirm(terminal.visible(f"Define {item.fault.vm} again?"), default=False, err=True):
                    chosen.add(item.fault.subject)
    return chosen


def _together(first: Diagnosis, second: Diagnosis) -> Diagnosis:
    """What was done before the questions, and what after them."""
    done = tuple(item for item in first.items if item.done)
    return Diagnosis(second.vm, (*done, *second.items), second.quarantine)

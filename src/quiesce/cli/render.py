"""How labels, writers, filesystems and checkpoints look on a terminal."""

from __future__ import annotations

from datetime import datetime

from rich.table import Table
from rich.text import Text

from quiesce.applications.registry import application_of
from quiesce.cli import terminal
from quiesce.model.grades import Consistency, Grade
from quiesce.model.proof import Proof, ProofState
from quiesce.model.reports import Filesystem, FreezeState, Outcome, WriterReport
from quiesce.model.tree import Checkpoint, Kind

COLOURS = {Consistency.APPLICATION: "green", Consistency.FILESYSTEM: "yellow", Consistency.CRASH: "red"}
PROOF_COLOURS = {ProofState.PROVEN: "green", ProofState.FAILED: "red"}


def label(consistency: Consistency) -> str:
    return f"[{COLOURS[consistency]}]{consistency.value}[/]"


def grade(writer: WriterReport) -> str:
    colour = "green" if writer.grade.vouched else "red" if writer.grade is Grade.REFUSED else "yellow"
    return f"[{colour}]{writer.grade.value}[/]"


def proof(found: Proof) -> str:
    return proof_state(found.state)


def proof_state(state: ProofState) -> str:
    colour = PROOF_COLOURS.get(state, "yellow")
    return f"[{colour}]{state.value}[/]"


def show_proof(found: Proof) -> None:
    """What came of a checkpoint that was booted aside."""
    out, boot = terminal.out, f", up after {found.boot_ms / 1000:.0f} s" if found.boot_ms is not None else ""
    out.print(f"proof     {proof(found)} {local_time(found.tried)}, took {found.seconds} s{boot}: {terminal.text(found.text)}")
    for name in found.left_out:
        out.print(f"          the copy had no {terminal.text(name)}")
    for line in found.evidence:
        out.print(f"          [dim]{terminal.text(line)}[/]")
    if found.writers:
        table = Table("proof of", "state", "claimed", "found", box=None, pad_edge=False, header_style="bold")
        for each in found.writers:
            state = proof_state(each.state) + (" [red]differs[/]" if each.differs else "")
            table.add_row(terminal.text(each.id), state, each.claimed.value if each.claimed else "-", terminal.text(each.text))
            for line in (*each.checks, *each.notes, *each.evidence):
                table.add_row("", "", "", f"[dim]{terminal.text(line)}[/]")
        out.print(table)


def local_time(created: str) -> str:
    return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def writers_table(writers: tuple[WriterReport, ...]) -> Table:
    table = Table("writer", "version", "role", "state", "grade", "position", box=None, pad_edge=False, header_style="bold")
    for writer in writers:
        state = "[green]stable[/]" if writer.outcome is Outcome.STABLE else f"[red]{writer.outcome.value}[/]"
        table.add_row(
            terminal.text(writer.id),
            terminal.text(writer.version),
            terminal.text(writer.role or "-"),
            state,
            grade(writer) + ("" if writer.required else " (optional)"),
            terminal.text(position(writer)),
        )
        if writer.reason:
            table.add_row("", "", "", "", "", f"[dim]{terminal.text(writer.reason)}[/]")
        if writer.last_error and not writer.last_error.endswith(f": {writer.reason}"):
            table.add_row("", "", "", "", "", f"[dim]last error: {terminal.text(writer.last_error)}[/]")
    return table


def position(writer: WriterReport) -> str:
    """In one line, as `timeline 1 checkpoint 0/90 redo 0/80`."""
    keys = application_of(writer).summary_keys or tuple(writer.position)
    return " ".join(f"{key.removesuffix('_lsn')} {writer.position[key]}" for key in keys if key in writer.position) or "-"


def filesystems_table(filesystems: tuple[Filesystem, ...]) -> Table:
    table = Table("filesystem", "type", "state", "freeze", box=None, pad_edge=False, header_style="bold")
    for item in filesystems:
        colour = "dim" if item.state is FreezeState.SKIPPED else "default"
        freeze = f"{item.freeze_us / 1000:.1f} ms" if item.freeze_us is not None else "-"
        state = item.state.value + (f": {item.reason}" if item.reason else "")
        table.add_row(
            terminal.text(item.mountpoint), terminal.text(item.fstype), f"[{colour}]{terminal.text(state)}[/]", freeze
        )
    return table


def node_line(node: Checkpoint) -> Text:
    stall = f"  stall {node.stall_us / 1000:.0f} ms" if node.stall_us else ""
    notes = [node.kind.value] if node.kind is not Kind.PRODUCTION else []
    notes += ["off"] if node.off else []
    notes += [f"without {', '.join(node.excluded)}"] if node.excluded else []
    notes += [f"changed by another program: {', '.join(node.changed)}"] if node.changed else []
    proven = f"  {proof(node.proof)}" if node.proof else ""
    notes += [f"spoilt, found at {local_time(node.spoilt)}"] if node.spoilt else []
    remarks = f"  ({terminal.text('; '.join(notes))})" if notes else ""
    return Text.from_markup(
        f"[bold]{terminal.text(node.name)}[/]  {label(node.consistency)}  {local_time(node.created)}{stall}{proven}{remarks}"
    )

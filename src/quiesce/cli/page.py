"""A report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere. It can be printed.

Everything that a guest said is text here, never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from quiesce.cli import render, terminal
from quiesce.model.proof import Proof
from quiesce.model.timeline import Bar
from quiesce.model.tree import Checkpoint, Witness
from quiesce.operations.report import CheckpointReport

WIDTH, LANE, LEFT = 1000, 22, 320
"""Of the picture, of one lane, and of the lanes' names, in pixels."""
COLOURS = {
    "hold": "#c9a227",
    "release": "#c9a227",
    "freeze": "#2a6fb0",
    "thaw": "#2a6fb0",
    "switch": "#b03a2a",
    "frozen": "#9cc3e6",
}
STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1040px;padding:0 1em;color:#111}
table{border-collapse:collapse;width:100%;margin:.5em 0}
td,th{border-bottom:1px solid #ccc;padding:.25em .5em;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600}h2{border-top:2px solid #111;padding-top:.5em}small,.more{color:#555}
.application,.proven,.clean{color:#176b2c}.crash,.failed,.refused{color:#a11}.filesystem,.recovered,.untried{color:#8a5a00}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}tr,svg{break-inside:avoid}}
"""


def page(report: CheckpointReport) -> str:
    """The page."""
    body = [f"<h1>{_text(report.title)}</h1>", f"<p><small>report of {_text(report.made)}, by quiesce</small></p>"]
    if report.missing:
        body.append(f"<p class=failed>{report.missing} parts of the group's checkpoint are gone</p>")
    body += ["<h2>The window</h2>", _picture(report.timeline)]
    for node in report.checkpoints:
        body += _checkpoint(node)
    if report.witnesses:
        body += ["<h2>Servers that had no part, just before the window</h2>", *map(_witness, report.witnesses)]
    title = _text(report.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><body>'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _checkpoint(node: Checkpoint) -> list[str]:
    facts = [
        ("taken", f"{node.created} ({render.local_time(node.created)})"),
        ("asked for", f"{node.kind.value}, at least {node.required.value}"),
        ("label", node.consistency.value),
        ("longest wait of a write", f"{node.stall_us / 1000:.1f} ms" if node.stall_us else "not measured"),
        ("the VM was", "off" if node.off else "running"),
        ("left out", ", ".join(node.excluded) or "nothing"),
        ("changed by another program since", ", ".join(node.changed) or "nothing"),
        *((f"disk {disk.target}", disk.path) for disk in node.disks),
        *((file.role.value, file.path) for file in node.files),
        *(("warning", warning) for warning in node.warnings),
        ("id", node.id),
    ]
    writers = [
        (
            writer.id + ("" if writer.required else " (optional)"),
            writer.version,
            writer.grade.value,
            "; ".join(f"{key} {value}" for key, value in writer.position.items()),
            writer.reason or "",
        )
        for writer in node.writers
    ]
    filesystems = [(each.mountpoint, each.fstype, each.state.value, each.reason or "") for each in node.filesystems]
    parts = [f"<h2>{_text(node.vm_name)}@{_text(node.name)}</h2>", _table((), facts)]
    if writers:
        parts.append(_table(("application", "version", "grade", "position", "what a start does"), writers))
    if filesystems:
        parts.append(_table(("filesystem", "type", "state", ""), filesystems))
    return [*parts, _proof(node.proof)]


def _proof(proof: Proof | None) -> str:
    if proof is None:
        return "<h3>Proof</h3><p>Never tried: <code>quiesce verify</code> boots a copy and shows how it starts.</p>"
    rows = [
        (
            each.id,
            each.state.value + (", differs" if each.differs else ""),
            each.claimed.value if each.claimed else "",
            each.text,
            "\n".join((*each.checks, *each.notes, *each.evidence)),
        )
        for each in proof.writers
    ]
    boot = f", up after {proof.boot_ms / 1000:.0f} s" if proof.boot_ms is not None else ""
    head = f"<span class={proof.state.value}>{proof.state.value}</span> at {_text(proof.tried)}, in {proof.seconds} s{boot}"
    lines = "\n".join((*(f"the copy had no {name}" for name in proof.left_out), *proof.evidence))
    told = f"<p class=more>{_text(lines)}</p>" if lines else ""
    table = _table(("application", "state", "claimed", "found", "evidence"), rows)
    return f"<h3>Proof</h3><p>{head}: {_text(proof.text)}</p>{told}{table}"


def _witness(witness: Witness) -> str:
    rows = [
        (writer.id, writer.role or "", "; ".join(f"{key} {value}" for key, value in writer.position.items()))
        for writer in witness.writers
    ]
    why = f"<p>{_text(witness.reason)}</p>" if witness.reason else ""
    return f"<h3>{_text(witness.vm_name)}</h3>{why}{_table(('application', 'role', 'position'), rows)}"


def _picture(timeline: Sequence[Bar]) -> str:
    if not timeline:
        return "<p>There was no window: the VM was off, or its disks were taken without its guest.</p>"
    lanes = list(dict.fromkeys(bar.lane for bar in timeline))
    whole = max(1, *(bar.end_us for bar in timeline))
    height = LANE * (len(lanes) + 1)
    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="the window">']
    for number, lane in enumerate(lanes):
        drawn.append(f'<text x="0" y="{number * LANE + 15}">{_text(lane[:48])}</text>')
    for bar in timeline:
        x, end = (LEFT + (WIDTH - LEFT) * time // whole for time in (bar.begin_us, bar.end_us))
        colour = COLOURS.get(bar.what.partition(" ")[0], "#b9a76a")
        label = _text(f"{bar.lane}: {bar.what}, {bar.begin_us / 1000:.1f} to {bar.end_us / 1000:.1f} ms")
        y = lanes.index(bar.lane) * LANE + 3
        drawn.append(
            f'<rect x="{x}" y="{y}" width="{max(1, end - x)}" height="{LANE - 7}" fill="{colour}" stroke="#fff">'
            f"<title>{label}</title></rect>"
        )
    axis = height - 6
    for tenth in range(0, 11, 2):
        x = LEFT + (WIDTH - LEFT) * tenth // 10
        anchor = "end" if tenth == 10 else "middle"
        drawn.append(f'<text x="{x}" y="{axis}" text-anchor="{anchor}">{whole * tenth / 10_000:.1f} ms</text>')
    rows = [(bar.lane, bar.what, f"{bar.begin_us / 1000:.1f}", f"{bar.end_us / 1000:.1f}") for bar in timeline]
    return "".join((*drawn, "</svg>")) + _table(("where", "what", "from, ms", "to, ms"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "<tr>" + "".join(f"<th>{_text(each)}</th>" for each in head) + "</tr>" if head else ""
    return f"<table>{titles}" + "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows) + "</table>"


def _cell(text: str) -> str:
    word = text.partition(",")[0]
    known = word in ("application", "filesystem", "crash", "proven", "recovered", "failed", "untried", "refused", "clean")
    return f"<td class={word}>{_text(text)}</td>" if known else f"<td>{_text(text)}</td>"


def _text(text: str) -> str:
    """What is shown: markup and control characters spelled out, lines kept."""
    return "<br>".join(escape(terminal.visible(line)) for line in text.split("\n"))

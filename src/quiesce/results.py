"""Turns the result of every operation, and every error, into plain JSON values. The command line prints them with --json.

The values are an interface: scripts rely on every name. tests/unit/golden/ has a file for each result.
"""

from __future__ import annotations

from datetime import timedelta
from functools import singledispatch
from typing import Any

from quiesce.applications.changes import WriterChange
from quiesce.codec import encode
from quiesce.disks.merges import Waiting
from quiesce.model.divergence import describe
from quiesce.model.errors import QuiesceError
from quiesce.model.groups import Group
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.settings import Settings
from quiesce.model.tree import Checkpoint, Tree
from quiesce.operations.content import Content
from quiesce.operations.delete import Deleted
from quiesce.operations.diff import Difference, DiskDifference, DiskSide
from quiesce.operations.divergence import Divergence
from quiesce.operations.doctor import Diagnosis, Treated
from quiesce.operations.export import Exported
from quiesce.operations.group import Shown
from quiesce.operations.group_checkpoint import Taken
from quiesce.operations.group_restore import GroupRestored
from quiesce.operations.group_verify import GroupProven
from quiesce.operations.guest_agent_file import AgentFile
from quiesce.operations.guest_install import Installed
from quiesce.operations.import_ import Imported
from quiesce.operations.rebuild import Rebuilt
from quiesce.operations.report import CheckpointReport
from quiesce.operations.restore import Restored
from quiesce.operations.start import Started
from quiesce.operations.verify import Proven
from quiesce.operations.vms import VmSummary
from quiesce.operations.writers import GuestReport
from quiesce.repair.faults import Choice


@singledispatch
def to_json(result: object) -> Any:
    """The JSON values of an operation's result, of a list of results, or of an error. Raises TypeError for other objects."""
    raise TypeError(f"{type(result).__name__} is not the result of an operation")


@to_json.register(AgentFile)
@to_json.register(Choice)
@to_json.register(Content)
@to_json.register(Exported)
@to_json.register(Filesystem)
@to_json.register(Group)
@to_json.register(Imported)
@to_json.register(Installed)
@to_json.register(Settings)
@to_json.register(Shown)
@to_json.register(VmSummary)
@to_json.register(Waiting)
@to_json.register(WriterReport)
def _fields(result: Any) -> dict[str, Any]:
    """An object with the fields of the dataclass under their own names, without those that are None. Dataclasses inside are
    treated alike."""
    return dict(encode(result))


@to_json.register(type(None))
def _nothing(_: None) -> None:
    return None


@to_json.register(list)
@to_json.register(tuple)
def _several(results: list[Any] | tuple[Any, ...]) -> list[Any]:
    return [to_json(result) for result in results]


@to_json.register
def _error(error: QuiesceError) -> dict[str, Any]:
    return {
        "error": {
            "kind": error.kind,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
            "details": error.details,
        }
    }


@to_json.register
def _diagnosis(result: Diagnosis) -> dict[str, Any]:
    return {
        "vm": result.vm,
        "state": "left" if result.left else "mended" if result.mended else "clean",
        "findings": [_treated(item) for item in result.items],
        "quarantine": [
            {
                "path": kept.aside.path,
                "original": kept.aside.original,
                "since": kept.aside.since.isoformat(timespec="seconds"),
                "until": (kept.aside.since + timedelta(days=kept.days)).isoformat(timespec="seconds"),
            }
            for kept in result.quarantine
        ],
    }


def _treated(item: Treated) -> dict[str, Any]:
    return {
        "kind": item.fault.kind,
        "subject": item.fault.subject,
        "text": item.fault.text,
        "known": list(item.fault.known),
        "wrong": item.remedy.wrong,
        "repair": item.remedy.does,
        "choices": to_json(item.remedy.choices),
        "advice": item.remedy.advice,
        "done": item.done,
        "problem": item.problem,
    }


@to_json.register
def _checkpoint(node: Checkpoint) -> dict[str, Any]:
    return {**_fields(node), "stall_ms": round(node.stall_us / 1000, 1)}


@to_json.register
def _tree(tree: Tree) -> dict[str, Any]:
    return {"head_parent": tree.visible(tree.head_parent), "checkpoints": to_json(tree.checkpoints)}


@to_json.register
def _group_checkpoint(taken: Taken) -> dict[str, Any]:
    return {**_fields(taken.part), "checkpoints": to_json(taken.checkpoints)}


@to_json.register
def _group_restored(result: GroupRestored) -> dict[str, Any]:
    return {**_fields(result.part), "restored": to_json(result.restored), "started": result.started}


@to_json.register
def _restored(result: Restored) -> dict[str, Any]:
    return {
        "restored": to_json(result.checkpoint),
        "safety": to_json(result.safety),
        "generation": result.generation,
        "started": result.started,
    }


@to_json.register
def _proven(result: Proven) -> dict[str, Any]:
    node = result.checkpoint
    return {
        "checkpoint": {"vm": node.vm_name, "id": node.id, "name": node.name},
        "recorded": result.recorded,
        "differs": result.proof.differs,
        "proof": encode(result.proof),
    }


@to_json.register
def _group_proven(result: GroupProven) -> dict[str, Any]:
    return {
        "group": result.part.group,
        "id": result.part.id,
        "name": result.part.name,
        "state": result.state.value,
        "differs": result.differs,
        "together": result.together,
        "members": to_json(result.members),
    }


@to_json.register
def _report(report: CheckpointReport) -> dict[str, Any]:
    return {**_fields(report), "checkpoints": to_json(report.checkpoints)}


@to_json.register
def _started(result: Started) -> dict[str, Any]:
    return {"vm": result.vm, "checkpoint": to_json(result.checkpoint)}


@to_json.register
def _deleted(result: Deleted) -> dict[str, Any]:
    return {"deleted": to_json(result.checkpoints), "waiting": to_json(result.waiting)}


@to_json.register
def _rebuilt(result: Rebuilt) -> dict[str, Any]:
    return {"manifests": result.manifests, "recorded": to_json(result.checkpoints)}


@to_json.register
def _guest_report(report: GuestReport) -> dict[str, Any]:
    return {
        "agent_version": report.agent_version,
        "expected_consistency": report.expected.value,
        "writers": to_json(report.writers),
        "filesystems": to_json(report.filesystems),
    }


@to_json.register
def _divergence(divergence: Divergence) -> dict[str, Any]:
    return {
        "checkpoints": [{"vm": node.vm_name, "id": node.id, "name": node.name} for node in divergence.checkpoints],
        "diverges": not all(server.agrees for server in divergence.servers),
        "servers": describe(divergence.servers),
    }


@to_json.register
def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "vm": difference.vm,
        "first": _point(difference.first),
        "second": _point(difference.second),
        "common_ancestor": _point(difference.common_ancestor),
        "one_line": difference.one_line,
        "disks": to_json(difference.disks),
        "configuration": list(difference.configuration),
        "writers": to_json(difference.writers),
    }


def _point(node: Checkpoint | None) -> dict[str, str] | None:
    return {"id": node.id, "name": node.name, "created": node.created} if node else None


@to_json.register
def _disk_difference(disk: DiskDifference) -> dict[str, Any]:
    return {
        "disk": disk.disk,
        "first": to_json(disk.first),
        "second": to_json(disk.second),
        "left_out": list(disk.left_out),
        "common_image": disk.common_image,
    }


@to_json.register
def _disk_side(side: DiskSide) -> dict[str, Any]:
    return {"image": side.image, "size_bytes": side.size, "written_bytes": side.written}


@to_json.register
def _writer_change(change: WriterChange) -> dict[str, Any]:
    return {
        "id": change.id,
        "change": change.kind.value,
        "first": to_json(change.before),
        "second": to_json(change.after),
        "log_bytes": change.log_bytes,
    }

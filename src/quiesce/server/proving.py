"""Boots the newest checkpoint of each VM aside, in the background, if the VM's settings ask for it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from quiesce.context import Context
from quiesce.model.errors import BusyError, CancelledError, NotFoundError, ProofError, QuiesceError
from quiesce.model.events import Event, Warned
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import VerifyWhen
from quiesce.model.tree import Checkpoint, Kind, Tree
from quiesce.operations.verify import verify
from quiesce.server.said import Said, Say, Severity

ROUND_S = 10.0
"""Seconds between two looks for a checkpoint that is due."""
AGAIN_S = 3600.0
"""How long a checkpoint that could not be tried is left alone, in seconds."""
DAY = timedelta(days=1)


def due(tree: Tree, when: VerifyWhen, now: datetime) -> Checkpoint | None:
    """The newest checkpoint, if it is to be tried now: it has no proof and, with DAILY, no other one of the VM was tried in the
    last 24 hours. The state before a restore does not count: nobody asked for that checkpoint."""
    newest = next((node for node in reversed(tree.checkpoints) if node.kind is not Kind.SAFETY), None)
    if newest is None or newest.proof or when is VerifyWhen.NEVER:
        return None
    tried = [datetime.fromisoformat(node.proof.tried) for node in tree.nodes if node.proof]
    return newest if when is VerifyWhen.ALWAYS or all(each < now - DAY for each in tried) else None


class Prover:
    """One checkpoint at a time, of all VMs of the host."""

    def __init__(self, context: Context, stop: threading.Event, say: Say) -> None:
        self._context = context
        self._stop = stop
        self._say = say
        self._left_alone: dict[str, float] = {}
        """By the id of a checkpoint that could not be tried: until when, by time.monotonic()."""
        self._thread: threading.Thread | None = None

    def begin(self, host: str) -> None:
        """To be called when the host can be reached; does nothing if it was called before. `host`: its id in the catalog."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(host,), name="proofs", daemon=True)
            self._thread.start()

    def end(self, timeout_s: float) -> None:
        """After `stop` was set, the copy that runs is removed."""
        if self._thread:
            self._thread.join(timeout_s)

    def _run(self, host: str) -> None:
        while not self._stop.is_set():
            try:
                for node in self._due(host):
                    self._try(node)
            except QuiesceError as error:
                self._say(Said(Severity.ERROR, f"looking for checkpoints to verify: {error.message}"))
            except Exception:  # noqa: BLE001 - a defect of quiesce must not end the other proofs
                self._say(Said(Severity.ERROR, traceback.format_exc()))
            self._stop.wait(ROUND_S)

    def _due(self, host: str) -> Iterator[Checkpoint]:
        catalog = self._context.catalog
        for key, settings in catalog.settings.of_host(host).items():
            if settings.verify is VerifyWhen.NEVER or self._stop.is_set():
                continue
            tree, _ = catalog.checkpoints.readable(key)
            node = due(tree, settings.verify, datetime.now(UTC))
            if node and self._left_alone.get(node.id, 0.0) <= time.monotonic():
                yield node

    def _try(self, node: Checkpoint) -> None:
        self._left_alone[node.id] = time.monotonic() + AGAIN_S
        context = replace(self._context, emit=lambda event: self._heard(node, event), cancelled=self._stop.is_set)
        try:
            proven = verify(context, CheckpointReference(node.vm_uuid, node.id))
            self._said(Severity.INFO, node, f"was booted aside: {proven.proof.state.value}")
        except (CancelledError, BusyError):  # busy: the checkpoint is there, and its operation has not ended
            self._left_alone.pop(node.id)
        except NotFoundError:
            pass  # it was deleted meanwhile, or its VM
        except ProofError as error:
            self._said(Severity.ERROR, node, error.message)
        except QuiesceError as error:
            text = f"could not be booted aside, next try in {AGAIN_S / 60:.0f} minutes: {error.message}"
            self._said(Severity.WARNING, node, text)

    def _heard(self, node: Checkpoint, event: Event) -> None:
        if isinstance(event, Warned):
            self._said(Severity.WARNING, node, event.message)

    def _said(self, severity: Severity, node: Checkpoint, text: str) -> None:
        self._say(Said(severity, f"{node.vm_name}: {node.name!r}: {text}"))

"""quiesce watch"""

from __future__ import annotations

import os
import signal
import threading

import typer
from rich.text import Text

from quiesce.cli import options, session
from quiesce.cli.options import CatalogUrl, Connect
from quiesce.context import Context, default_uri
from quiesce.model.errors import QuiesceError
from quiesce.server.watch import Said, Severity, watch

PRIORITIES = {Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3}
"""syslog's, which journald reads from the beginning of a line: sd-daemon(3)."""


def command(connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Take and remove automatic checkpoints, until stopped; to be run as a service.

    Of each VM set to it (`quiesce settings VM --automatic`), a checkpoint is taken when it starts with none, as soon as its
    guest agent answers, and removed when its guest has shut it down. A VM that was powered off or crashed keeps it.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in every thread made from now on, too
    stop = threading.Event()

    def wait_for_signal() -> None:
        signal.sigwait(signals)
        stop.set()

    threading.Thread(target=wait_for_signal, daemon=True).start()
    try:
        store = options.catalog(catalog)
    except QuiesceError as error:
        _say(Said(Severity.ERROR, error.message))
        raise typer.Exit(error.exit_code) from None
    try:
        watch(Context(connect or default_uri(), store, lambda _: None), stop, _say)
    finally:
        store.close()


def _say(said: Said) -> None:
    prefix = f"<{PRIORITIES[said.severity]}>" if "JOURNAL_STREAM" in os.environ else ""
    for line in said.text.splitlines():
        session.err.print(Text(prefix + line))

"""cli/streams.py: output that cannot be written changes neither what a verb does nor its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("quiesce")
FULL = "quiesce: write error: No space left on device"
CLOSED = "quiesce: write error: Bad file descriptor"
VERBS = {"--version": 0, "group list": 0, "group list --json": 0, "tree --help": 0}
WRONG = {"show x": 2, "group show nothing": 3, "nonsense": 2}
"""Verbs that end with an error and print nothing on standard output, and their exit codes."""


def run(words: str, redirected: str, catalog: Path) -> tuple[int, str]:
    """The exit code of the program, and its standard error."""
    line = f"'{PROGRAM}' {words} {redirected}"
    environment = os.environ | {"QUIESCE_CATALOG": str(catalog)}
    done = subprocess.run(["bash", "-c", line], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        (">/dev/full", FULL),
        (">&-", CLOSED),
        ("| head -0; exit ${PIPESTATUS[0]}", ""),
        (">/dev/full 2>/dev/full", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_a_result_is_not_lost_with_its_output(redirected, said, tmp_path):
    """Broken: a traceback, and exit code 1 of a checkpoint that was taken: the script takes it for failed."""
    for words, code in VERBS.items():
        ended, printed = run(words, redirected, tmp_path / "catalog.db")
        assert (words, ended, printed.strip()) == (words, code, said)
    for words, code in WRONG.items():
        ended, printed = run(words, redirected, tmp_path / "catalog.db")
        assert (words, ended) == (words, code)
        assert "Traceback" not in printed
        assert "write error" not in printed  # nothing was to be written there


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """Broken: what somebody prints would be written into the catalog."""
    shown = "import os; from quiesce.cli import streams\nwith streams.forgiving(): print(os.open('/dev/zero', os.O_RDONLY) > 2)"
    line = f"'{sys.executable}' -c \"{shown}\" <&- 2>&-"
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout == "True\n"

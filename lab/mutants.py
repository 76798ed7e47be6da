"""Breaks the host side one line at a time, and checks that the fast tests fail.

tests/mutants.toml lists the mutants: a file, a piece of the file, its replacement, and the tests that must fail. Each mutant is
made in a copy of src/, so the checkout does not change."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests" / "mutants.toml"
ALL = ("tests/unit", "tests/model")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Mutant:
    says: str
    """What is broken, as in: "a disk plugged in during the window is ignored"."""
    file: str
    """Path below src/quiesce/."""
    old: str
    new: str
    tests: str
    """The tests that must fail, separated by spaces."""

    def made_in(self, source: str) -> str:
        """The file's text with the mutant in it. Raises ValueError unless the file has the piece exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.file} has {source.count(self.old)} times the piece that {self.says!r} replaces; it must have it once"
            )
        return source.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    return [Mutant(**each) for each in tomllib.loads(LIST.read_text())["mutant"]]


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Whether these tests pass with the mutant."""
    with tempfile.TemporaryDirectory(prefix="quiesce-mutant-") as directory:
        copy = Path(directory) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "quiesce" / mutant.file
        path.write_text(mutant.made_in(path.read_text()))
        code, output = _pytest(tests, copy)
        if code and " failed" not in output and " error" not in output:
            raise RuntimeError(f"pytest ended with {code}:\n{output[-4000:]}")
        return code == 0


def _pytest(tests: list[str], source: Path) -> tuple[int, str]:
    """Runs these tests with `source` in the place of src/. Returns the exit code and the output. Ends every process that a
    failed test left: pytest's output is a file, because such a process would keep a pipe open."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return process.returncode, output.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pattern", nargs="?", default="", help="only mutants with this in their description or file")
    parser.add_argument(
        "--long", action="store_true", help="a mutant that its own tests miss is tried on all of tests/unit and tests/model"
    )
    options = parser.parse_args()
    chosen = [each for each in mutants() if options.pattern in each.says or options.pattern in each.file]
    alive = []
    for mutant in chosen:
        started = time.monotonic()
        alone = survives(mutant, mutant.tests.split())
        if alone and (not options.long or survives(mutant, list(ALL))):
            alive.append(mutant)
        verdict = "SURVIVES" if mutant in alive else "dies late" if alone else "dies"
        print(f"{verdict:<9} {time.monotonic() - started:6.1f} s  {mutant.file}: {mutant.says}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants die")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()

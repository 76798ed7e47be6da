"""Coverage-guided fuzzing of the doors through which somebody else's bytes come in: `script/fuzz`.

A door is one function that reads them. Whatever the bytes are, it returns, or raises an error that its caller expects, within
seconds and with bounded memory. libFuzzer (by atheris) keeps each input that reaches a new line, and changes it further. The
tests with hypothesis know the form of what they send, and so reach other places. `lab/doors.py` has the doors.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY_MIB = 1024
HANGS_S = 20
"""Longest time for one input, in seconds, on a machine that other programs use as well."""


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Never returns: libFuzzer ends the process, with another code than 0 if it found something."""
    import atheris

    with atheris.instrument_imports(include=["quiesce", "pg8000", "scramp", "pymysql"]):
        from lab.doors import DOORS
    for number, seed in enumerate(DOORS[name].seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={HANGS_S}", f"-rss_limit_mb={MEMORY_MIB}", "-max_len=20000"]
    atheris.Setup(["fuzz", *limits, f"-artifact_prefix={corpus.parent}/{name}-", str(corpus)], DOORS[name].try_)
    atheris.Fuzz()


def fuzz_in_a_process(name: str, seconds: int, directory: Path) -> bool:
    """Whether nothing was found."""
    corpus, scratch = directory / name, directory / "scratch"
    for each in (corpus, scratch):
        each.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "lab.fuzz", "--one", name, "--seconds", str(seconds), "--in", str(directory)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    run = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment)
    shutil.rmtree(scratch)
    told = re.findall(r"#(\d+)\s.*cov: (\d+)", run.stdout)
    inputs, covered = told[-1] if told else ("0", "0")
    state = "nothing found" if run.returncode == 0 else f"FAILED\n{run.stdout[-3000:]}"
    print(f"{name}: {int(inputs):,} inputs in {seconds} s, {covered} places: {state}", flush=True)
    return run.returncode == 0


def main() -> int:
    from lab.doors import DOORS

    parser = argparse.ArgumentParser(prog="script/fuzz", description=__doc__)
    parser.add_argument("doors", nargs="*", metavar="DOOR", help=f"one of {', '.join(DOORS)}; without a name all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each door")
    parser.add_argument("--in", dest="directory", type=Path, help="where the inputs are kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.doors) - set(DOORS):
        parser.error(f"there is no door {min(unknown)}")
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="quiesce-fuzz-"))
    held = [fuzz_in_a_process(name, arguments.seconds, directory) for name in arguments.doors or DOORS]
    if not all(held):
        print(f"the inputs that failed are in {directory}")
    elif not arguments.directory:
        shutil.rmtree(directory)
    return 0 if all(held) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # by fuzz_in_a_process: nothing of quiesce may be imported before
        fuzz(sys.argv[2], int(sys.argv[4]), Path(sys.argv[6], sys.argv[2]))
    sys.exit(main())

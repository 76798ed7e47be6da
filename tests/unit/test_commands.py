"""agent/commands.py: real shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.standstill import wait_for, within
from quiesce.agent import commands
from quiesce.agent.commands import MAX_WORDS, require_runnable, run_command
from quiesce.agent.writers.base import WriterError
from quiesce.model.reports import Outcome
from tests.unit.sample_writer import Observer

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes one, and returns its path."""

    def make(text: str, name: str = "script", mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)

    return make


def fails(*command: str, seconds: float = 10, observer: Observer | None = None) -> WriterError:
    with pytest.raises(WriterError) as raised:
        run_command(command, seconds, observer)
    return raised.value


def test_what_it_says_is_returned_and_its_arguments_and_environment_arrive(script):
    """Broken: a position would be empty; or a command could not know how long it may hold."""
    path = script('echo "$# $2 $QUIESCE_WINDOW_MS"; echo noise >&2; [ -n "$PATH" ]; [ -z "$(cat)" ]')
    assert run_command([path, "one", "a b"], 10, None, {"QUIESCE_WINDOW_MS": "700"}) == "2 a b 700"


def test_any_exit_status_but_0_is_an_error_with_its_words(script):
    """Broken: a script that failed would count as one that holds, as with qemu-guest-agent's own hook."""
    path = script('echo "$1"; [ -z "$2" ] || echo "$2" >&2; exit 3')
    error = fails(path, "no database")
    assert str(error) == f"{path} no database ended with 3: no database"
    assert error.outcome is Outcome.RETRYABLE
    assert str(fails(path, "1%", "locked")) == f"{path} 1% locked ended with 3: locked"
    assert str(fails(path, "")) == f"{path}  ended with 3"


def test_one_that_is_killed_is_an_error_too(script):
    """Broken: a script that the kernel killed for memory would count as one that holds."""
    path = script("kill -9 $$")
    assert str(fails(path)) == f"{path} was killed by signal 9"


def test_its_words_are_bounded(script):
    """Broken: a script that talks much would not fit into a report; or the reason, which comes last, be cut off."""
    talks = "for i in $(seq 2000); do printf 'word%04d ' $i; done; printf '\\377'"
    assert run_command([script(talks)], 10, None).startswith("word0001")
    assert len(run_command([script(talks)], 10, None)) <= MAX_WORDS
    said = str(fails(script(f"({talks}; echo the reason) >&2; exit 1")))
    assert said.endswith("the reason")
    assert len(said) < MAX_WORDS + 200


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_gone(pid: int) -> None:
    wait_for(lambda: gone(pid), 5)


def test_one_that_does_not_end_is_killed_with_all_its_children(script, tmp_path):
    """Broken: a script that hangs would hold the guest's applications until the window ends, or go on to hold them later."""
    path = script(f"trap '' TERM; (sleep 60 & echo $! >{tmp_path}/pid; wait) & sleep 60")
    with within(4, at_least=1):
        error = fails(path, seconds=1)
    assert (str(error), error.outcome) == (f"{path} did not end within 1.0 s", Outcome.TIMEOUT)
    wait_gone(int((tmp_path / "pid").read_text()))


def test_what_it_leaves_in_the_background_is_not_waited_for_and_not_killed(script, tmp_path):
    """Broken: QEMU's own sample, which holds MySQL by a client in the background, could never be held: its output stays
    open until the thaw. Nor could a thaw start a daemon."""
    path = script(f"(sleep 0.3; echo late; echo late >&2; echo written >{tmp_path}/end) & echo $! >{tmp_path}/pid; echo held")
    with within(0.25):
        assert run_command([path], 10, None) == "held"
    pid = int((tmp_path / "pid").read_text())
    assert not gone(pid)
    wait_gone(pid)
    assert (tmp_path / "end").read_text() == "written\n"  # it was not killed for speaking to nobody


def test_it_dies_with_the_agent(script, tmp_path):
    """Broken: a freezing script would go on, and freeze, when the dead-man has already thawed."""
    path = script(f"echo $$ >{tmp_path}/pid; exec sleep 60")
    code = f"from quiesce.agent.commands import run_command; run_command(['{path}'], 60, None)"
    agent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), 10)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    wait_gone(int((tmp_path / "pid").read_text()))


def test_the_dead_man_knows_of_what_runs_until_it_has_ended(script, tmp_path):
    """Broken: an agent that is killed would leave a freezing script's children behind, which freeze when all was thawed."""
    observer = Observer()
    path = script(f"echo $$ >{tmp_path}/pid")
    run_command([path], 10, observer)
    pid = int((tmp_path / "pid").read_text())
    assert observer.told == [pid, -pid]
    del observer.told[:]
    fails(script("sleep 9"), seconds=0.01, observer=observer)
    assert observer.told == [observer.told[0], -observer.told[0]]  # or another process of that number would be killed one day


def test_a_command_leaves_nothing_open(script):
    """Broken: a long conversation would run out of descriptors."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    run_command([script("echo x")], 10, None)
    fails(script("exit 1"))
    fails(script("sleep 9"), seconds=0.01)
    with pytest.raises(OSError, match="No such file"):
        run_command(["/nowhere/command"], 1, None)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# -- what may be run


def refused(path: str) -> str:
    with pytest.raises(WriterError) as raised:
        require_runnable(path)
    assert raised.value.outcome is Outcome.NON_RETRYABLE
    return str(raised.value)


def test_what_is_roots_own_and_executable_may_be_run(script):
    """Broken: nothing could be run."""
    require_runnable(script(""))


@pytest.mark.parametrize(
    ("mode", "says"), [(0o777, "can be written by others than root"), (0o644, "cannot be executed: chmod +x")]
)
def test_what_may_not_says_what_to_mend(mode, says, script):
    """Broken: whoever can write it would be root; or the user would not know why nothing is held."""
    assert says in refused(script("", mode=mode))


def test_what_is_no_program_is_refused_before_the_window(tmp_path):
    """Broken: it would be found out only when applications wait already."""
    assert refused("systemctl") == "systemctl is no absolute path"
    assert refused("") == "an empty name is no absolute path"
    assert refused(f"{tmp_path}/absent") == f"{tmp_path}/absent: No such file or directory"
    assert refused(str(tmp_path)) == f"{tmp_path} is no file"


def test_the_wait_is_short_enough_for_the_window():
    """Broken: each script would make every application wait longer than it takes itself."""
    assert commands.POLL_S <= 0.005

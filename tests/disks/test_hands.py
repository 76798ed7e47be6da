"""`script/chaos --hands` in short: whatever others do, no content is silently wrong, nothing is lost, and the VM starts."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from lab import victim
from lab.bare import Bare, directory
from lab.forest import Forest, read
from lab.hands.campaign import COUNTED, ROOT, command
from lab.hands.contents import chain, content
from quiesce.operations.doctor import doctor

HANDS = 30
HANDS_LONG = 2000
SEED = 2911
"""Of the short form, which tells whether a change broke something; the long form looks for what nobody has met."""


@pytest.mark.timeout(4 * 3600)
def test_what_others_do(request: pytest.FixtureRequest) -> None:
    """Broken: a hand of somebody else's makes a checkpoint lie, loses data, or keeps the VM from starting."""
    long = request.config.getoption("--long")
    seed = random.randrange(2**32) if long else SEED  # noqa: S311
    words = ["--hands", str(HANDS_LONG if long else HANDS), "--seed", str(seed)]
    limit = [] if long else ["--seconds", "40", "--no-shrink"]
    done = subprocess.run(command(*words, *limit), cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr, done.stdout)
    outcome = json.loads(done.stdout)
    assert {kind: outcome[kind] for kind in COUNTED} == dict.fromkeys(COUNTED, 0)
    assert outcome["hands"] > 0
    assert done.returncode == 0


def test_what_a_guest_would_read_is_what_qemu_reads() -> None:
    """Broken: the campaign would judge by contents that no guest ever sees."""
    with directory() as path:
        bare = Bare(path, disks=1, start=False, size=1024 * 1024)
        base = path / "vda.qcow2"
        options = {
            "plain": [],
            "subclusters": ["-o", "extended_l2=on,cluster_size=128k"],
            "small": ["-o", "cluster_size=4k"],
            "old": ["-o", "compat=0.10"],
        }
        made = [base]
        for number, (name, words) in enumerate(options.items()):
            top = path / f"{name}.qcow2"
            backing = ["-F", "qcow2", "-b", made[-1].name]
            run("qemu-img", "create", "-q", "-f", "qcow2", *words, *backing, str(top), f"{1024 + 64 * number}K")
            for command in (f"write -P {number + 1} {number * 36864} 50k", f"write -z {number * 49152} 8k", "discard 512k 64k"):
                run("qemu-io", "-c", command, str(top))
            made.append(top)
        run("qemu-img", "convert", "-c", "-O", "qcow2", str(made[2]), str(path / "compressed.qcow2"))
        for image in (*made, path / "compressed.qcow2"):
            assert content(str(image)) == read(str(image)), image
        assert [Path(image).name for image in chain(str(made[-1]))] == [image.name for image in reversed(made)]
        bare.remove()


def test_a_clock_that_was_put_back(forest: Forest) -> None:
    """Broken: a checkpoint would be the child of another one than the VM is based on; or the campaign not try it."""
    catalog, output = str(forest.bare.directory / "catalog" / "catalog.db"), forest.bare.directory / "output"
    for name, clock in (("today", timedelta()), ("yesterday", -timedelta(days=1))):
        forest.write("vda", 0, 4096, 1)
        words = ["checkpoint", forest.name, "--name", name, "--require", "crash"]
        assert victim.wait(victim.start(words, catalog, output, clock=clock), 60) == 0, output.read_text()
    output.unlink()
    forest.reopen()
    earlier, later = forest.tree().checkpoints
    assert (earlier.name, later.name) == ("yesterday", "today")
    assert (earlier.parent, later.parent) == (later.id, None)
    assert doctor(forest.context, forest.name, repair=True)[0].found == ()
    forest.reset()


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

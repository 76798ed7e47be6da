"""Several processes on one host, as of one catalog: the tests of each verb have a libvirt of their own."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import victim
from lab.bare import Bare, directory

ROUNDS = 2


def test_no_operation_disturbs_those_on_other_vms(tmp_path: Path) -> None:
    """Broken: whoever checkpoints two VMs at once would lose one of them, or be told of a fault that is none."""

    def run(name: str, *words: str) -> None:
        output = tmp_path / name
        process = victim.start([*words, "--json"], str(tmp_path / "catalog.db"), output)
        code = victim.wait(process, 120)
        assert code == 0, f"{words}: {code}\n{output.read_text()}"

    def use(bare: Bare) -> None:
        vm = bare.name
        for _ in range(ROUNDS):
            run(vm, "checkpoint", vm, "--name", "one", "--require", "crash")
            run(vm, "checkpoint", vm, "--name", "two", "--require", "crash")
            run(vm, "restore", f"{vm}@one", "--start", "--discard-current")
            run(vm, "delete", f"{vm}@one")
            run(vm, "delete", f"{vm}@*")

    def look() -> None:
        for _ in range(10 * ROUNDS):
            run("vms", "vms")

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        vms = [Bare(stack.enter_context(directory()), disks=2) for _ in range(3)]
        for bare in vms:
            stack.callback(bare.remove)
        for done in [*(threads.submit(use, bare) for bare in vms), threads.submit(look)]:
            done.result()
        for bare in vms:
            assert sorted(path.name for path in bare.directory.glob("*.qcow2")) == ["vda.qcow2", "vdb.qcow2"]

"""What an operation costs beside many neighbours: `script/bench scale`. Everything runs on a libvirt of its own.

Each figure is a ratio of two measurements of one run, medians of rounds that alternate, because times depend on the machine."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import quiesce
from bench import hosts
from lab.bare import Bare, directory
from quiesce.catalog.store import Catalog
from quiesce.context import Context

QUIESCE = Path(sys.executable).with_name("quiesce")
WRITES = ("checkpoint", "restore", "delete", "rename")
READS = ("vms", "tree", "show", "doctor", "settings", "group list")


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench scale", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="only this part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000, help="foreign images in the directory")
    parser.add_argument("--checkpoints", type=int, default=50_000, help="checkpoints in the catalog")
    parser.add_argument("--vms", type=int, default=1000, help="VMs of the host; twice as many for the ratio of doctor")
    options = parser.parse_args()
    compileall.compile_dir(Path(quiesce.__file__).parent, quiet=1)  # as in an installed program
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        if not options.only or name in options.only:
            print(f"bench scale: {name} ...", file=sys.stderr)
            found[name] = part(options)
            print(json.dumps(found[name]), file=sys.stderr)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, figures in found.items():
            for what, value in figures.items():
                print(f"{name:12} {what:32} {value}")
    return 0


class Subject:
    """A VM that is off, with a catalog, and a checkpoint to be looked at."""

    def __init__(self, path: Path, url: str | None = None) -> None:
        self.bare = Bare(path, start=False)
        self.url = url or f"sqlite:///{path}/state/catalog.db"
        self.taken = 0

    def run(self, *arguments: str) -> float:
        """Seconds that the command took."""
        started = time.monotonic()
        done = subprocess.run(
            [QUIESCE, *arguments], env={**os.environ, "QUIESCE_CATALOG": self.url}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"quiesce {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return time.monotonic() - started

    def measure(self, verb: str) -> float:
        """Seconds of one run of the verb. What it changed is taken back."""
        name, at = self.bare.name, f"{self.bare.name}@kept"
        match verb:
            case "checkpoint":
                spent = self.run("checkpoint", name, "--require", "crash", "--name", "new")
                self.run("delete", f"{name}@new")
                return spent
            case "delete":
                self.run("checkpoint", name, "--require", "crash", "--name", "new")
                return self.run("delete", f"{name}@new")
            case "restore":
                return self.run("restore", at, "--discard-current")
            case "rename":
                self.taken += 1
                spent = self.run("rename", at, f"kept {self.taken}")
                self.run("rename", f"{name}@kept {self.taken}", "kept")
                return spent
            case "tree" | "doctor" | "settings":
                return self.run(verb, name)
            case "show":
                return self.run("show", at)
            case _:
                return self.run(*verb.split())


def compare(few: Subject, many: Subject, verbs: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """The ratio of each verb, and its seconds with many neighbours."""
    figures: dict[str, Any] = {}
    for verb in verbs:
        times: dict[Subject, list[float]] = {few: [], many: []}
        for _ in range(rounds):
            for subject, spent in times.items():
                spent.append(subject.measure(verb))
        seconds = statistics.median(times[many])
        figures[verb] = {"ratio": round(seconds / statistics.median(times[few]), 2), "seconds": round(seconds, 2)}
    return figures


@contextlib.contextmanager
def subject(url: str | None = None) -> Iterator[Subject]:
    with directory() as path:
        made = Subject(path, url)
        try:
            made.run("checkpoint", made.bare.name, "--require", "crash", "--name", "kept")
            yield made
        finally:
            made.bare.remove()


def neighbours(options: argparse.Namespace) -> dict[str, Any]:
    """Foreign images in the directory, and none."""
    with subject() as few, subject() as many:
        hosts.foreign_images(many.bare.directory, options.images)
        return compare(few, many, ("checkpoint", "restore", "delete", "tree"), options.rounds)


def catalog(options: argparse.Namespace) -> dict[str, Any]:
    """Many checkpoints of other VMs in the catalog, and 50."""
    figures = {"sqlite": _catalog(options, (None, None))}
    with contextlib.ExitStack() as stack:
        if urls := stack.enter_context(postgresql()):
            figures["postgresql"] = _catalog(options, urls)
    return {f"{kind} {verb}": value for kind, found in figures.items() for verb, value in found.items()}


def _catalog(options: argparse.Namespace, urls: tuple[str | None, str | None]) -> dict[str, Any]:
    with subject(urls[0]) as few, subject(urls[1]) as many:
        for each, number in ((few, 50), (many, options.checkpoints)):
            opened = Catalog(each.url)
            with Context("qemu:///system", opened, lambda _: None).host() as host:
                hosts.records_alone(opened, host.id, number)
            opened.close()
        return compare(few, many, (*WRITES, *READS), options.rounds)


@contextlib.contextmanager
def postgresql() -> Iterator[tuple[str, str] | None]:
    """The URLs of two databases of a server of its own; None where PostgreSQL is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        yield None
        return
    with directory() as path:
        shutil.chown(path, "postgres", "postgres")
        data, program = path / "data", programs[-1].parent

        def run(*command: object) -> None:
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, user="postgres", cwd="/")

        run(programs[-1], "--auth=trust", "--pgdata", data)
        serving = f"-c listen_addresses= -c unix_socket_directories={path}"
        run(program / "pg_ctl", "--wait", "--pgdata", data, "--log", path / "log", "-o", serving, "start")
        try:
            for name in ("few", "many"):
                run(program / "createdb", "--host", path, name)
            socket = path / ".s.PGSQL.5432"
            yield tuple(f"postgresql+pg8000://postgres@/{name}?unix_sock={socket}" for name in ("few", "many"))  # type: ignore[misc]
        finally:
            run(program / "pg_ctl", "--wait", "--mode=immediate", "--pgdata", data, "stop")


def doctor_all(options: argparse.Namespace) -> dict[str, Any]:
    """`doctor` of all VMs: twice as many VMs, and 50 checkpoints each."""
    few, many = (_doctor(number, 5, options.rounds) for number in (options.vms, 2 * options.vms))
    return {
        f"{2 * options.vms} VMs / {options.vms}": {"ratio": round(many / few, 2), "seconds": round(many, 1)},
        f"{options.vms} VMs with 50 each": {"seconds": round(_doctor(options.vms, 50, 1), 1)},
    }


def _doctor(number: int, each: int, rounds: int) -> float:
    return _on_host(number, each, lambda run: statistics.median(run("doctor") for _ in range(rounds)))


def list_vms(options: argparse.Namespace) -> dict[str, Any]:
    """`vms` of many VMs."""
    seconds = _on_host(options.vms, 0, lambda run: statistics.median(run("vms") for _ in range(options.rounds)))
    return {f"{options.vms} VMs": {"seconds": round(seconds, 2)}}


def _on_host(number: int, each: int, ask: Callable[[Callable[..., float]], float]) -> float:
    with directory() as path, hosts.vms(path, number) as found:
        opened = Catalog(f"sqlite:///{path}/state/catalog.db")
        if each:
            hosts.checkpoints(Context("qemu:///system", opened, lambda _: None), path, found, each)
        opened.close()

        def run(*arguments: str) -> float:
            started = time.monotonic()
            environment = {**os.environ, "QUIESCE_CATALOG": f"sqlite:///{path}/state/catalog.db"}
            done = subprocess.run([QUIESCE, *arguments, "--json"], env=environment, capture_output=True, text=True)
            spent = time.monotonic() - started
            if done.returncode or (each and any(item["findings"] for item in json.loads(done.stdout))):
                raise SystemExit(f"quiesce {' '.join(arguments)}: {done.stdout[:2000]}{done.stderr[-1500:]}")
            return spent

        return ask(run)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "neighbours": neighbours,
    "catalog": catalog,
    "doctor_all": doctor_all,
    "vms": list_vms,
}


if __name__ == "__main__":
    sys.exit(main())

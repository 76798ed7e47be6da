"""Reads what to do from standard input, as JSON: `servers`, and `harm`; prints what came of it.

Without harm: takes one checkpoint of the servers under load as the agent does, copies the frozen disks, starts the servers
again on the copy, and prints what was claimed and what there is. With harm: does that to them in the middle of an attempt,
and prints whether they work again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from lab.boxed import attempts
from lab.boxed.attempts import DISKS
from lab.boxed.harm import HARMS
from lab.boxed.mariadb import Mariadb
from lab.boxed.postgresql import Postgresql
from lab.boxed.redis import Redis
from lab.boxed.server import Server

KINDS: dict[str, type[Server]] = {"postgresql": Postgresql, "mariadb": Mariadb, "redis": Redis}


def main() -> None:
    asked = json.load(sys.stdin)
    attempts.prepare_box()
    servers = [KINDS[each["kind"]](f"server{number}", each) for number, each in enumerate(asked["servers"])]
    for server in servers:
        server.make()
        server.hide()
        server.start()
        server.fill()
        server.start_clients()
    for server in servers:
        server.wait_for_writes(20)
        server.change()
    harm = asked.get("harm")
    result = HARMS[harm](servers) if harm else compare(servers, nil_redo=asked["nil_redo"])
    json.dump(result, sys.stdout)


def compare(servers: list[Server], *, nil_redo: bool) -> dict[str, Any]:
    claimed = attempts.checkpoint(nil_redo=nil_redo)
    writers_of = {server.name: server.writers_among(claimed.get("processes", {})) for server in servers}
    for server in servers:
        server.wait_for_writes(10)
    written = {server.name: server.acknowledged() for server in servers}
    errors = {server.name: server.errors() for server in servers}
    for server in servers:
        server.kill()
    found = {}
    if "refused" not in claimed:
        boot()
        found = {server.name: server.start_again() for server in servers}
    return {"claimed": claimed, "writers_of": writers_of, "errors": errors, "found": found, "written": written}


def boot() -> None:
    """The disks as they are in the copy, and memory as it is after a boot: directories are made again, nothing is in them."""
    for place in os.scandir("/mem"):
        if not place.is_dir():  # written by a server that keeps its files in /mem itself
            os.remove(place.path)
            continue
        for left in os.scandir(place.path):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path)
            else:
                os.remove(left.path)
    for disk in DISKS:
        subprocess.run(["umount", "--lazy", disk], check=True)
        subprocess.run(["mount", "--bind", f"/copy{disk}", disk], check=True)


if __name__ == "__main__":
    main()

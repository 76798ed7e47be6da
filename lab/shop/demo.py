"""A group checkpoint of the shop under load, proof that copies of its servers start and agree, a disaster on two servers, a
group restore, and proof that the servers agree."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab import network
from lab.demo import Narrator, conclude, quiesce, window_ms
from lab.emulation import kvm_works
from lab.machine import left_behind
from lab.shop import books
from lab.shop.customers import Customers
from lab.shop.servers import Servers
from lab.standstill import clock_offset_ns
from lab.waits import longest_wait_ms

WINDOW_S = "40"
"""In seconds. Without KVM a window takes ten times as long."""
CHECK = Path(__file__).with_name("check.py")
BEFORE, AFTER = 25, 15
"""Numbers of orders to wait for, before and after the checkpoint."""


def members(taken: dict[str, Any], servers: Servers) -> dict[str, Any]:
    """The results of a group checkpoint for each server."""
    names = {machine.name: name for name, machine in servers.machines.items()}
    return {
        names[node["vm_name"]]: {
            "consistency": node["consistency"],
            "writers": {writer["id"]: writer["grade"] for writer in node["writers"]},
            "window_ms": round(window_ms(node), 1),
            "stall_ms": node["stall_ms"],
        }
        for node in taken["checkpoints"]
    }


def proof_of(verified: dict[str, Any], servers: Servers) -> dict[str, Any]:
    """The results of a group's verification, for each server."""
    names = {machine.name: name for name, machine in servers.machines.items()}
    proofs = {names[each["checkpoint"]["vm"]]: each["proof"] for each in verified["members"]}
    books = [each for each in proofs["web"]["writers"] if each["id"] == "check:books"]
    return {
        "state": verified["state"],
        "together": verified["together"],
        "books": books[0]["state"] if books else None,
        "books_say": books[0]["evidence"] if books else [],
        "members": {
            name: {
                "state": proof["state"],
                "seconds": proof["seconds"],
                "writers": [
                    {key: each.get(key) for key in ("id", "claimed", "state", "redo_bytes")} for each in proof["writers"]
                ],
            }
            for name, proof in proofs.items()
        },
    }


def run_demo(servers: Servers, catalog: Path, say: Narrator, *, prove: bool = True) -> dict[str, Any]:
    """`prove`: boots copies of all three servers, too, which takes emulated ones minutes."""

    def run(*words: str, refused: bool = False) -> Any:
        return quiesce(*words, catalog=catalog, say=say, code=4 if refused else 0)

    run("group", "create", "shop", *servers.members)
    servers["web"].write_file("/etc/quiesce/verify.d/books", CHECK.read_bytes())
    servers["web"].run("chmod 755 /etc/quiesce/verify.d/books")
    say.say("customers order: each order is written to PostgreSQL and to MariaDB, without a distributed transaction")
    with Customers(servers.customer_entrance) as customers:
        customers.wait_for(BEFORE)
        taken = run("group", "checkpoint", "shop", "--name", "before-disaster", "--window", WINDOW_S)
        offset_ns = clock_offset_ns(servers["web"])
        customers.wait_for(AFTER)
    web = next(node for node in taken["checkpoints"] if node["vm_name"] == servers["web"].name)
    held, released = (web["guest_clock_ns"][key] + offset_ns for key in ("held", "released"))
    instant = (held + released) // 2  # no order is acknowledged, and none begins, while the front end is held
    before = [order for order in customers.orders if order.acknowledged_ns < instant]
    after = [order for order in customers.orders if order.started_ns > instant]
    stall_ms = longest_wait_ms(customers.orders, held, released)
    say.say(f"{len(before)} orders acknowledged before it, {len(after)} after; the longest wait was {stall_ms:.0f} ms")

    verified = None
    if prove:
        say.say("proving it: copies of all three servers, on a network of their own; web's copy reads the books of the others")
        verified = proof_of(run("group", "verify", "shop@before-disaster", "--timeout", "1800"), servers)

    say.say("what if only the orders' database were restored?")
    db = f"{servers['db'].name}@before-disaster"
    diverged = run("divergence", db)
    for server in diverged["servers"]:
        for finding in server["findings"]:
            say.say(f"  {server['vm']}: {finding['text']}")
    refusal = run("restore", db, refused=True)["error"]

    say.say("a disaster: the orders dropped, the stock's files overwritten")
    servers["db"].sql("DROP TABLE orders", database="shop")
    servers["stock"].run("systemctl kill -s KILL mariadb; rm -rf /var/lib/mysql/shop /var/lib/mysql/ibdata1; sync")
    say.say("restoring the group")
    restored = run("group", "restore", "shop@before-disaster", "--start", "--discard-current")
    for machine in servers.machines.values():
        machine.wait_for_guest()
    servers["db"].wait_for_postgresql()

    say.say("do the books agree?")
    found = books.of_servers(servers)
    with Customers(servers.customer_entrance) as again:
        again.wait_for(5)
    later = books.of_servers(servers)
    return {
        "members": members(taken, servers),
        "verify": verified,
        "skew_ms": round(taken["skew_us"] / 1000, 1),
        "longest_wait_ms": round(stall_ms, 1),
        "divergence_of_db_alone": [server for server in diverged["servers"] if server["verdict"] == "moved"],
        "restore_of_db_alone": refusal["kind"],
        "restored": [item["restored"]["name"] for item in restored["restored"]],
        "orders": len(found.orders),
        "acknowledged_before": len(before),
        "acknowledged_after": len(after),
        "acknowledged_missing": len(found.missing(before)),
        "after_present": len(found.present(after)),
        "invariant_violations": len(found.violations()),
        "invariant_violations_afterwards": len(later.violations()),
        "orders_afterwards": len(later.orders) - len(found.orders),
        "client_errors": len(customers.errors) + len(again.errors),
        "kvm": kvm_works(),
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether the demo proved what it should."""
    return (
        all(member["consistency"] == "application" for member in result["members"].values())
        and (not result["verify"] or _proven(result["verify"], result["orders"]))
        and len(result["restored"]) == len(result["members"]) == 3
        and len(result["divergence_of_db_alone"]) > 0
        and result["restore_of_db_alone"] == "divergence"
        and result["acknowledged_before"] >= BEFORE
        and result["acknowledged_after"] > 0
        and result["orders_afterwards"] >= 5
        and all(
            result[key] == 0
            for key in (
                "acknowledged_missing",
                "after_present",
                "invariant_violations",
                "invariant_violations_afterwards",
                "client_errors",
            )
        )
    )


def _proven(verified: dict[str, Any], orders: int) -> bool:
    """Whether the copies started as they should, with the books that the restored servers have."""
    books = [f"{orders} orders, 0 without their counterpart, 0 items with a wrong level"]
    return (verified["state"], verified["books"], verified["books_say"]) == ("proven", "proven", books)


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/demo shop", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but the result, as JSON")
    say = Narrator(silent=parser.parse_args().json)
    say.say(f"three servers: nginx and an order service, PostgreSQL, MariaDB; {'KVM' if kvm_works() else 'without KVM'}")
    with tempfile.TemporaryDirectory(prefix="quiesce-demo-") as scratch, Servers() as servers:
        result = run_demo(servers, Path(scratch) / "catalog.db", say)
    return conclude(result, left_behind() + network.left_behind(), say, good=holds(result))


if __name__ == "__main__":
    sys.exit(main())

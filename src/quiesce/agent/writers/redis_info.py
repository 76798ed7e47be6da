"""What a Redis or Valkey says of itself in its answer to INFO."""

from __future__ import annotations

import re

Info = dict[str, str]


def saving(info: Info) -> str:
    """What stands in the way; the empty string if nothing does."""
    return "it is saving (BGSAVE)" if info.get("rdb_bgsave_in_progress") == "1" else ""


def rewriting(info: Info) -> str:
    """What stands in the way; the empty string if nothing does."""
    rewriting = "1" in (info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled"))
    return "it is rewriting its append-only file" if rewriting else ""


def not_written(info: Info) -> str:
    """Why its append-only file does not have everything; the empty string if it does."""
    if info.get("aof_last_write_status") != "ok":
        return "it cannot write its append-only file (aof_last_write_status)"
    if info.get("aof_buffer_length") != "0" or info.get("aof_pending_bio_fsync") != "0":
        return "its append-only file is not written to the end"
    return rewriting(info)


def _keys(info: Info) -> int:
    found = (re.match(r"keys=(\d+)", value) for name, value in info.items() if re.fullmatch(r"db\d+", name))
    return sum(int(match.group(1)) for match in found if match)


def position_in(info: Info) -> dict[str, str]:
    names = ("run_id", "master_replid", "master_repl_offset", "rdb_last_save_time", "rdb_changes_since_last_save")
    return {**{name: info.get(name, "") for name in names}, "keys": str(_keys(info))}


def moved_between(before: Info, after: Info) -> str:
    """What changed between two answers, or the empty string."""
    names = ["run_id", "master_replid"]
    if after.get("connected_slaves") == "0":  # with replicas the offset also grows by a PING every ten seconds
        names.append("master_repl_offset")
    changed = [f"{name} from {before.get(name)} to {after.get(name)}" for name in names if before.get(name) != after.get(name)]
    if _keys(before) != _keys(after):
        changed.append(f"keys from {_keys(before)} to {_keys(after)}")
    # Fewer changes mean that a save ended meanwhile. Without a replica ever, the offset stays the same, but this count grows.
    if int(after["rdb_changes_since_last_save"]) > int(before["rdb_changes_since_last_save"]):
        changed.append("it was written to")
    return ", ".join(changed)

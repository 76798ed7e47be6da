"""Redis and Valkey: they moved if any value of their position changed.

Some values change though no key does: `run_id` with every start of the server, `rdb_last_save_time` with every save,
`master_repl_offset` every ten seconds if there are replicas.
"""

from __future__ import annotations

from quiesce.applications.application import Application

APPLICATIONS = {"redis": Application("Redis"), "valkey": Application("Valkey")}

"""The three servers. They resume from one saved machine, on a network of their own."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Self

from lab import ready
from lab.image import build
from lab.machine import Machine, saved
from lab.network import Network, network
from lab.ram import SavedMachine
from quiesce.guests import archive

ITEMS, LEVEL = 20, 1_000_000
"""Number of items, and the stock of each at the beginning."""
SERVICE = Path(__file__).with_name("service.py")
PREPARE = r"""
set -e
systemctl mask --now -q haproxy redis-server valkey-server slapd pgbouncer rabbitmq-server 2>/dev/null || true
ip link set lo up
conf=/etc/postgresql/17/main
printf "listen_addresses = '*'\n" >>$conf/postgresql.conf
printf 'host shop shop 198.18.0.0/15 trust\n' >>$conf/pg_hba.conf
systemctl restart postgresql@17-main
runuser -u postgres -- psql -q -c 'CREATE ROLE shop LOGIN' -c 'CREATE DATABASE shop OWNER shop'
runuser -u postgres -- psql -q -d shop -c 'CREATE TABLE orders (key text PRIMARY KEY, item int, quantity int)' \
    -c 'ALTER TABLE orders OWNER TO shop'
printf '[mariadbd]\nbind_address=0.0.0.0\nlog_bin=shop-bin\nserver_id=1\nskip_name_resolve\n' \
    >/etc/mysql/mariadb.conf.d/99-shop.cnf
systemctl start mariadb
mariadb -e "CREATE DATABASE shop; CREATE USER shop@'%'; GRANT ALL ON shop.* TO shop@'%';
    CREATE TABLE shop.items (item INT PRIMARY KEY, level INT) ENGINE=InnoDB;
    CREATE TABLE shop.movements (order_key VARCHAR(60) PRIMARY KEY, item INT, quantity INT) ENGINE=InnoDB;
    INSERT INTO shop.items SELECT seq, %LEVEL% FROM shop.seq_1_to_%ITEMS%"
rm -f /etc/nginx/sites-enabled/*
cat >/etc/nginx/sites-enabled/shop <<'END'
server {
    listen 80;
    location / { proxy_pass http://127.0.0.1:8000; proxy_read_timeout 300s; proxy_http_version 1.1; }
}
END
cat >/etc/systemd/system/shop.service <<'END'
[Service]
Environment=PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz
EnvironmentFile=/etc/shop
ExecStart=/usr/bin/python3 /usr/local/bin/shop $DB $STOCK
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl disable -q postgresql mariadb nginx 2>/dev/null || true
systemctl stop mariadb postgresql@17-main
"""
SERVICES = {"web": ("nginx", "shop"), "db": ("postgresql", "postgresql@17-main"), "stock": ("mariadb",)}
NUMBERS = {"web": 2, "db": 3, "stock": 4}
TIERS = {"web": "front", "db": "back", "stock": "back"}


def prepared() -> SavedMachine:
    """A guest that can become any of the servers: all applications are installed and empty, and none runs."""
    image = build(applications=True)
    parts = (archive.build(), Path(__file__).read_bytes(), SERVICE.read_bytes())
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    return saved(f"shop-{key}", image, _prepare, start_from=ready.ready(image))


def _prepare(machine: Machine) -> None:
    machine.write_file("/usr/local/bin/shop", SERVICE.read_bytes())
    script = PREPARE.replace("%LEVEL%", str(LEVEL)).replace("%ITEMS%", str(ITEMS))
    machine.run(script, timeout=300)


class Servers:
    """The `with` block starts all three servers, and removes them at its end."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with self._stack:
            start_from = prepared()
            self.network: Network = self._stack.enter_context(network())
            for name, number in NUMBERS.items():
                machine = self._stack.enter_context(Machine(build(applications=True), start_from=start_from))
                self.machines[name] = machine
                self.network.plug(machine, number)
            self.start_services()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    @property
    def members(self) -> list[str]:
        """The members in the form for `quiesce group create`."""
        return [f"{machine.name}:{TIERS[name]}" for name, machine in self.machines.items()]

    @property
    def customer_entrance(self) -> str:
        return self.network.address(NUMBERS["web"])

    def start_services(self) -> None:
        """Starts the services, back ends first, and enables them, so that they start at every boot."""
        addresses = "\n".join(f"{name.upper()}={self.network.address(number)}" for name, number in NUMBERS.items())
        self["web"].write_file("/etc/shop", f"{addresses}\n".encode())
        for name in ("db", "stock", "web"):
            services = " ".join(SERVICES[name])
            self[name].run(f"systemctl enable -q {services.split()[0]}; systemctl start {services}", timeout=120)
        self["web"].run("systemctl enable -q shop")

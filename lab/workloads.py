"""The applications of a guest, each with what its clients do. `lab.load` runs them."""

from __future__ import annotations

from lab.emulation import client_pause_s
from lab.load import Workload

_WAIT_FOR = """
until {probe} >/dev/null 2>&1; do sleep 0.3; done
"""

MARIADB = Workload(
    name="mariadb",
    setup="""
        printf '[mariadbd]\\nlog_bin\\nserver_id=1\\n' >/etc/mysql/mariadb.conf.d/99-lab.cnf
        systemctl start mariadb
        mariadb -e "CREATE DATABASE shop; CREATE TABLE shop.entries (k VARCHAR(60) PRIMARY KEY) ENGINE=InnoDB;
            CREATE TABLE shop.totals (client VARCHAR(60) PRIMARY KEY, n INT) ENGINE=InnoDB"
    """,
    client="""
        import pymysql
        def connect():
            return pymysql.connect(unix_socket="/run/mysqld/mysqld.sock", user="root", database="shop")
        def write(connection, key):
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO entries VALUES (%s)", (key,))
                cursor.execute("INSERT INTO totals VALUES (%s, 1) ON DUPLICATE KEY UPDATE n = n + 1", (name,))
            connection.commit()
    """,
    stored="mariadb -N -e 'SELECT k FROM shop.entries'",
    start="systemctl start mariadb",
    clients=2,
    unclean="journalctl -b -u mariadb | grep -iE 'crash recovery|rolled back|rolling back|prepared|tc.log'"
    " | grep -v 'Starting table crash recovery'",
)

WEB = Workload(
    name="web",
    setup="""
        cat >/usr/local/bin/lab-shop <<'END'
#!/usr/bin/python3
import http.server, pymysql
class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        db = pymysql.connect(unix_socket="/run/mysqld/mysqld.sock", user="root", database="shop")
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO entries VALUES (%s)", (self.path[1:],))
            cursor.execute("INSERT INTO totals VALUES ('shop', 1) ON DUPLICATE KEY UPDATE n = n + 1")
        db.commit(); db.close()
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Shop).serve_forever()
END
        chmod 755 /usr/local/bin/lab-shop
        printf '[Service]\\nExecStart=/usr/local/bin/lab-shop\\n' >/etc/systemd/system/lab-shop.service
        printf 'server { listen 8080; location / { proxy_pass http://127.0.0.1:8000; } }\\n' >/etc/nginx/sites-enabled/default
        cat >>/etc/haproxy/haproxy.cfg <<'END'
frontend shop
    bind 127.0.0.1:8081
    default_backend shops
backend shops
    server one 127.0.0.1:8000
END
        ip link set lo up
        systemctl daemon-reload
        systemctl start lab-shop nginx haproxy
    """,
    client="""
        import http.client
        port = 8081 if name.endswith("1") else 8080
        def connect():
            return True
        def write(_, key):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/" + key)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.status == 200, answer.status
    """,
    stored="mariadb -N -e 'SELECT k FROM shop.entries'",
    start="systemctl start mariadb lab-shop nginx haproxy",
    clients=2,
    unclean=MARIADB.unclean,
)

CONTAINER = Workload(
    name="container",
    setup="""
        root=/srv/front
        mkdir -p $root/usr $root/etc $root/tmp $root/dev $root/proc $root/sys $root/run $root/var/lib
        for name in bin sbin lib lib64; do ln -s usr/$name $root/$name; done
        cat >$root/etc/front.cfg <<'END'
defaults
    mode http
    timeout connect 30s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:8082
    default_backend shops
backend shops
    server one 127.0.0.1:8000
END
        podman run -d --name front --cgroup-parent=shop.slice --network host -v /usr:/usr:ro --rootfs $root \\
            /usr/sbin/haproxy -f /etc/front.cfg
    """,
    client=WEB.client.replace('port = 8081 if name.endswith("1") else 8080', "port = 8082"),
    stored=WEB.stored,
    start="systemctl start mariadb lab-shop",
    unclean=MARIADB.unclean,
)
"""A front end in a container. The container has the guest's own programs, so no image registry is needed."""

_RESP = """
    import socket
    def connect():
        connection = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        return connection
    def write(connection, key):
        connection.sendall(("*3\\r\\n$3\\r\\nSET\\r\\n$%d\\r\\n%s\\r\\n$1\\r\\n1\\r\\n" % (len(key), key)).encode())
        answer = connection.recv(100)
        assert answer == b"+OK\\r\\n", answer
"""

REDIS = Workload(
    name="redis",
    setup="ip link set lo up; systemctl start redis-server" + _WAIT_FOR.format(probe="redis-cli ping"),
    client=_RESP.replace("PORT", "6379"),
    stored="redis-cli --scan",
    start="ip link set lo up; systemctl start redis-server" + _WAIT_FOR.format(probe="redis-cli dbsize"),
    clients=2,
    unclean="grep -iE 'short read|truncat|bad file format' /var/log/redis/redis-server.log",
)

VALKEY = Workload(
    name="valkey",
    setup="""
        ip link set lo up
        sed -i -e 's/^port .*/port 6380/' -e 's/^appendonly .*/appendonly yes/' /etc/valkey/valkey.conf
        systemctl start valkey-server
    """
    + _WAIT_FOR.format(probe="valkey-cli -p 6380 ping"),
    client=_RESP.replace("PORT", "6380"),
    stored="valkey-cli -p 6380 --scan",
    start="ip link set lo up; systemctl start valkey-server" + _WAIT_FOR.format(probe="valkey-cli -p 6380 dbsize"),
    unclean="grep -iE 'short read|truncat|bad file format' /var/log/valkey/valkey-server.log",
)

SQLITE = Workload(
    name="sqlite",
    setup="""
        install -d /var/lib/lab-notes
        cat >/usr/local/bin/lab-notes <<'END'
#!/usr/bin/python3
import os, socket, sqlite3
db = sqlite3.connect("/var/lib/lab-notes/notes.db", timeout=0, isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE IF NOT EXISTS notes (k TEXT PRIMARY KEY)")
listener = socket.create_server(("127.0.0.1", 8100))
while True:
    client, _ = listener.accept()
    for line in client.makefile("rb"):
        try:
            db.execute("INSERT INTO notes VALUES (?)", (line.decode().strip(),))
            client.sendall(b"ok\\n")
        except sqlite3.Error as error:
            client.sendall(repr(error).encode() + b"\\n")
END
        chmod 755 /usr/local/bin/lab-notes
        printf '[Service]\\nExecStart=/usr/local/bin/lab-notes\\n' >/etc/systemd/system/lab-notes.service
        ip link set lo up
        systemctl daemon-reload
        systemctl start lab-notes
        sleep 2
    """,
    client="""
        import socket
        def connect():
            return socket.create_connection(("127.0.0.1", 8100), timeout=30).makefile("rwb")
        def write(connection, key):
            connection.write(key.encode() + b"\\n")
            connection.flush()
            answer = connection.readline()
            assert answer == b"ok\\n", answer
    """,
    stored="python3 -c \"import sqlite3; db = sqlite3.connect('/var/lib/lab-notes/notes.db');"
    " print(*(k for k, in db.execute('SELECT k FROM notes')), sep=chr(10))\"",
    unclean="find /var/lib/lab-notes -name '*-wal' -size +0 -o -name '*-journal' -size +0;"
    " python3 -c \"import sqlite3; db = sqlite3.connect('/var/lib/lab-notes/notes.db');"
    " print(*(row for row, in db.execute('PRAGMA integrity_check') if row != 'ok'))\"",
)

SLAPD = Workload(
    name="slapd",
    setup="""
        systemctl start slapd
        ldapmodify -Q -Y EXTERNAL -H ldapi:/// <<'END'
dn: olcDatabase={1}mdb,cn=config
changetype: modify
replace: olcRootPW
olcRootPW: lab
END
    """,
    client="""
        import ldap, ldap.modlist
        def connect():
            connection = ldap.initialize("ldapi:///")
            base = connection.search_s("", ldap.SCOPE_BASE, attrlist=["namingContexts"])[0][1]["namingContexts"][0].decode()
            connection.simple_bind_s("cn=admin," + base, "lab")
            return connection, base
        def write(connection, key):
            server, base = connection
            entry = {"objectClass": [b"organizationalRole"], "cn": [key.encode()]}
            server.add_s("cn=%s,%s" % (key, base), ldap.modlist.addModlist(entry))
    """,
    stored="slapcat -n1 -o ldif-wrap=no | sed -n 's/^cn: //p'",
    start="systemctl start slapd",
    unclean="slapcat -n1 >/dev/null 2>/run/slapcat || cat /run/slapcat; journalctl -b -u slapd | grep -iE 'unclean|recover'",
)

PGBOUNCER = Workload(
    name="pgbouncer",
    setup="""
        runuser -u postgres -- psql -q -c 'CREATE DATABASE pooled'
        runuser -u postgres -- psql -q -d pooled -c 'CREATE TABLE entries (k text PRIMARY KEY)'
        cat >/etc/pgbouncer/pgbouncer.ini <<'END'
[databases]
pooled = host=/var/run/postgresql user=postgres
[pgbouncer]
unix_socket_dir = /var/run/postgresql
listen_port = 6432
auth_type = any
pool_mode = transaction
logfile = /var/log/postgresql/pgbouncer.log
pidfile = /run/postgresql/pgbouncer.pid
END
        systemctl restart pgbouncer
    """,
    client="""
        import psycopg2
        def connect():
            return psycopg2.connect(host="/var/run/postgresql", port=6432, dbname="pooled", user="postgres")
        def write(connection, key):
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO entries VALUES (%s)", (key,))
            connection.commit()
    """,
    stored="runuser -u postgres -- psql -X -q -A -t -d pooled -c 'SELECT k FROM entries'",
    clients=2,
    user="postgres",
)

RABBITMQ = Workload(
    name="rabbitmq",
    setup="""
        ip link set lo up
        printf 'NODENAME=rabbit@localhost\\n' >/etc/rabbitmq/rabbitmq-env.conf
        systemctl start rabbitmq-server
    """,
    client="""
        import pika
        def connect():
            connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", blocked_connection_timeout=60))
            channel = connection.channel()
            channel.queue_declare("lab", durable=True)
            channel.confirm_delivery()
            return channel
        def write(channel, key):
            channel.basic_publish("", "lab", key.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)
    """,
    stored="""python3 -c '
import pika
channel = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1")).channel()
while True:
    method, _, body = channel.basic_get("lab", auto_ack=True)
    if method is None:
        break
    print(body.decode())
'""",
    start="ip link set lo up; systemctl start rabbitmq-server",
    pause_s=client_pause_s(0.02),
    # A new node prints this line, too, so only the last start counts.
    unclean="awk '/Starting RabbitMQ/ { said = \"\" } /rebuilding indices from scratch/ { said = $0 } END { print said }'"
    " /var/log/rabbitmq/rabbit@localhost.log",
    timeout_s=400,
)

ALL_BUT_RABBITMQ = (MARIADB, WEB, REDIS, VALKEY, SQLITE, SLAPD, PGBOUNCER)
"""The applications that one small guest can run at the same time."""

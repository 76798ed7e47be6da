"""agent/writers/unsupported.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quiesce.agent import identity, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import unsupported
from quiesce.model.grades import Grade, Level


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has processes of these names run, and no others."""

    def only(*names: str) -> None:
        found = [Process(pid, name, 0, container=False) for pid, name in enumerate(names, 1)]
        monkeypatch.setattr(processes, "running", lambda: iter(found))
        monkeypatch.setattr(identity, "why_stranger", lambda _: "")

    return only


def test_each_known_server_that_runs_is_named_once(run):
    """Broken: a label would pass over a database in silence, or name each of its processes."""
    run("systemd", "mongod", "mongod", "bash", "etcd")
    found = [writer.report() for writer in unsupported.discover()]
    assert [(writer.id, writer.application) for writer in found] == [("etcd", "etcd"), ("mongod", "MongoDB")]


def test_where_none_runs_there_is_none(run):
    """Broken: every guest's label would be spoilt."""
    run("systemd", "mysqld_safe", "notetcd")
    assert unsupported.discover() == []


@pytest.mark.parametrize("name", sorted(unsupported.KNOWN))
def test_a_known_server_is_known_by_the_name_the_kernel_gives(name, run):
    """Broken: a name longer than the kernel's 15 characters would never be found."""
    run(name)
    assert len(name.encode()) <= 15
    assert [writer.id for writer in unsupported.discover()] == [name]


JAVA = {
    "kafka": ["java", "-Xmx1G", "kafka.Kafka", "/etc/kafka/server.properties"],
    "elasticsearch": ["java", "-m", "org.elasticsearch.server/org.elasticsearch.bootstrap.Elasticsearch"],
    "opensearch": [
        "/usr/share/opensearch/jdk/bin/java",
        "-cp",
        "/usr/share/opensearch/lib/*",
        "org.opensearch.bootstrap.OpenSearch",
    ],
    "cassandra": ["java", "-cp", "/etc/cassandra", "org.apache.cassandra.service.CassandraDaemon"],
    "neo4j": ["java", "org.neo4j.server.Neo4jCommunity", "--home-dir=/var/lib/neo4j"],
}


@pytest.mark.parametrize(("name", "words"), JAVA.items(), ids=JAVA)
def test_a_server_in_java_is_known_by_its_main_class(name, words, run, monkeypatch):
    """Broken: a guest with nothing but an Elasticsearch would be called application-consistent."""
    run("java")
    monkeypatch.setattr(processes, "command_line", lambda _: words)
    assert [writer.id for writer in unsupported.discover()] == [name]


@pytest.mark.parametrize(
    "words", [["java", "-jar", "/srv/app.jar"], ["java", "-Dx=org.elasticsearch.client", "com.example.Shop"], []]
)
def test_another_program_in_java_is_none_of_them(words, run, monkeypatch):
    """Broken: every program in Java would spoil its guest's label."""
    run("java")
    monkeypatch.setattr(processes, "command_line", lambda _: words)
    assert unsupported.discover() == []


@pytest.mark.parametrize(("word", "expected"), [("couchdb@127.0.0.1", ["couchdb"]), ("rabbit@db1", [])])
def test_a_server_in_erlang_is_known_by_its_arguments(word, expected, run, monkeypatch):
    """Broken: a CouchDB would be passed over in silence, or a RabbitMQ be named twice."""
    run("beam.smp")
    monkeypatch.setattr(processes, "command_line", lambda _: ["beam.smp", "-name", word])
    assert [writer.id for writer in unsupported.discover()] == expected


def test_a_name_with_what_the_process_does_behind_it(run):
    """Broken: a domain controller would be passed over, as it renames its processes."""
    run("samba: root pro")
    assert [writer.application for writer in (each.report() for each in unsupported.discover())] == ["Samba Active Directory"]


def test_it_is_a_crash_image_through_all_steps():
    """Broken: an application that nobody holds would earn a better grade by going through the motions."""
    writer = unsupported.Unsupported("mongod", "MongoDB")
    for step in (lambda: writer.prepare(0, 0), lambda: writer.hold(0), writer.release, lambda: writer.forgo("no")):
        step()
        found = writer.report()
        assert (found.grade, found.level) == (Grade.CRASH, Level.BACK_END)
        assert "MongoDB" in str(found.reason)
    writer.abort()
    writer.abort()
    writer.remember()
    assert writer.paths() == []

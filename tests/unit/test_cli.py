"""cli/: the program as a user or a script meets it. libvirt is its own mock driver, where there has to be one."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from quiesce import __version__
from quiesce.catalog.store import Catalog
from quiesce.cli.main import app
from quiesce.hypervisor.connection import Host
from quiesce.model.groups import Group, Member, Tier
from tests.samples import node

PROGRAM = Path(sys.executable).parent / "quiesce"
NOBODY = "nonsense:///there-is-no-such-libvirt"
COMMON = {"--json", "--connect", "--catalog", "--help"}
VERBS = {
    "vms": set(),
    "guest install": set(),
    "guest agent-file": set(),
    "writers": set(),
    "settings": {
        "--type",
        "--require",
        "--require-grade",
        "--automatic",
        "--no-automatic",
        "--exclude",
        "--no-exclude",
        "--quarantine-days",
        "--overlays",
        "--no-overlays",
        "--verify",
    },
    "checkpoint": {
        "--name",
        "--type",
        "--require",
        "--require-grade",
        "--exclude",
        "--overlays",
        "--window",
        "--digest",
    },
    "tree": set(),
    "show": set(),
    "report": {"--html"},
    "diff": set(),
    "divergence": set(),
    "verify": {"--content", "--memory", "--timeout", "--at-once"},
    "settle": {"--name", "--memory", "--timeout"},
    "restore": {"--start", "--discard-current", "--accept-divergence", "--accept-changed-images"},
    "rename": set(),
    "delete": {"--subtree", "--dry-run", "--break-group"},
    "export": {"--accept-changed-images"},
    "import": {"--to", "--accept", "--name", "--same", "--start"},
    **{f"group {verb}": set() for verb in ("create", "add", "remove", "list", "show", "divergence", "forget")},
    "group report": {"--html"},
    "group verify": {"--memory", "--timeout", "--jobs"},
    "group checkpoint": {"--name", "--require", "--require-grade", "--window"},
    "group restore": {"--start", "--discard-current", "--accept-divergence", "--accept-changed-images"},
    "group delete": {"--dry-run"},
    "start": set(),
    "doctor": {"--repair", "--give-up", "--yes"},
    "catalog rebuild": {"--directory", "--accept-unsigned"},
}
MENTIONED = {
    "--require",
    "--require-grade",
    "--repair",
    "--type",
    "--name",
    "--exclude",
    "--automatic",
    "--install",
    "--quarantine-days",
}
"""Options that the help of other verbs speaks of."""


def invoke(*arguments: str) -> Result:
    """In this process: for what ends before libvirt is asked."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


HOST = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>web1</name>
    <uuid>11111111-2222-3333-4444-555555555555</uuid>
    <memory>65536</memory>
    <os><type>hvm</type></os>
    <devices>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    </devices>
    <test:runstate>5</test:runstate>
  </domain>
</node>
"""


@pytest.fixture
def host(tmp_path: Path) -> str:
    """A host with one VM, which is off."""
    (tmp_path / "host.xml").write_text(HOST)
    return f"test://{tmp_path}/host.xml"


def quiesce(tmp_path: Path, *arguments: str, connect: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments, "--connect", connect, "--catalog", str(tmp_path / "catalog.db")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_version():
    """Broken: a bug report could not say which quiesce it is about."""
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"quiesce {__version__}\n")


def test_help_lists_every_verb_and_every_exit_code():
    """Broken: a verb could not be found, or a script's author would have to guess the codes."""
    output = " ".join(invoke("--help").output.split())
    for verb in VERBS:
        assert f" {verb.split()[0]} " in output
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 130):
        assert re.search(rf"\b{code} [a-z]", output)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_options(verb):
    """Broken: an option would be hidden, gone, or there without anybody having promised it."""
    for flag in ("--help", "-h"):
        result = invoke(*verb.split(), flag)
        assert result.exit_code == 0
        found = set(re.findall(r"(?<![\w-])--[a-z-]+", result.output))
        assert VERBS[verb] | COMMON <= found
        assert found <= VERBS[verb] | COMMON | MENTIONED


def test_the_documentation_has_every_verb_with_its_options():
    """Broken: docs/commands.md would promise an option that is not there, or leave a verb out."""
    page = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    told: dict[str, set[str]] = {}
    for cell in re.findall(r"^\| (`quiesce .*?) \| ", page, re.MULTILINE):
        for command in re.findall(r"`quiesce ([^`]+)`", cell):
            words, options = re.match(r"[a-z|\\ -]+", command)[0].strip(), set(re.findall(r"--[a-z-]+", command))
            options |= {"--automatic", "--no-automatic"} if "--[no-]automatic" in command else set()
            first, _, last = words.rpartition(" ")
            told |= {f"{first} {verb}".strip(): options for verb in last.split("\\|")}
    assert told == VERBS | {"watch": set()}


@pytest.mark.parametrize("verb", ["show", "delete", "divergence", "restore"])
@pytest.mark.parametrize("reference", ["web1", "web1@", "@before"])
def test_half_a_reference_is_a_usage_error_without_asking_libvirt(verb, reference, tmp_path):
    """Broken: a mistyped `delete` could do something, or a script would not learn why it did nothing."""
    result = invoke(verb, reference, "--json", "--connect", NOBODY, "--catalog", str(tmp_path / "c.db"))
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("usage", 2)
    assert reference in error["message"]
    assert "VM@CHECKPOINT" in error["hint"]


def test_an_error_is_for_people_unless_json_is_asked_for(tmp_path):
    """Broken: a user would read JSON, or a pipe would find error text among its data."""
    result = invoke("show", "[bold]web1", "--connect", NOBODY, "--catalog", str(tmp_path / "c.db"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: '[bold]web1' does not name a checkpoint" in result.stderr
    assert "hint:" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["vms", "--nonsense"],
        ["tree"],
        ["checkpoint", "web1", "--require", "--require-grade", "perfect"],
        ["checkpoint", "web1", "--window", "0.1"],
        ["checkpoint", "web1", "--window", "61"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_does_not_have_is_a_usage_error(arguments):
    """Broken: a mistyped option would be ignored."""
    assert invoke(*arguments).exit_code == 2


def test_a_catalog_that_cannot_be_opened_is_said_so(tmp_path):
    """Broken: a wrong --catalog would end in a traceback."""
    result = invoke("vms", "--json", "--connect", NOBODY, "--catalog", str(tmp_path))
    assert result.exit_code == 1
    assert "cannot open the catalog" in json.loads(result.stdout)["error"]["message"]


def test_vms_of_a_host_and_nothing_else_on_standard_output(tmp_path, host):
    """Broken: a script could not read the list."""
    done = quiesce(tmp_path, "vms", "--json", connect=host)
    assert done.returncode == 0, done.stderr
    (vm,) = json.loads(done.stdout)
    assert (vm["name"], vm["state"], vm["agent"], vm["checkpoints"]) == ("web1", "off", "none", 0)


@pytest.mark.parametrize("arguments", [("tree", "web2"), ("show", "web1@before"), ("delete", "web1@before")], ids=" ".join)
def test_what_is_not_there(arguments, tmp_path, host):
    """Broken: a typing mistake would not be told from a failure."""
    done = quiesce(tmp_path, *arguments, "--json", connect=host)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "notfound"


def test_a_refusal_comes_before_anything_is_touched(tmp_path, host):
    """Broken: a failed command would leave something to mend, or a script would not learn why it failed."""
    done = quiesce(tmp_path, "checkpoint", "web1", "--exclude", "sdz", "--json", connect=host)
    assert done.returncode == 2
    assert "no disk sdz" in json.loads(done.stdout)["error"]["message"]
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        assert connection.execute("SELECT count(*) FROM operations").fetchone() == (0,)
    connection.close()


def test_a_libvirt_that_is_not_there(tmp_path):
    """Broken: a stopped libvirtd would end in a traceback, or libvirt's own words would disturb the terminal."""
    done = quiesce(tmp_path, "vms", connect=NOBODY)
    assert (done.returncode, done.stdout) == (8, "")
    assert "cannot connect to libvirt" in done.stderr
    assert "virsh" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_vm_without_checkpoints_has_an_empty_tree(tmp_path, host):
    """Broken: the tree of a new VM would be an error."""
    done = quiesce(tmp_path, "tree", "web1", "--json", connect=host)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"head_parent": None, "checkpoints": []})


def test_who_would_disagree_is_said_to_people_and_to_programs(host, tmp_path):
    """Broken: a script could not tell whether one server can be restored alone, or a person not read why it cannot."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    with contextlib.closing(Host(host, catalog.hosts.identify)) as there:
        known_as = there.id
    uuid = "11111111-2222-3333-4444-555555555555"
    catalog.checkpoints.add(node("n1", name="now", host=known_as, vm_uuid=uuid), "<domain/>", head_parent="n1")
    known = {"vm": "web1", "id": "n1", "name": "now"}
    alone = quiesce(tmp_path, "divergence", "web1@now", "--json", connect=host)
    assert (alone.returncode, json.loads(alone.stdout)) == (0, {"checkpoints": [known], "diverges": False, "servers": []})
    alone = quiesce(tmp_path, "divergence", "web1@now", connect=host)
    assert alone.stdout == "no other server is known to belong to web1@now\n"
    members = (Member(known_as, uuid, "web1", Tier.FRONT), Member(known_as, "gone", "[b]db", Tier.BACK))
    catalog.groups.put(Group("shop", members), new=True)
    found = json.loads(quiesce(tmp_path, "divergence", "web1@now", "--json", connect=host).stdout)
    assert found["diverges"] is True
    assert [(server["vm"], server["verdict"]) for server in found["servers"]] == [("[b]db", "unknown")]
    shown = quiesce(tmp_path, "divergence", "web1@now", connect=host)
    assert shown.returncode == 0
    assert "if web1@now were restored:" in shown.stdout
    assert re.search(r"^\[b\]db +unknown +it cannot be asked: no VM named 'gone'", shown.stdout, re.MULTILINE)
    catalog.close()

"""operations/divergence.py: who is asked, and what is said of those that cannot be. Hosts and guests are fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.catalog.checkpoints import New
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.model.divergence import Agreement
from quiesce.model.errors import AgentError, DivergenceError, QuiesceError
from quiesce.model.events import Event, PhaseStarted
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.groups import Group, Member, Tier
from quiesce.model.names import CheckpointReference
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint, GroupPart, Witness
from quiesce.operations import divergence as operation
from quiesce.operations.divergence import divergence, group_divergence, require_agreement, witnesses
from quiesce.operations.restore import restore
from quiesce.operations.writers import GuestReport
from tests.samples import node
from tests.unit.fake_context import FakeContext
from tests.unit.fake_host import FakeHost, FakeVm

ROOT = (Filesystem("/", "ext4", "/dev/vda", FreezeState.THAWED),)


def redis(keys: int) -> WriterReport:
    return WriterReport("redis:6379", "redis", "7", Level.BACK_END, Grade.CLEAN, role="primary", position={"keys": str(keys)})


class Servers:
    """Each has a Redis with one key at first, and says so when it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
        self.host = FakeHost()
        self.vms: dict[str, FakeVm] = {}
        self.says: dict[str, int | QuiesceError] = {}
        """Keys, by the VM's name."""
        self.asked: list[str] = []
        self.catalog = catalog
        self.heard: list[Event] = []
        self.context = FakeContext("fake:///", catalog, self.heard.append, fake=self.host)
        monkeypatch.setattr(operation, "writers", self._ask)

    def start(self, *names: str) -> None:
        for name in names:
            disks = {"vda": self.host.storage.make(f"/i/{name}.qcow2")}
            vm = FakeVm(self.host, disks, name=name, uuid=f"uuid-{name}")
            vm.start()
            self.vms[name], self.says[name] = vm, 1

    def _ask(self, context: Context, name: str) -> GuestReport:
        with context.vm(name) as vm:
            self.asked.append(vm.name)
        with context.phase("identify"):
            said = self.says[vm.name]
        if isinstance(said, QuiesceError):
            raise said
        return GuestReport("1", (redis(said),), ROOT, Consistency.APPLICATION)

    def part(self, name: str, group: GroupPart | None, **others: object) -> Checkpoint:
        values = {"writers": (redis(1),), "filesystems": ROOT, "vm_uuid": f"uuid-{name}", "vm_name": name, "group": group}
        made = node(f"n-{name}", **{"name": "now", **values, **others})
        for disk in made.disks:
            self.host.storage.make(disk.path)
        return made

    def take(self, *names: str, seen: tuple[Witness, ...] = (), **others: object) -> list[Checkpoint]:
        """A checkpoint of these as the group `shop`."""
        group = GroupPart("g1", "shop", "now", tuple(f"n-{name}" for name in names), 0, seen)
        parts = [self.part(name, group, **others) for name in names]
        self.catalog.checkpoints.add_together([New(part, "<domain/>", part.id) for part in parts])
        return parts

    def group(self, name: str, *members: str, groups: tuple[str, ...] = (), external: tuple[str, ...] = ()) -> None:
        tiers = {**dict.fromkeys(members, Tier.BACK), **dict.fromkeys(external, Tier.EXTERNAL)}
        found = tuple(Member("host1", f"uuid-{member}", member, tier) for member, tier in tiers.items())
        self.catalog.groups.put(Group(name, found, groups), new=True)

    def verdicts(self, name: str) -> dict[str, Agreement]:
        """Of all others, if this one alone were put back."""
        found = divergence(self.context, CheckpointReference(name, "now"))
        return {server.vm_name: server.verdict for server in found.servers}

    def said_of_db(self) -> tuple[Agreement, str]:
        """If `web` alone were put back."""
        (server,) = divergence(self.context, CheckpointReference("web", "now")).servers
        (finding,) = server.findings
        assert server.vm_name == "db"
        return server.verdict, finding.text


def witness(name: str, *writers: WriterReport, reason: str | None = None) -> Witness:
    return Witness("host1", f"uuid-{name}", name, writers, reason)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Servers]:
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    yield Servers(monkeypatch, catalog)
    catalog.close()


# -- who is asked


def test_of_a_groups_checkpoint_the_other_parts_are_asked(servers):
    """Broken: orders would go back alone, and nobody would say that the stock went on; or the one restored be asked itself."""
    servers.start("web", "db", "stock", "stranger")
    servers.take("web", "db", "stock")
    servers.says["stock"] = 5
    assert servers.verdicts("web") == {"db": Agreement.AGREES, "stock": Agreement.MOVED}
    assert sorted(servers.asked) == ["db", "stock"]


def test_a_part_is_asked_though_it_left_the_group(servers):
    """Broken: forgetting a group would make its checkpoints look safe to be restored one by one."""
    servers.start("web", "db")
    servers.group("shop", "web")
    servers.take("web", "db")
    assert servers.verdicts("web") == {"db": Agreement.AGREES}


def test_who_joined_the_group_later_is_asked_and_unknown(servers):
    """Broken: a new server of the application would be passed over, or agree although nobody knows where it stood."""
    servers.start("web", "db", "new")
    servers.take("web", "db")
    servers.group("shop", "web", "db", "new")
    assert servers.verdicts("web") == {"db": Agreement.AGREES, "new": Agreement.UNKNOWN}


def test_of_a_checkpoint_that_is_no_groups_all_in_a_group_with_it_are_asked(servers):
    """Broken: a checkpoint of one VM of an application would be restored without a word."""
    servers.start("web", "db", "log", "stranger")
    part = servers.part("web", None)
    servers.catalog.checkpoints.add(part, "<domain/>", head_parent=part.id)
    servers.group("shop", "web", "db")
    servers.group("logging", "web", external=("log",))
    servers.group("else", "stranger")
    assert servers.verdicts("web") == {"db": Agreement.UNKNOWN, "log": Agreement.UNKNOWN}


def test_a_vm_in_no_group_has_nobody_to_disagree_with(servers):
    """Broken: a VM of its own could not be restored any more."""
    servers.start("web", "stranger")
    part = servers.part("web", None)
    servers.catalog.checkpoints.add(part, "<domain/>", head_parent=part.id)
    assert servers.verdicts("web") == {}
    require_agreement(servers.context, [part])
    assert servers.asked == []


def test_members_of_groups_in_a_group_are_asked(servers):
    """Broken: a database in a group of databases would be no part of the application, or be asked twice."""
    servers.start("web", "db", "stock")
    part = servers.part("web", None)
    servers.catalog.checkpoints.add(part, "<domain/>", head_parent=part.id)
    servers.group("databases", "db", "stock")
    servers.group("shop", "web", groups=("databases",))
    assert servers.verdicts("web").keys() == {"db", "stock"}
    assert sorted(servers.asked) == ["db", "stock"]


def test_external_servers_are_compared_with_what_they_said_then(servers):
    """Broken: a server that is asked, and not taken, would always agree or never."""
    servers.start("web", "payments", "mail", "late")
    seen = (witness("payments", redis(1)), witness("mail", redis(1)), witness("late", reason="it is off"))
    parts = servers.take("web", seen=seen)
    servers.says["mail"] = 3
    expected = {"payments": Agreement.AGREES, "mail": Agreement.MOVED, "late": Agreement.UNKNOWN}
    assert servers.verdicts("web") == expected
    found = group_divergence(servers.context, "shop@now")
    assert found.checkpoints == tuple(parts)
    assert {server.vm_name: server.verdict for server in found.servers} == expected
    assert str(found.servers[2]) == "late: it could not be asked when that checkpoint was taken: it is off"


def test_if_all_go_back_only_those_beside_them_are_asked(servers):
    """Broken: a group could not be restored because its own members moved, which is why it is restored."""
    servers.start("web", "db", "new")
    servers.take("web", "db")
    servers.group("shop", "web", "db", "new")
    servers.says.update(web=7, db=7)
    assert [server.vm_name for server in group_divergence(servers.context, "shop@now").servers] == ["new"]
    assert servers.asked == ["new"]


def test_an_external_server_goes_back_without_asking_the_group(servers):
    """Broken: a server that several applications share could not be restored without all of them."""
    servers.start("web", "payments")
    part = servers.part("payments", None)
    servers.catalog.checkpoints.add(part, "<domain/>", head_parent=part.id)
    servers.group("shop", "web", external=("payments",))
    assert servers.verdicts("payments") == {}


# -- what is said of a server


def test_a_server_that_cannot_be_asked_is_unknown_and_says_why(servers):
    """Broken: one without an agent would be taken to agree, or spoil the answer about the others."""
    servers.start("web", "db", "stock")
    servers.take("web", "db", "stock", "lost")
    servers.says["db"] = AgentError("db has no agent")
    found = divergence(servers.context, CheckpointReference("web", "now")).servers
    assert list(map(str, found)) == [
        "db: it cannot be asked: db has no agent",
        "stock: Redis 6379 has not moved since the checkpoint",
        "lost: it cannot be asked: no VM named 'uuid-lost'",
    ]
    assert [server.verdict for server in found] == [Agreement.UNKNOWN, Agreement.AGREES, Agreement.UNKNOWN]


def test_a_server_that_was_put_back_elsewhere_has_moved(servers):
    """Broken: it would be judged by numbers of another history, which may happen to be the same."""
    servers.start("web", "db")
    servers.take("web", "db")
    servers.catalog.checkpoints.add(
        node("n-old", vm_uuid="uuid-db", vm_name="db", created="2025-01-01T00:00:00.000+00:00"),
        "<domain/>",
        head_parent="n-old",
    )
    assert servers.said_of_db() == (Agreement.MOVED, "it was restored to another checkpoint since")
    assert servers.asked == []


def test_a_server_that_has_later_checkpoints_is_asked(servers):
    """Broken: a checkpoint of one server would be taken for a way back to another history."""
    servers.start("web", "db")
    servers.take("web", "db")
    later = node("n-later", vm_uuid="uuid-db", vm_name="db", parent="n-db")
    servers.catalog.checkpoints.add(later, "<domain/>", head_parent=later.id)
    assert servers.said_of_db() == (Agreement.AGREES, "Redis 6379 has not moved since the checkpoint")


def stand_at_part(servers: Servers) -> None:
    """As after a restore: off, on a head that nobody has written since."""
    vm = servers.vms["db"]
    vm.power_off()
    path = vm.heads()["vda"]
    servers.catalog.checkpoints.set_untouched(vm.key, Untouched({path: servers.host.storage.image(path).stamp}))


def test_a_server_that_is_off_and_stands_at_its_part_agrees(servers):
    """Broken: members could not be restored one after another, as each that is back is off."""
    servers.start("web", "db")
    servers.take("web", "db")
    stand_at_part(servers)
    assert servers.said_of_db() == (Agreement.AGREES, "it is off, and its disks are at its part of that checkpoint")
    assert servers.asked == []


def test_a_server_that_is_off_and_was_written_since_is_unknown(servers):
    """Broken: one that ran since it was put back, and is off again, would be taken to stand at its part."""
    servers.start("web", "db")
    servers.take("web", "db")
    stand_at_part(servers)
    servers.host.storage.touch(servers.vms["db"].heads()["vda"])
    assert servers.said_of_db() == (
        Agreement.UNKNOWN,
        "it is off; only a running guest can report the positions of its applications",
    )


@pytest.mark.parametrize("others", [{"off": True}, {"consistency": Consistency.CRASH}], ids=["off", "without its guest"])
def test_a_part_whose_guest_was_not_asked_says_nothing_of_its_applications(others, servers):
    """Broken: a database that was there all the time would be said to be new."""
    servers.start("web", "db")
    servers.take("web", "db", writers=(), filesystems=(), **others)
    assert servers.said_of_db() == (Agreement.UNKNOWN, "the position of Redis 6379 at the checkpoint is not known")


def test_a_part_whose_guest_had_no_applications_is_known_to_have_had_none(servers):
    """Broken: a database that came since would be unknown, though it was seen not to be there."""
    servers.start("web", "db")
    servers.take("web", "db", writers=())
    assert servers.said_of_db() == (Agreement.MOVED, "Redis 6379 was not there at the checkpoint")


def test_phases_of_many_guests_at_once_are_not_told(servers):
    """Broken: progress would jump between guests."""
    servers.start("web", "db")
    servers.take("web", "db")
    servers.verdicts("web")
    witnesses(servers.context, [Member("host1", "uuid-db", "db", Tier.EXTERNAL)])
    assert [event.phase for event in servers.heard if isinstance(event, PhaseStarted)] == ["ask the other servers"]


def test_witnesses_are_asked_and_those_that_cannot_be_are_kept_with_the_reason(servers):
    """Broken: a checkpoint would fail because of a server that is no part of it, or forget that it exists."""
    servers.start("payments", "mail")
    servers.says["mail"] = AgentError("mail has no agent")
    members = [Member("host1", f"uuid-{name}", name, Tier.EXTERNAL) for name in ("payments", "mail")]
    found = witnesses(servers.context, members)
    assert found == (witness("payments", redis(1)), witness("mail", reason="mail has no agent"))
    (part,) = servers.take("web", seen=found)
    assert servers.catalog.checkpoints.parts("g1") == [part]


# -- what comes of it


def test_a_restore_of_one_server_is_refused_and_says_how_to_restore_all(servers):
    """Broken: one server would go back although the others went on, or its administrator not learn what to do instead."""
    servers.start("web", "db", "stock", "late")
    web, *_ = servers.take("web", "db", "stock", "late")
    servers.says.update(db=5, late=AgentError("late has no agent"))
    with pytest.raises(DivergenceError) as raised:
        require_agreement(servers.context, [web])
    error = raised.value
    assert error.message.splitlines() == [
        "other servers would disagree with web@now:",
        "  db: Redis 6379 has moved since the checkpoint (keys 1 -> 5)",
        "  late: it cannot be asked: late has no agent",
    ]
    assert error.hint == (
        "restore all of them: quiesce group restore shop@now; or --accept-divergence restores in spite of that"
    )
    assert {server["vm"]: server["verdict"] for server in error.details["servers"]} == {
        "db": "moved",
        "stock": "agrees",
        "late": "unknown",
    }


def test_a_restore_of_a_whole_group_is_not_told_to_restore_the_group(servers):
    """Broken: the hint would name the very command that was refused."""
    servers.start("web", "db", "mail")
    parts = servers.take("web", "db", seen=(witness("mail", redis(1)),))
    servers.says["mail"] = 3
    with pytest.raises(DivergenceError, match="disagree with web@now, db@now:\n  mail: ") as raised:
        require_agreement(servers.context, parts)
    assert raised.value.hint == "--accept-divergence restores in spite of that"


def test_a_group_restore_that_would_be_refused_as_well_is_not_offered(servers):
    """Broken: an administrator would be sent from one refusal to the next."""
    servers.start("web", "db", "mail")
    web, _ = servers.take("web", "db", seen=(witness("mail", redis(1)),))
    servers.says.update(db=5, mail=3)
    with pytest.raises(DivergenceError) as raised:
        require_agreement(servers.context, [web])
    assert raised.value.hint == "--accept-divergence restores in spite of that"


def test_a_restore_with_which_all_agree_is_not_refused(servers):
    """Broken: --accept-divergence would become a habit."""
    servers.start("web", "db")
    web, _ = servers.take("web", "db")
    require_agreement(servers.context, [web])


def test_a_refused_restore_leaves_the_vm_as_it_is_unless_it_is_accepted(servers):
    """Broken: the VM would be stopped before anybody was asked, or could not be put back whatever its administrator says."""
    servers.start("web", "db")
    web = servers.vms["web"]
    group = GroupPart("g1", "shop", "now", ("n-web", "n-db"), 0)
    parts = [servers.part("web", group, targets=("vda",)), servers.part("db", group)]
    servers.catalog.checkpoints.add_together([New(part, web.xml, part.id) for part in parts])
    servers.host.storage.make("/images/n-web.vda.qcow2")
    servers.says["db"] = 5
    before = dict(web.live)
    with pytest.raises(DivergenceError):
        restore(servers.context, CheckpointReference("web", "now"), discard_current=True)
    assert web.live == before
    restore(servers.context, CheckpointReference("web", "now"), discard_current=True, accept_divergence=True)
    assert web.live is None
    assert servers.host.storage.chain(web.heads()["vda"])[1] == "/images/n-web.vda.qcow2"

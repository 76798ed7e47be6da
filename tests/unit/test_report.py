"""operations/report.py, model/timeline.py, cli/page.py: a checkpoint for a person who was not there."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from quiesce.cli.page import page
from quiesce.model.errors import NotFoundError
from quiesce.model.grades import Level
from quiesce.model.names import CheckpointReference
from quiesce.model.timeline import bars
from quiesce.model.tree import Checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.report import group_report, report
from tests.samples import node
from tests.unit.result_samples import FULL, PLAIN, POSTGRESQL, REPORT, ROOT
from tests.unit.world import WINDOW_S, World

HOSTILE = "<script>alert(1)</script><img src=http://evil/x>&\"'\x1b[2J\u202e"


def held(name: str, **phases: int) -> Checkpoint:
    named = {key.replace("_", " ").replace("back ", "back-").replace("front ", "front-"): each for key, each in phases.items()}
    return replace(node(name), phases_us=named, writers=(POSTGRESQL,), filesystems=(ROOT,))


def test_the_window_is_drawn_in_its_order():
    """Broken: a picture would show a switch before the freeze, as the order of the record is lost when a catalog is rebuilt."""
    one = held("a", thaw=5, switch=30, release_back_end=7, hold_back_end=10, freeze=20)
    found = {(bar.lane, bar.what): (bar.begin_us, bar.end_us) for bar in bars([one])}
    assert POSTGRESQL.level is Level.BACK_END
    assert found["web1", "hold back-end"] == (0, 10)
    assert found["web1", "freeze"] == (10, 30)
    assert found["web1", "switch"] == (30, 60)
    assert found["web1", "release back-end"] == (65, 72)
    assert found[f"web1 {POSTGRESQL.id}", f"held ({POSTGRESQL.grade.value})"] == (0, 72)
    assert bars([PLAIN]) == ()


def test_a_page_shows_what_it_is_given_and_runs_nothing():
    """Broken: a guest could run a script in the browser of whoever reads the report, or have it load something."""
    proof = replace(FULL.proof, text=HOSTILE, evidence=(HOSTILE,), left_out=(HOSTILE,))
    writer = replace(POSTGRESQL, id=HOSTILE, reason=HOSTILE, position={HOSTILE: HOSTILE})
    bad = replace(FULL, name=HOSTILE, vm_name=HOSTILE, warnings=(HOSTILE,), writers=(writer,), proof=proof)
    text = page(replace(REPORT, title=HOSTILE, checkpoints=(bad,), timeline=bars([replace(bad, phases_us={"freeze": 1})])))
    assert "<script" not in text
    assert "<img" not in text
    assert "http://evil/x&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_page_is_one_file_that_a_browser_can_read():
    """Broken: the picture would be cut, or the page need something from elsewhere."""
    text = page(REPORT)
    assert not any(word in text for word in ("src=", "href=", "@import", "url("))
    for word in (POSTGRESQL.id, "recovered", "2026-01-01T01:00:00", "1 parts of the group", *POSTGRESQL.position.values()):
        assert word in text
    picture = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    _, _, width, height = map(int, picture.get("viewBox").split())
    for bar in picture.iter("rect"):
        assert int(bar.get("x")) + int(bar.get("width")) <= width + 1
        assert int(bar.get("y")) + int(bar.get("height")) <= height


def test_a_checkpoint_without_a_window_has_a_page_too():
    """Broken: the report of a VM that was off would end in a traceback."""
    assert "There was no window" in page(replace(REPORT, checkpoints=(PLAIN,), timeline=(), witnesses=()))


def test_a_report_has_the_label_that_the_images_deserve(world):
    """Broken: an auditor would be told that a checkpoint is clean that somebody wrote into."""
    vm = world.vm()
    world.take(vm)
    assert report(world.context, CheckpointReference("web1", "a")).checkpoints[0].consistency.value == "application"
    world.host.storage.touch("/i/web1.qcow2")
    assert report(world.context, CheckpointReference("web1", "a")).checkpoints[0].consistency.value == "crash"
    with pytest.raises(NotFoundError):
        report(world.context, CheckpointReference("web1", "b"))


def test_a_group_is_on_one_axis_and_says_what_is_gone(world: World):
    """Broken: the members of a group would be shown as if each had a window of its own, or a lost part be passed over."""
    web, db = world.vm("web1"), world.vm("db1")
    world.group("web1", "db1")
    group_checkpoint(world.context, "shop", name="one", window_s=WINDOW_S)
    found = group_report(world.context, "shop@one")
    assert [each.vm_name for each in found.checkpoints] == ["web1", "db1"]
    assert {bar.lane for bar in found.timeline} >= {"web1", "db1", "web1 postgresql:main", "db1 postgresql:main"}
    assert found.missing == 0
    web.power_off()
    delete(world.context, [CheckpointReference("web1", "one")], break_group=True)
    assert group_report(world.context, "shop@one").missing == 1
    world.host.vms.remove(db)
    assert [each.vm_name for each in group_report(world.context, "shop@one").checkpoints] == ["db1"]

"""operations/rename.py"""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from quiesce.catalog import journal, manifest, schema
from quiesce.model.errors import NameTakenError, NotFoundError, UsageError
from quiesce.operations.rename import rename
from quiesce.recovery import recover_all
from tests.samples import KEY
from tests.unit.conftest import Fake, reference
from tests.unit.test_survey import at


@pytest.fixture
def named(fake: Fake) -> Fake:
    """With the checkpoints `a` and `b`, and a deleted one, `gone`."""
    for key, others in {"a": {}, "gone": {"hidden": True}, "b": {}}.items():
        path = "/i/vda.qcow2" if key == "a" else fake.own(f"/i/{key}", "/i/vda.qcow2")
        fake.add(at(key, path, None if key == "a" else "a", name=key, **others))
    return fake


def operations(fake: Fake) -> int:
    with fake.catalog.database.transaction() as connection:
        return len(connection.execute(sa.select(schema.operations)).all())


def test_a_checkpoint_has_its_new_name_everywhere(named):
    """Broken: the old name would come back with a catalog that is made again from the manifests."""
    renamed = rename(named.context, reference("a"), "new")
    assert (renamed.id, renamed.name) == ("a", "new")
    assert named.tree().find("new") == renamed
    assert not named.tree().has_name("a")
    described = manifest.load(named.host.storage.files["/i/" + manifest.name("a")].content, named.catalog.seal).manifest
    assert described.checkpoint == renamed
    assert described.domain_xml == named.catalog.checkpoints.domain_xml("a")
    assert journal.interrupted(named.catalog, KEY) == []
    assert named.tree().head_parent == "b"


def test_its_id_names_it_too_and_stays(named):
    """Broken: a script that keeps ids would lose the checkpoint with its first renaming."""
    rename(named.context, reference("a"), "new")
    assert rename(named.context, reference("a"), "newer").id == "a"
    assert named.tree().find("a").name == "newer"


def test_the_name_it_has_is_no_error_and_nothing_to_do(named):
    """Broken: a script that runs twice would fail the second time."""
    before = operations(named)
    assert rename(named.context, reference("a"), "a") == named.tree().find("a")
    assert operations(named) == before


@pytest.mark.parametrize("name", ["b", "  ", " a", "x" * 101, "a\nb"])
def test_a_name_that_cannot_be_given_changes_nothing(name, named):
    """Broken: two checkpoints would have one name, or one that nobody can type."""
    before = named.tree(), operations(named)
    with pytest.raises(NameTakenError if name == "b" else UsageError):
        rename(named.context, reference("a"), name)
    assert (named.tree(), operations(named)) == before


def test_a_deleted_checkpoints_name_is_free_and_it_is_not_found(named):
    """Broken: a name would be lost with its checkpoint, or a deleted checkpoint could be given one."""
    assert rename(named.context, reference("b"), "gone").id == "b"
    with pytest.raises(NotFoundError):
        rename(named.context, reference("x"), "y")
    assert named.tree().get("gone").hidden


def test_a_death_before_the_manifest_is_made_up_for(named):
    """Broken: the old name would come back with a catalog that is made again."""

    class KilledError(BaseException):
        pass

    def die() -> None:
        raise KilledError

    named.host.on_step = die
    with pytest.raises(KilledError):
        rename(named.context, reference("a"), "new")
    named.host.on_step = lambda: None
    assert "/i/" + manifest.name("a") not in named.host.storage.files
    (line,) = recover_all(named.context, named.vm)
    assert "rename" in line
    assert (
        manifest.load(named.host.storage.files["/i/" + manifest.name("a")].content, named.catalog.seal).manifest.checkpoint.name
        == "new"
    )

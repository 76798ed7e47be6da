"""agent/trust.py: real files, directories and links. As root, whom the agent runs as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quiesce.agent.trust import UntrustedError, require_roots_own, require_trusted

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A file that is trusted, in a directory of its own."""
    (tmp_path / "etc").mkdir(mode=0o755)
    file = tmp_path / "etc" / "script"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def refused(path: Path | str) -> str:
    with pytest.raises(UntrustedError) as raised:
        require_trusted(str(path))
    return str(raised.value)


def test_what_only_root_can_write_is_trusted(script):
    """Broken: no script could be run."""
    require_trusted(str(script))
    require_roots_own(str(script), script.stat())


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o722, 0o020])
def test_a_file_that_others_can_write_is_not(mode, script):
    """Broken: whoever can write it would run commands as root."""
    script.chmod(mode)
    assert refused(script) == f"{script} can be written by others than root: chown root {script}; chmod go-w {script}"
    with pytest.raises(UntrustedError):
        require_roots_own(str(script), script.stat())


def test_a_file_that_is_anothers_is_not(script):
    """Broken: as above."""
    os.chown(script, NOBODY, 0)
    assert str(script) in refused(script)


def test_a_file_in_anothers_directory_is_not(script):
    """Broken: they could put another file in its place."""
    os.chown(script.parent, NOBODY, 0)
    assert refused(script).startswith(f"{script.parent} can be written")


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_file_in_or_far_below_a_directory_that_others_can_write_is_not(mode, script):
    """Broken: as above."""
    deep = script.parent / "a" / "b" / "script"
    deep.parent.mkdir(parents=True)
    deep.write_text("")
    require_trusted(str(deep))
    script.parent.chmod(mode)
    assert refused(deep).startswith(f"{script.parent} can be written")


def test_a_sticky_directory_keeps_what_is_roots(script):
    """Broken: nothing below /tmp could be trusted, where nobody can replace what is another's; or, everything could."""
    script.parent.chmod(0o1777)
    require_trusted(str(script))
    os.chown(script.parent, NOBODY, 0)  # its owner can
    refused(script)


def test_a_link_is_as_good_as_the_file_and_the_place_it_leads_to(script, tmp_path):
    """Broken: a link in /etc to a place that others can write would be followed."""
    link = tmp_path / "link"
    link.symlink_to(script)
    require_trusted(str(link))
    script.chmod(0o777)
    refused(link)
    script.chmod(0o755)
    os.chown(script.parent, NOBODY, 0)
    assert str(script.parent) in refused(link)


def test_a_link_in_a_place_that_others_can_write_is_not_trusted_wherever_it_leads(script, tmp_path):
    """Broken: they could let it lead elsewhere."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "link").symlink_to(script)
    require_trusted(str(place / "link"))
    place.chmod(0o777)
    refused(place / "link")


def test_a_link_over_anothers_link_is_not(script, tmp_path):
    """Broken: the first and the last place would be looked at, and not the one in between, which leads where they want."""
    place = tmp_path / "home"
    place.mkdir()
    (place / "link").symlink_to(script)
    (tmp_path / "first").symlink_to(place / "link")
    require_trusted(str(tmp_path / "first"))
    os.chown(place, NOBODY, 0)
    assert str(place) in refused(tmp_path / "first")


def test_a_directory_that_is_a_link_over_anothers_link_is_not(script, tmp_path):
    """Broken: as above, for /etc/quiesce/writers.d."""
    place = tmp_path / "home"
    place.mkdir()
    (place / "link").symlink_to("../etc")  # relative to where the link is
    (tmp_path / "first").symlink_to("home/link")
    require_trusted(str(tmp_path / "first" / "script"))
    place.chmod(0o777)
    assert str(place) in refused(tmp_path / "first" / "script")


def test_anothers_link_in_a_sticky_directory_is_not(script, tmp_path):
    """Broken: a link in /tmp is its owner's to change."""
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    (place / "link").symlink_to(script)
    require_trusted(str(place / "link"))
    os.chown(place / "link", NOBODY, 0, follow_symlinks=False)
    assert (
        refused(place / "link")
        == f"the link {place / 'link'} can be changed by others than root: chown -h root {place / 'link'}"
    )


def test_dots_lead_where_the_kernel_has_them_lead(script, tmp_path):
    """Broken: another directory would be looked at than the one the file is in."""
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(f"{tmp_path}/other/../etc/./script")
    require_trusted(str(tmp_path / "link"))
    (tmp_path / "other").chmod(0o777)  # nobody can change where `..` of it leads
    require_trusted(str(tmp_path / "link"))
    os.chown(tmp_path / "etc", NOBODY, 0)
    assert str(tmp_path / "etc") in refused(tmp_path / "link")


def test_a_relative_path_is_one_from_here(script, monkeypatch):
    """Broken: only the last name of it would be looked at."""
    monkeypatch.chdir(script.parent)
    require_trusted("script")
    os.chown(script.parent, NOBODY, 0)
    refused("script")


def test_what_is_not_there_is_an_error_of_its_own(tmp_path):
    """Broken: the user would be told to change the permissions of a file that does not exist."""
    with pytest.raises(FileNotFoundError):
        require_trusted(str(tmp_path / "absent"))
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        require_trusted(str(tmp_path / "a"))

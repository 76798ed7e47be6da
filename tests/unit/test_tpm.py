"""hypervisor/tpm.py, and where a host's daemon keeps the state of TPMs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from quiesce.hypervisor import connection, tpm
from quiesce.hypervisor.connection import Host

UUID = "22222222-2222-4222-8222-222222222222"
VERSIONS = {"1.2": ("tpm1.2", "tpm-00.permall"), "2.0": ("tpm2", "tpm2-00.permall")}
PLACES = (tpm.SYSTEM_PLACES, "/home/me/.config/libvirt/qemu/swtpm")


def definition(backend: str, model: str = "tpm-tis", more: str = "") -> str:
    return f"<domain><uuid>{UUID}</uuid>{more}<devices><tpm model='{model}'>{backend}</tpm></devices></domain>"


@pytest.mark.parametrize(("version", "places"), list(itertools.product(VERSIONS, PLACES)))
def test_the_state_is_where_libvirt_and_swtpm_put_it(version, places):
    """Broken: a restored guest would find its disks locked, for the TPM would not give out its key."""
    directory, file = VERSIONS[version]
    plain = f"<backend type='emulator' version='{version}'/>"
    named = f"<backend type='emulator' version='{version}'><source type='{{}}' path='/t/x'/></backend>"
    assert tpm.state_file(definition(plain), places) == f"{places}/{UUID}/{directory}/{file}"
    assert tpm.state_file(definition(named.format("dir")), places) == f"/t/x/{file}"
    assert tpm.state_file(definition(named.format("file")), places) == "/t/x"
    for xml in (plain, named.format("dir"), named.format("file")):
        assert tpm.never_kept(definition(xml), places) == []


@pytest.mark.parametrize(("model", "file"), [("tpm-tis", "tpm-00.permall"), ("tpm-crb", "tpm2-00.permall")])
def test_without_a_version_libvirts_default_counts(model, file):
    """Broken: the TPM of an import would begin anew."""
    found = tpm.state_file(definition("<backend type='emulator'/>", model), tpm.SYSTEM_PLACES)
    assert str(found).endswith(f"/{file}")


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (definition("<backend type='passthrough'><device path='/dev/tpm0'/></backend>"), "passthrough"),
        (definition("<backend type='external'><source type='unix' mode='connect' path='/s'/></backend>"), "external"),
        (definition("<backend type='emulator' version='2.0'/>"), "remote"),
        (f"<domain><uuid>{UUID}</uuid><os><nvram type='block'><source dev='/dev/v'/></nvram></os><devices/></domain>", "block"),
        (f"<domain><uuid>{UUID}</uuid><os><nvram type='network'/></os><devices/></domain>", "network"),
    ],
)
def test_state_that_no_checkpoint_has_is_said(xml, says):
    """Broken: a VM would be restored without what its disks' keys are in, and nobody have said so."""
    assert tpm.state_file(xml, None) is None
    [found] = tpm.never_kept(xml, None)
    assert says in found


@pytest.mark.parametrize(
    ("session", "local", "euid", "xdg", "expected"),
    [
        (False, True, 0, None, tpm.SYSTEM_PLACES),
        (False, False, 1000, None, tpm.SYSTEM_PLACES),
        (True, True, 0, None, tpm.SYSTEM_PLACES),
        (True, True, 1000, None, "/home/me/.config/libvirt/qemu/swtpm"),
        (True, True, 1000, "/x", "/x/libvirt/qemu/swtpm"),
        (True, False, 1000, None, None),
    ],
)
def test_a_users_daemon_keeps_it_below_his_home(session, local, euid, xdg, expected, monkeypatch):
    """Broken: the TPM of a VM of a user would silently be left out of his checkpoints."""
    monkeypatch.setattr(connection.os, "geteuid", lambda: euid)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    if xdg:
        monkeypatch.setenv("XDG_CONFIG_HOME", xdg)
    host: Any = Host.__new__(Host)
    host.session, host.local = session, local
    assert host.tpm_places == expected
    assert Path(expected or "/").is_absolute()

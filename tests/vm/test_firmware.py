"""The whole machine, not only its disks: UEFI variables and TPM state are part of a checkpoint."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab import Image, Machine
from lab.machine import TPM_STATES
from quiesce.hypervisor import domain_xml
from tests.host import Quiesce

VARIABLE = "/sys/firmware/efi/efivars/QuiesceLab-6f1c1a52-0b0c-4d4e-9d0e-1f2a3b4c5d6e"
PASSWORD_SESSION = "00000009" + "40000009" + "0000" + "00" + "0000"
"""An authorisation area of nine bytes: the empty password."""


NOTHING_ELSE = "systemd.mask=postgresql.service systemd.mask=postgresql@17-main.service"
"""Kernel options: what is asked here is the machine, and it boots three times."""


@pytest.fixture
def uefi(image: Image) -> Iterator[Machine]:
    with Machine(
        image, firmware=True, customize=lambda xml: xml.replace("root=/dev/vda", f"root=/dev/vda {NOTHING_ELSE}")
    ) as machine:
        machine.wait_for_guest()
        yield machine


def set_variable(machine: Machine, value: str) -> None:
    machine.run(f"chattr -i {VARIABLE} 2>/dev/null; printf '\\007\\000\\000\\000{value}' >{VARIABLE}")


def variable(machine: Machine) -> str:
    return machine.run(f"cat {VARIABLE} | tail -c +5").stdout


def tpm(machine: Machine, command: str) -> bytes:
    """The TPM's answer to a command, both with their headers. Fails the test if it is an error."""
    program = (
        f"import os; tpm = os.open('/dev/tpmrm0', os.O_RDWR); os.write(tpm, bytes.fromhex('{command}'));"
        " print(os.read(tpm, 4096).hex())"
    )
    answer = bytes.fromhex(machine.run(f'python3 -c "{program}"').stdout)
    assert struct.unpack(">I", answer[6:10])[0] == 0, answer.hex()
    return answer


def nv_command(code: str, handles: str, parameters: str) -> str:
    body = handles + PASSWORD_SESSION + parameters
    return f"8002{10 + len(body) // 2:08x}{code}{body}"


def define_counter(machine: Machine) -> None:
    """NV index 0x01500000, a counter that the owner reads and raises (TPM 2.0 library, part 3: TPM2_NV_DefineSpace)."""
    public = "01500000" + "000b" + "00060016" + "0000" + "0008"
    tpm(machine, nv_command("0000012a", "40000001", "0000" + f"{len(public) // 2:04x}" + public))


def raise_counter(machine: Machine) -> int:
    tpm(machine, nv_command("00000134", "40000001" + "01500000", ""))
    return counter(machine)


def counter(machine: Machine) -> int:
    answer = tpm(machine, nv_command("0000014e", "40000001" + "01500000", "0008" + "0000"))
    return int(struct.unpack(">Q", answer[16:24])[0])


@pytest.mark.timeout(420)
def test_uefi_variables_and_tpm_go_back_with_the_disks(uefi: Machine, quiesce: Quiesce, tmp_path: Path) -> None:
    set_variable(uefi, "one")
    define_counter(uefi)
    first = raise_counter(uefi)
    node = quiesce("checkpoint", uefi.name, "--name", "one", "--require", "crash")
    assert {file["role"] for file in node["files"]} == {"nvram", "tpm"}
    set_variable(uefi, "two")
    raise_counter(uefi)
    second = raise_counter(uefi)
    assert second == first + 2
    uefi.run("sync")
    generation = domain_xml.generation_id(uefi.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    restored = quiesce("restore", f"{uefi.name}@one", "--start")
    uefi.reconnect()
    uefi.wait_for_guest()
    assert variable(uefi) == "one"
    assert counter(uefi) == first
    assert domain_xml.generation_id(uefi.domain.XMLDesc(0)) == restored["generation"] != generation

    quiesce("restore", f"{uefi.name}@{restored['safety']['name']}", "--discard-current", "--start")
    uefi.reconnect()
    uefi.wait_for_guest()
    assert variable(uefi) == "two"
    assert counter(uefi) == second

    exported = uefi.directory / "export"
    quiesce("export", f"{uefi.name}@one", str(exported), timeout=240)
    copy = quiesce("import", str(exported), "--name", f"{uefi.name}-copy", "--to", str(uefi.directory / "copy"), timeout=240)
    domain = uefi.connection.lookupByName(copy["vm"])
    try:
        variables = domain_xml.nvram(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        assert variables
        assert Path(variables).read_bytes() == (exported / "nvram.fd").read_bytes()
        state = TPM_STATES / copy["uuid"] / "tpm2" / "tpm2-00.permall"
        assert state.read_bytes() == (exported / "tpm.state").read_bytes()
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM)
    quiesce("delete", f"{uefi.name}@*")
    left = {path.name for path in uefi.directory.iterdir() if path.suffix in (".nvram", ".tpm")}
    assert len(left) <= 1  # the variables the VM uses now

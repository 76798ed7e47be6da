"""Where a VM's emulated TPM keeps its state, and which state of the machine no checkpoint has. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET

SYSTEM_PLACES = "/var/lib/libvirt/swtpm"
"""Of libvirt's system daemon; a directory for each VM's UUID is in it."""


def state_file(xml: str, places: str | None) -> str | None:
    """The file with the permanent state of an emulated TPM; None if the VM has none, or if nobody knows where it is.

    `places`: the directory of the libvirt daemon in which each VM without a <source> has one of its own, by UUID; None: not
    known. libvirt and swtpm name what is in it by the TPM's version: tpm1.2/tpm-00.permall, tpm2/tpm2-00.permall
    (qemuTPMEmulatorStorageBuildPath in libvirt's src/qemu/qemu_tpm.c; src/swtpm/swtpm_nvstore.h in swtpm).
    """
    root = ET.fromstring(xml)
    backend = root.find("./devices/tpm/backend[@type='emulator']")
    if backend is None:
        return None
    old = _version(root, backend) == "1.2"
    file = "tpm-00.permall" if old else "tpm2-00.permall"
    source = backend.find("source")
    if source is None:
        return f"{places}/{root.findtext('./uuid')}/{'tpm1.2' if old else 'tpm2'}/{file}" if places else None
    path = source.get("path", "")
    return path if source.get("type") == "file" else f"{path}/{file}"


def never_kept(xml: str, places: str | None) -> list[str]:
    """State of the machine that a checkpoint never has: what each is."""
    root = ET.fromstring(xml)
    found = []
    for backend in root.iterfind("./devices/tpm/backend"):
        kind = backend.get("type", "")
        if kind == "emulator":
            if backend.find("source") is None and not places:
                found.append("the state of its TPM, which is where only the remote libvirt daemon knows")
        else:
            found.append(f"the state of its TPM, which libvirt does not keep (backend type {kind})")
    for kept in (*root.iterfind("./os/nvram"), *root.iterfind("./os/varstore")):
        if kept.get("type", "file") != "file":
            found.append(f"its UEFI variables, which are no file ({kept.tag} type {kept.get('type')})")
    return found


def _version(root: ET.Element, backend: ET.Element) -> str:
    """libvirt writes the version into every definition; an export may lack it."""
    model = root.find("./devices/tpm")
    default = "1.2" if model is not None and model.get("model", "tpm-tis") == "tpm-tis" else "2.0"
    return backend.get("version") or default

"""hypervisor/definition.py and definition_of_import.py: what libvirt gets to see of a stranger's definition."""

from __future__ import annotations

import contextlib
import tracemalloc
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.hypervisor import definition, domain_xml, tpm
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.definition_of_import import Files, imported
from quiesce.hypervisor.definition_rules import RULES
from quiesce.hypervisor.domain_xml import Identity
from quiesce.model.errors import UsageError
from tests.definitions import ORDINARY, UUID, definition_of
from tests.strategies import examples

ELSEWHERE = "/root/file"
BOOT = Boot({"/fw/CODE.fd"}, {"/boot/vmlinuz"})
NEW = Identity("web2", "11111111-2222-4333-8444-555555555555")
PATHS = {"file", "path", "dir", "socket", "rendernode", "template", "logFile", "tap", "vhost", "xauth", "keymapfile"}
"""Attributes that libvirt takes as a path of the host."""
TEXTS = {"emulator", "loader", "nvram", "kernel", "initrd", "dtb", "shim", "table", "device", "bootloader", "binary"}
"""Elements whose text libvirt takes as one."""


def made_of(root: ET.Element, *, same: bool = False, accepted: tuple[str, ...] = ()) -> ET.Element:
    files = Files({"vda": "/t/web2.vda.qcow2"}, "/t/web2.nvram.fd", "/t/web2.")
    return ET.fromstring(
        imported(
            root,
            identity=NEW,
            generation=UUID,
            files=files,
            boot=BOOT,
            emulator="/usr/bin/qemu",
            same=same,
            accepted=accepted,
        )
    )


def checked(text: str, *accepted: str) -> ET.Element:
    root = definition.parse_definition(text.encode(errors="surrogatepass"))
    definition.require_allowed(root, {"vda"}, None, accepted)
    definition.require_allowed(root, {"vda"}, BOOT, accepted)
    return root


@pytest.mark.parametrize("kind", ORDINARY)
@pytest.mark.parametrize("same", [False, True])
def test_an_ordinary_vm_passes(kind: str, same: bool) -> None:
    """Broken: nobody could import what quiesce has exported."""
    root = made_of(checked(definition_of(kind)), same=same)
    text = ET.tostring(root, encoding="unicode")
    assert (root.findtext("name"), root.findtext("uuid")) == (NEW.name, NEW.uuid)
    assert "/var/log" not in text
    assert ".agent'" not in text
    assert ("52:54:00:11:22:33" in text) == (same and kind == "desktop")
    assert ("5977" in text) == (same and kind == "desktop")
    assert UUID not in text.replace(root.findtext("genid") or "", "")


def test_a_serial_port_and_its_console_have_one_log() -> None:
    """Broken: libvirt would take them for two devices, and the guest lose its console."""
    root = made_of(checked(definition_of("server")))
    assert [source.get("path") for source in root.iter("source") if source.get("path")] == ["/t/web2.0.log"] * 2


def test_a_tpm_keeps_its_state_where_libvirt_puts_it() -> None:
    """Broken: root would write into a directory that a stranger names."""
    backend = "<backend type='emulator' version='2.0'>"
    text = definition_of("windows").replace(f"{backend[:-1]}/>", f"{backend}<source type='dir' path='/root'/></backend>")
    assert "/root" in text
    made = ET.tostring(made_of(checked(text)), encoding="unicode")
    assert tpm.state_file(made, tpm.SYSTEM_PLACES) == f"/var/lib/libvirt/swtpm/{NEW.uuid}/tpm2/tpm2-00.permall"


def test_an_accepted_element_keeps_what_it_has() -> None:
    """Broken: an administrator could not have the log, port or program that the VM had."""
    root = made_of(checked(definition_of("desktop"), "graphics", "serial"), accepted=("graphics", "serial"))
    assert root.find("./devices/graphics").get("port") == "5977"
    assert root.find("./devices/serial/log").get("file") == "/var/log/web1.log"


def test_firmware_that_the_host_offers_is_kept_and_other_is_chosen_again() -> None:
    """Broken: a VM from a host of another distribution would not start; or one would boot with a firmware it never had."""
    for path, kept in (("/fw/CODE.fd", True), ("/usr/share/other/CODE.fd", False)):
        loader = f"<loader readonly='yes' type='pflash'>{path}</loader><nvram template='{ELSEWHERE}'>{ELSEWHERE}</nvram></os>"
        root = made_of(checked(definition_of("windows").replace("</os>", loader)))
        assert (root.find("./os/loader") is not None) is kept
        assert ET.tostring(root.find("./os/nvram")) == b"<nvram>/t/web2.nvram.fd</nvram>"
    with pytest.raises(UsageError, match="loader"):
        checked(definition_of("server").replace("</os>", f"<loader readonly='yes'>{ELSEWHERE}</loader></os>"))


def test_a_kernel_from_which_a_vm_of_the_host_boots_is_none_of_a_strangers() -> None:
    """Broken: libvirt would give any file to QEMU's user; or nobody could clone a VM without a boot loader."""
    text = definition_of("server").replace("</os>", "<kernel>/boot/vmlinuz</kernel></os>")
    checked(text)
    with pytest.raises(UsageError, match="kernel"):
        checked(text.replace("/boot/vmlinuz", ELSEWHERE))
    checked(text.replace("/boot/vmlinuz", ELSEWHERE), "kernel")


@pytest.mark.parametrize("element", ["<name>x</name>", "<uuid>x</uuid>", "<devices/>", "<os/>"])
def test_what_is_there_twice(element: str) -> None:
    """Broken: libvirt could believe the one that quiesce did not rewrite."""
    with pytest.raises(UsageError, match="second time"):
        checked(definition_of("server").replace("</domain>", f"{element}</domain>"))


def test_disks_are_those_of_the_manifest() -> None:
    """Broken: a disk of the definition would be an image of another VM."""
    text = definition_of("server")
    other = f"<disk type='file'><source file='{ELSEWHERE}'/><target dev='vdb'/></disk></devices>"
    with pytest.raises(UsageError, match="vdb"):
        checked(text.replace("</devices>", other))
    with pytest.raises(UsageError, match="different"):
        checked(text.replace("</devices>", other.replace("vdb", "vda")))
    with pytest.raises(UsageError, match="vda"):
        checked(text.replace("'vda'", "'vdc'"))


BOMBS: dict[str, Callable[[], str]] = {
    "entities": lambda: "<!DOCTYPE d [" + "<!ENTITY a0 'aaaaaaaa'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12)) + "]><domain><name>&a11;</name></domain>",
    "one entity": lambda: f"<!DOCTYPE d [<!ENTITY a '{'a' * 100_000}'>]><domain>{'&a;' * 100_000}</domain>",
    "external": lambda: f"<!DOCTYPE d [<!ENTITY a SYSTEM 'file://{ELSEWHERE}'>]><domain><name>&a;</name></domain>",
    "depth": lambda: "<a>" * 200_000,
    "elements": lambda: "<domain>" + "<a/>" * 200_000 + "</domain>",
    "size": lambda: "<domain>" + " " * (definition.MAX_BYTES + 1) + "</domain>",
    "attributes": lambda: "<domain " + " ".join(f"a{n}='{n}'" for n in range(60_000)) + "/>",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_definition_that_would_grow(bomb: str) -> None:
    """Broken: some kilobytes of a stranger would take the memory of the host, or minutes."""
    text = BOMBS[bomb]()
    tracemalloc.start()
    try:
        with within(10), pytest.raises(UsageError):
            checked(text)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


LINES = [line.split() for line in RULES.replace("\\\n", "").strip().splitlines()]
KNOWN = {line[0].lstrip("*"): [word.partition("=")[::2] for word in line[1:]] for line in LINES if line[0] != "."}
TAGS = sorted({tag for path in KNOWN for tag in path.split("/")} | TEXTS | {"script", "hostdev", "seclabel"})
ATTRIBUTES = sorted({name for words in KNOWN.values() for name, _ in words} | PATHS)
NAMES = st.sampled_from([name for name in ATTRIBUTES if name.isalpha()])
VALUES = st.sampled_from(
    [ELSEWHERE, "file", "bind", "connect", "unix", "yes", "1", "block", "passthrough", "vda", "", "network"]
)
ELEMENTS = st.recursive(
    st.builds(ET.Element, st.sampled_from(TAGS), st.dictionaries(NAMES, VALUES, max_size=3)).map(
        lambda e: with_text(e, ELSEWHERE)
    ),
    lambda inner: st.builds(
        lambda tag, attributes, children: with_children(ET.Element(tag, attributes), children),
        st.sampled_from(TAGS),
        st.dictionaries(NAMES, VALUES, max_size=3),
        st.lists(inner, max_size=3),
    ),
    max_leaves=4,
)


def with_text(element: ET.Element, text: str) -> ET.Element:
    element.text = text
    return element


def with_children(element: ET.Element, children: list[ET.Element]) -> ET.Element:
    element.extend(children)
    return element


@st.composite
def listed(draw: st.DrawFn) -> Callable[[ET.Element], None]:
    """Puts an element where the rules have it, with attributes that they allow; the others say ELSEWHERE."""
    path = draw(st.sampled_from(sorted(KNOWN)))
    new = draw(st.integers(1, path.count("/") + 1))
    values = {
        name: draw(st.sampled_from(pattern.split("|"))) if pattern else draw(VALUES)
        for name, pattern in KNOWN[path]
        if name.isalpha() and draw(st.integers(0, 3))
    }

    def put(root: ET.Element) -> None:
        *above, last = path.split("/")
        for depth, tag in enumerate(above):
            found = root.find(tag)
            root = found if found is not None and depth < new else ET.SubElement(root, tag)
        element = root.find(last)
        if element is None or new > len(above):
            element = ET.SubElement(root, last)
        element.attrib.update(values)
        if not len(element):
            element.text = ELSEWHERE

    return put


def paths_of_the_host(root: ET.Element) -> set[str]:
    metadata = root.find("metadata")
    ours = set(root.iter()) - (set(metadata.iter()) if metadata is not None else set())
    texts = [element for element in ours if element.tag in TEXTS] + root.findall("./devices/rng/backend")
    found = {(element.text or "").strip() for element in texts}
    return found | {element.get(name, "") for element in ours for name in PATHS} - {""}


@examples(300)
@given(st.data())
def test_no_path_of_a_stranger_reaches_libvirt(data: st.DataObject) -> None:
    """Broken: some combination of elements would have libvirt open, write, run or give away a file of the host."""
    root = ET.fromstring(definition_of(data.draw(st.sampled_from(sorted(ORDINARY)))))
    for _ in range(data.draw(st.integers(1, 3))):
        every = [element for element in root.iter() if element.tag != "metadata"]
        at = data.draw(st.sampled_from(range(len(every))))
        if data.draw(st.integers(0, 3)):
            data.draw(listed())(root)
        elif data.draw(st.booleans()):
            every[at].insert(0, data.draw(ELEMENTS))
        else:
            every[at].set(data.draw(NAMES), data.draw(VALUES))
    try:
        found = made_of(checked(ET.tostring(root, encoding="unicode")), same=data.draw(st.booleans()))
    except UsageError:
        return
    note(ET.tostring(found, encoding="unicode"))
    allowed = {"", "/usr/bin/qemu", "/fw/CODE.fd", "/boot/vmlinuz", "/dev/urandom", "/t/web2.vda.qcow2", "/t/web2.nvram.fd"}
    assert {path for path in paths_of_the_host(found) if not path.startswith("/t/web2.")} <= allowed
    assert [disk.path for disk in domain_xml.disks(ET.tostring(found, encoding="unicode")) if disk.path] == [
        "/t/web2.vda.qcow2"
    ]


@examples(300)
@given(st.data())
def test_whatever_text_a_definition_is(data: st.DataObject) -> None:
    """Broken: a user would see a traceback, or wait for ever."""
    text = definition_of(data.draw(st.sampled_from(sorted(ORDINARY))))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        part = st.text(max_size=10) | st.sampled_from(
            ["<", ">", "<!--", "]]>", "&a;", "&#0;", "\ud800", "<?xml?>", "</domain>"]
        )
        text = text[:start] + data.draw(part) + text[end:]
    with within(5), contextlib.suppress(UsageError):
        made_of(checked(text))

"""Checks the definition of an export before libvirt sees it. Pure: a string in, what is refused out.

The definition is a stranger's, and libvirt acts on it as root: it runs the <emulator>, changes the owner of a <kernel>, gives
away a <hostdev>. So only what definition_rules.py lists is allowed. An administrator can accept the rest by name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from xml.parsers import expat

from quiesce.hypervisor.definition_rules import OF_EVERY_DEVICE, RULES
from quiesce.model.errors import UsageError
from quiesce.model.names import check_target

MAX_BYTES = 2**20
"""Size of a definition. libvirt's own have up to some ten thousand bytes."""
MAX_ELEMENTS = 20_000
MAX_DEPTH = 32
MAX_DISKS = 128
NEVER = frozenset({"domain", "name", "uuid", "genid", "os", "devices"})
"""Elements that nobody can accept as they are: quiesce rewrites them, or what is in them."""
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_SHOWN = 60


@dataclass(frozen=True)
class Boot:
    """What the host has to start a VM with."""

    loaders: Collection[str] = ()
    """The firmware that libvirt offers."""
    files: Collection[str] = ()
    """Kernels and initrds that a VM of the host boots from already."""


@dataclass(frozen=True)
class Refused:
    """Something in the definition that is refused unless an administrator accepts it."""

    name: str
    """The element for `--accept`. Example: `serial` for a <source> in a <serial>."""
    text: str


@dataclass(frozen=True)
class _Rule:
    many: bool
    attributes: dict[str, re.Pattern[str] | None]
    text: re.Pattern[str] | None
    anything: bool


def parse_definition(content: bytes) -> ET.Element:
    """The definition. Raises UsageError if it is too large or deep, is no XML, or declares a document type: entities could make
    it as large as they like."""
    if len(content) > MAX_BYTES:
        raise UsageError(f"the export's definition has more than {MAX_BYTES} bytes")
    parser, depth, elements = expat.ParserCreate("UTF-8"), 0, 0

    def start(*_: object) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise UsageError("the export's definition has too many elements")

    def end(_: object) -> None:
        nonlocal depth
        depth -= 1

    def document_type(*_: object) -> None:
        raise UsageError("the export's definition has a document type declaration, which libvirt never writes")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = document_type
    try:
        text = content.decode()
        parser.Parse(text, True)
        root = ET.fromstring(text)
    except (expat.ExpatError, ET.ParseError, ValueError) as error:
        raise UsageError(f"the export's definition is no XML that libvirt writes: {error}") from error
    if root.tag != "domain" or root.find("name") is None or root.find("uuid") is None or root.find("devices") is None:
        raise UsageError("the export's definition is not that of a VM: it needs <name>, <uuid> and <devices> in a <domain>")
    return root


def require_allowed(root: ET.Element, disks: Collection[str], boot: Boot | None, accepted: Collection[str]) -> None:
    """Raises UsageError unless the definition has nothing but what is allowed, or accepted by name, and the disks `disks`.
    `boot`: None if the host was not asked yet."""
    if wrong := NEVER & set(accepted):
        raise UsageError(f"<{min(wrong)}> cannot be accepted", hint="name the elements that the refusal lists")
    _require_disks(root, disks)
    found = [finding for finding in findings(root, disks, boot) if finding.name not in accepted]
    if found:
        names = sorted({finding.name for finding in found} - NEVER)
        texts = list(dict.fromkeys(finding.text for finding in found))
        more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
        raise UsageError(
            f"the definition has what an import refuses: {', '.join(texts[:20])}{more}",
            hint=f"if you know what it is for: {' '.join(f'--accept {name}' for name in names)}" if names else None,
            details={"refused": [finding.name for finding in found[:100]]},
        )


def _require_disks(root: ET.Element, disks: Collection[str]) -> None:
    targets = [check_target(target.get("dev", "")) for target in root.iterfind("./devices/disk/target")]
    every = root.findall("./devices/disk")
    if len(every) > MAX_DISKS or any(len(disk.findall("target")) != 1 for disk in every) or len(set(targets)) < len(targets):
        raise UsageError(f"the definition needs one <target> for each disk, all different, and has at most {MAX_DISKS} disks")
    if missing := set(disks) - set(targets):
        raise UsageError(f"the manifest has disk {min(missing)}, which the definition has not")


def findings(root: ET.Element, disks: Collection[str], boot: Boot | None) -> Iterator[Refused]:
    """Everything that is refused unless it is accepted."""
    yield from _of(root, ())
    for disk in root.iterfind("./devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") not in disks:
            if disk.get("device", "disk") == "disk":
                yield Refused("disk", f"disk {_shown(target.get('dev', ''))}, which the manifest has not")
            elif disk.find("source") is not None:
                yield Refused("disk", f"a medium in a drive, disk {_shown(target.get('dev', ''))}")
    if boot is not None:
        yield from _not_here(root, boot)


def remove_refused(root: ET.Element) -> list[str]:
    """Takes out of a definition everything that `findings` would refuse for what it is, in whatever element it stands. Returns
    the names of what was taken out, as `findings` has them."""
    found: list[str] = []
    _remove_refused(root, (), found)
    return list(dict.fromkeys(found))


def _remove_refused(element: ET.Element, path: tuple[str, ...], removed: list[str]) -> None:
    rule = _rule(path)
    if rule is None or rule.anything:
        return
    for name, value in list(element.attrib.items()):
        pattern = rule.attributes.get(name, _NOTHING)
        if pattern is not None and not pattern.fullmatch(value):
            removed.append(_refused(path, "").name)
            del element.attrib[name]
    for child in list(element):
        below = (*path, child.tag)
        known = _rule(below)
        if known is None or (known.text and not known.text.fullmatch((child.text or "").strip())):
            removed.append(_refused(below, "").name)
            element.remove(child)
        else:
            _remove_refused(child, below, removed)


def _not_here(root: ET.Element, boot: Boot) -> Iterator[Refused]:
    for name in ("kernel", "initrd"):
        for element in root.iterfind(f"./os/{name}"):
            if (element.text or "").strip() not in boot.files:
                yield Refused(name, f"{name} {_shown(element.text or '')}, from which no VM of this host boots")
    for element in root.iterfind("./os/loader"):
        if (element.text or "").strip() not in {"", *boot.loaders} and _os(root).get("firmware") is None:
            yield Refused("loader", f"loader {_shown(element.text or '')}, which libvirt does not offer here")


def _os(root: ET.Element) -> ET.Element:
    found = root.find("os")
    return found if found is not None else ET.Element("os")


def _of(element: ET.Element, path: tuple[str, ...]) -> Iterator[Refused]:
    rule = _rule(path)
    if rule is None:
        yield _refused(path, "")
        return
    for name, value in element.attrib.items():
        pattern = rule.attributes.get(name, _NOTHING)
        if pattern is not None and not pattern.fullmatch(value):
            yield _refused(path, f" {_plain(name)}={_shown(value)}")
    if rule.text and not rule.text.fullmatch((element.text or "").strip()):
        yield _refused(path, f" {_shown(element.text or '')}")
    if rule.anything:
        return
    seen: set[str] = set()
    for child in element:
        below = (*path, child.tag)
        known = _rule(below)
        if child.tag in seen and known and not known.many:
            yield _refused(below, " for the second time")
        seen.add(child.tag)
        yield from _of(child, below)


def _refused(path: tuple[str, ...], what: str) -> Refused:
    tags = [_plain(tag) for tag in path] or ["domain"]
    name = tags[1] if len(tags) > 1 and tags[0] in ("devices", "os") else tags[0]
    within = f" in {name}" if tags[-1] != name else ""
    return Refused(name, f"{tags[-1]}{what}{within}")


def _plain(tag: str) -> str:
    return _shown(tag.replace(_QEMU, "qemu:"))[1:-1]


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _rule(path: tuple[str, ...]) -> _Rule | None:
    return _rules().get(path) or (_device_rules().get(path[2:]) if path[:1] == ("devices",) and len(path) > 2 else None)


_NOTHING = re.compile(r"(?!)")


@cache
def _rules() -> dict[tuple[str, ...], _Rule]:
    return _table(RULES)


@cache
def _device_rules() -> dict[tuple[str, ...], _Rule]:
    return _table(OF_EVERY_DEVICE)


def _table(text: str) -> dict[tuple[str, ...], _Rule]:
    return dict(map(_read, text.replace("\\\n", "").strip().splitlines()))


def _read(line: str) -> tuple[tuple[str, ...], _Rule]:
    path, *words = line.split()
    pairs = [word.partition("=") for word in words if word != "..."]
    attributes = {name: re.compile(pattern) if pattern else None for name, _, pattern in pairs}
    text = attributes.pop("#", None)
    tags = tuple(path.lstrip("*").split("/")) if path != "." else ()
    return tags, _Rule(path.startswith("*"), attributes, text, "..." in words)

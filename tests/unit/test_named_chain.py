"""hypervisor/named_chain.py: the chain of the definition against that of the headers."""

from __future__ import annotations

import pytest

from quiesce.hypervisor.named_chain import NamedChain, named_chains


def level(path: str | None, below: str = "") -> str:
    source = f"<source file='{path}'/>" if path else "<source protocol='nbd' name='x'/>"
    return f"<backingStore type='file'><format type='qcow2'/>{source}{below}</backingStore>"


@pytest.mark.parametrize(
    ("below", "headers", "contradicts"),
    [
        ("", ["/b", "/c"], False),
        (level("/b"), ["/b", "/c"], False),
        (level("/b", level("/c", "<backingStore/>")), ["/b", "/c"], False),
        (level("/b"), [], True),
        (level("/b", "<backingStore/>"), ["/b", "/c"], True),
        ("<backingStore/>", ["/b"], True),
        ("<backingStore/>", [], False),
        (level("/x"), ["/b"], True),
        (level("/b", level("/x")), ["/b", "/c"], True),
        (level("/b", level("/c")), ["/b"], True),
        (level("/b", level(None)), ["/b", "nbd://h/x"], False),
        (level(None, level("/c")), ["nbd://h/x"], False),
    ],
)
def test_a_definition_and_the_headers_agree_or_not(below, headers, contradicts):
    """Broken: a VM whose definition alone names its chain would run on other images after a checkpoint."""
    xml = f"<domain><devices><disk type='file'><source file='/a'/>{below}<target dev='vda'/></disk></devices></domain>"
    found = named_chains(xml)
    assert set(found) == ({"vda"} if below else set())
    assert any(each.spelled(str).contradicts(headers) for each in found.values()) is contradicts


@pytest.mark.parametrize("named", [("/ours/1", "/ours/2", "/b"), ("/ours/2", "/b"), ("/b",)])
@pytest.mark.parametrize("complete", [True, False])
def test_what_a_merge_changed_is_no_contradiction(named, complete):
    """Broken: after a merge that was killed, quiesce would refuse the VM whose definition libvirt did not write again."""
    made = {"/ours/1", "/ours/2"}
    assert not NamedChain(named, complete=complete).contradicts(["/ours/2", "/b"], made)
    assert NamedChain(named, complete=complete).contradicts(["/ours/2", "/c"], made)


def test_the_format_of_each_backing_file_is_known_by_its_path():
    """Broken: a qcow2 image that the definition declares raw would be another disk after a checkpoint."""
    xml = f"<domain><devices><disk>{level('/link/b', level('/c'))}<target dev='vda'/></disk></devices></domain>"
    found = named_chains(xml.replace("qcow2", "raw", 1))["vda"].spelled(lambda path: path.replace("/link", "/real"))
    assert [found.format(path) for path in ("/real/b", "/c", "/d")] == ["raw", "qcow2", None]


def test_paths_are_compared_in_their_one_spelling():
    """Broken: a definition that names a directory by a link would never agree with a header that does not."""
    assert NamedChain(("/link/b", None), complete=False).spelled(lambda path: path.replace("/link", "/real")).paths == (
        "/real/b",
        None,
    )

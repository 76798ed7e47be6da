"""The layout of the code: what import-linter (pyproject.toml) does not see. docs/architecture.md describes the rooms."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import grimp

from quiesce import recovery

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "quiesce"
LONGEST = 400
"""Lines of a file."""

ONE_MEANING = {
    "command": "the entry point of a verb of the command line",
    "main": "the entry point of a program",
    "recover": "mends what an interrupted operation of this verb left",
    "discover": "the writers of one application that are found in this machine",
    "take_back": "lets a server go that an earlier agent held",
    "connect": "opens a session with a database server",
    "dump": "the bytes of a file of ours",
    "load": "what the bytes of a file of ours say",
    "upgrade": "what one migration of the catalog does; Alembic calls it",
}
"""Names that several modules define, each time with this meaning. Any other public name is defined once."""


def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def test_a_name_has_one_meaning():
    """Broken: a reader who follows a name would come to another thing of the same name."""
    found = defaultdict(list)
    for path, module in modules().items():
        for item in module.body:
            if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_"):
                found[item.name].append(str(path.relative_to(SOURCE)))
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in ONE_MEANING} == {}
    assert twice.keys() == ONE_MEANING.keys()


def test_no_file_is_too_long_to_be_read_at_once():
    """Broken: a second concept would move into a file, and nobody guess that it is there."""
    paths = [path for room in ("src", "lab", "bench", "tests") for path in (ROOT / room).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_no_import_circle():
    """Broken: a module could not be understood, or imported, without all others of the circle. An import in a function
    counts."""
    graph = grimp.build_graph("quiesce")
    below = {module: graph.find_downstream_modules(module) for module in graph.modules}
    circles = {(one, other) for one, found in below.items() for other in found if one != other and one in below.get(other, ())}
    assert circles == set()


def test_every_room_says_what_it_is_for():
    """Broken: a newcomer would have to read a room to learn what is in it."""
    for path in SOURCE.rglob("__init__.py"):
        if path != SOURCE / "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_page_on_the_layout_names_every_room():
    """Broken: docs/architecture.md would describe a layout that is no more."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    alone = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert {name for name in rooms | alone if f"`{name}" not in page} == set()


def test_every_verb_that_is_journalled_can_be_recovered():
    """Broken: a verb added tomorrow would be refused by its own journal, or leave what nobody can mend."""
    journalled = set()
    for module in modules().values():
        for call in ast.walk(module):
            beginning = ("journalled", "journalled_with", "Journal")
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in beginning:
                journalled |= {
                    item.value for item in call.args if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
    assert journalled == recovery.VERBS.keys()

"""Random values of our dataclasses, and of what strangers send instead of them."""

from __future__ import annotations

import dataclasses
import functools
import types
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import settings
from hypothesis import strategies as st

EXAMPLES = 80
"""Of a test that says nothing else, without --long."""

PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="[]{}"), max_size=20)
"""Comes through the wire unchanged: no control, format or separator characters. Brackets would count as nesting."""

NASTY = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\x1b[31mred", "a\nb", "\r", "\u202eevil", "\u2066", "\u2028", "\x9b2J", "\x00", "\ud800", "\u00ad", "\u200f", "\u00a0"]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NASTY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def examples(count: int) -> settings:
    """So many examples of one test; with --long as many times more as the others have."""
    return settings(max_examples=count * settings().max_examples // EXAMPLES)


@functools.cache
def of(kind: Any, text: st.SearchStrategy[str] = PRINTABLE) -> st.SearchStrategy[Any]:
    """Values of a type the wire knows."""
    if kind is str:
        return text
    if kind is int:
        return st.integers(-(2**63) + 1, 2**63 - 1)
    if kind is bool:
        return st.booleans()
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.none() | of(next(argument for argument in arguments if argument is not type(None)), text)
    if origin is tuple:
        return st.lists(of(arguments[0], text), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(text, of(arguments[1], text), max_size=3)
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: of(hints[field.name], text) for field in dataclasses.fields(kind)})


def almost(value: Any) -> st.SearchStrategy[Any]:
    """A JSON value like `value`, with one thing in it replaced, added or left out: passes the first checks, not all."""
    if isinstance(value, dict) and value:
        return st.one_of(
            st.sampled_from(sorted(value)).flatmap(
                lambda key: st.one_of(
                    st.just({name: item for name, item in value.items() if name != key}),
                    almost(value[key]).map(lambda item: {**value, key: item}),
                )
            ),
            st.tuples(st.text(max_size=5), JSON).map(lambda pair: {**value, pair[0]: pair[1]}),
            JSON,
        )
    if isinstance(value, list) and value:
        return st.one_of(JSON, almost(value[0]).map(lambda item: [item, *value[1:]]))
    return JSON

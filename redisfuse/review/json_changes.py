"""The differences of two JSON documents, by the places in them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

from redisfuse.journal import portable
from redisfuse.journal.models import State
from redisfuse.text import for_terminal

MAX_JSON_BYTES = 1 << 20  # of a document that is compared by its structure
MAX_JSON_CHANGES = 300  # that are listed
MAX_ARRAY_ELEMENTS = 2000  # on either side, that are aligned; longer arrays are compared by position
MAX_VALUE_CHARACTERS = 200

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class JsonChange:
    """A place in a document, and its values as printable text; None: there is none."""

    place: str  # such as `$.items[0].price`
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it is written: 1.0 is not 1, and no digit is lost."""

    text: str


def compare_documents(prior: State, new: State) -> list[JsonChange] | None:
    """Return the differences of two documents.

    None if the states are not both JSON objects or arrays.
    """
    before, after = _read_document(prior), _read_document(new)
    if before is None or after is None:
        return None
    try:
        return list(islice(_compare(before, after, "$"), MAX_JSON_CHANGES))
    except RecursionError:
        return None


def _read_document(state: State) -> Any:
    """Return the object or array of a state; None if it is not one."""
    content = state.portable_copy if state.type == b"ReJSON-RL" else state.content if state.kind == "value" else None
    if content is None or content.size > MAX_JSON_BYTES:
        return None
    try:
        data: Any = content.read()
        if state.type == b"ReJSON-RL":
            _, records = portable.decode_copy([data])
            (data,) = next(records)
        if data.lstrip()[:1] not in (b"{", b"["):
            return None
        return json.loads(data, parse_int=_Number, parse_float=_Number)
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        return None


def _compare(before: Any, after: Any, place: str) -> Iterator[JsonChange]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _compare(before.get(name, _MISSING), after.get(name, _MISSING), place + _format_name(name))
    elif isinstance(before, list) and isinstance(after, list):
        yield from _compare_arrays(before, after, place)
    else:
        yield JsonChange(for_terminal(place), _format_value(before), _format_value(after))


def _compare_arrays(before: list[Any], after: list[Any], place: str) -> Iterator[JsonChange]:
    """Yield the differences of arrays.

    Elements that only moved up or down are not a difference. A place of a removed element has its former index.
    """
    if max(len(before), len(after)) > MAX_ARRAY_ELEMENTS:
        codes = [("replace", 0, len(before), 0, len(after))]
    else:
        old, new = ([_dump(element) for element in array] for array in (before, after))
        codes = list(SequenceMatcher(None, old, new, autojunk=False).get_opcodes())
    for tag, i1, i2, j1, j2 in codes:
        if tag == "equal":
            continue
        for offset in range(max(i2 - i1, j2 - j1)):
            left = before[i1 + offset] if i1 + offset < i2 else _MISSING
            right = after[j1 + offset] if j1 + offset < j2 else _MISSING
            index = i1 + offset if right is _MISSING else j1 + offset
            yield from _compare(left, right, f"{place}[{index}]")


def _format_name(name: str) -> str:
    return f".{name}" if _NAME.fullmatch(name) else f"[{json.dumps(name, ensure_ascii=False)}]"


def _format_value(value: Any) -> str | None:
    if value is _MISSING:
        return None
    text = _dump(value)
    if len(text) > MAX_VALUE_CHARACTERS:
        text = f"{text[:MAX_VALUE_CHARACTERS]}… ({len(text):,} characters)"
    return for_terminal(text)


def _dump(value: Any) -> str:
    """Return JSON in which numbers are written as they were."""
    if isinstance(value, _Number):
        return value.text
    if isinstance(value, dict):
        members = (f"{json.dumps(name, ensure_ascii=False)}: {_dump(one)}" for name, one in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)

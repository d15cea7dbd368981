"""The portable copy of a key that is not a string: one JSON text a line.

It is readable without redisfuse or Redis. The first line is an object: `{"type": "zset", "elements": 2}` (a stream's
also has its `last_id` and its `groups`). Each further line is one element, an array:

    list      ["element"]
    set       ["member"]
    zset      ["member", "score"]
    hash      ["field", "value"], or ["field", "value", EXPIRY in absolute ms]
    stream    ["id", "field", "value", "field", "value" ...]
    JSON      ["the document"]

Bytes that are UTF-8 are a JSON string, others `{"base64": "..."}`. The lines of sets and hashes are sorted, so that
equal values have equal copies.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

ElementPart = bytes | int
ElementRecord = tuple[ElementPart, ...]


def encode_header(metadata: dict[str, Any]) -> bytes:
    """Return the first line: `type`, `elements`, and other facts about the whole key."""
    return json.dumps(metadata, sort_keys=True).encode() + b"\n"


def encode_record(record: ElementRecord) -> bytes:
    """Return the line of one element."""
    return json.dumps([_encode_part(part) for part in record], separators=(",", ":")).encode() + b"\n"


def decode_copy(chunks: Iterable[bytes]) -> tuple[dict[str, Any], Iterator[ElementRecord]]:
    """Return the facts of the first line and an iterator of the elements.

    Raises ValueError if the bytes are not a portable copy.
    """
    lines = split_lines(chunks)
    metadata = json.loads(next(lines, b"null"))
    if not isinstance(metadata, dict):
        raise ValueError("not a portable copy of a key")
    return metadata, (decode_record(json.loads(line)) for line in lines)


def decode_record(element: Any) -> ElementRecord:
    """Return the element that a line's JSON value is.

    Raises ValueError, KeyError, TypeError.
    """
    if not isinstance(element, list):
        raise TypeError("an element is not an array")
    return tuple(_decode_part(part) for part in element)


def _encode_part(part: ElementPart) -> Any:
    if isinstance(part, int):
        return part
    try:
        return part.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(part).decode()}


def _decode_part(value: Any) -> ElementPart:
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return value.encode()
    return base64.b64decode(value["base64"])


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text that arrives in chunks, without their newlines."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        for part in rest:
            yield b"".join(pending)
            pending = [part]
    if any(pending):
        yield b"".join(pending)

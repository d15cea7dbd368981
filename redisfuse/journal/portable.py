"""The portable copy of a key that is no string: one JSON text a line, readable without this program or any Redis.

The first line is an object: `{"type": "zset", "elements": 2}` (a stream's also has its `last_id` and its `groups`).
Each further line is one element, an array:

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
    """The first line: `type`, `elements`, and what else is known of the whole key."""
    return json.dumps(metadata, sort_keys=True).encode() + b"\n"


def encode_record(record: ElementRecord) -> bytes:
    """One element's line."""
    return json.dumps([_encode_part(part) for part in record], separators=(",", ":")).encode() + b"\n"


def decode_copy(chunks: Iterable[bytes]) -> tuple[dict[str, Any], Iterator[ElementRecord]]:
    """The first line's facts, and the elements one by one. Raises ValueError if these bytes are no such copy."""
    found = split_lines(chunks)
    facts = json.loads(next(found, b"null"))
    if not isinstance(facts, dict):
        raise ValueError("not a portable copy of a key")
    return facts, (tuple(_decode_part(part) for part in json.loads(line)) for line in found)


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
    """The lines of a text that comes in pieces, without their newlines."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pending.append(first)
        for piece in others:
            yield b"".join(pending)
            pending = [piece]
    if any(pending):
        yield b"".join(pending)

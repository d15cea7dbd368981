"""The portable copy of a key that is no string: its elements as JSON, one a line, for review, comparing and restoring.

The first line says what it is: `{"logical": 1, "type": "hash", …}` with the facts that no element carries (a stream's
last id, the names of its groups). Then a line an element:

    list, set     "value"
    zset          ["member", "1.5"]              the score as the server writes it
    hash          ["field", "value"]             or ["field", "value", 1767225600000]: its expiry, absolute ms
    stream        ["1-1", "field", "value", …]
    ReJSON-RL     "the document's text"

Bytes that are not UTF-8 are `{"base64": "…"}`. Both directions are streams: memory holds one element.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from redisfuse.errors import JournalError
from redisfuse.journal.states import Content

FORMAT = 1
PIECE = 65536  # bytes collected before `encode` gives them on
TYPES = (b"list", b"set", b"zset", b"hash", b"stream", b"ReJSON-RL")
UNORDERED = (b"set", b"hash")  # whose elements come in any order

Member = bytes  # of a list or set; the text of a JSON document
ScoredMember = tuple[bytes, bytes]  # member, score
HashField = tuple[bytes, bytes, int | None]  # field, value, expiry in absolute ms
StreamEntry = tuple[bytes, tuple[bytes, ...]]  # id, fields and values in turn
Element = Member | ScoredMember | HashField | StreamEntry


@dataclass(frozen=True, slots=True)
class LogicalObject:
    """A key's type, its elements (to be walked once), and what its elements do not say (JSON values by name)."""

    type: bytes
    elements: Iterable[Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def encode(value: LogicalObject) -> Iterator[bytes]:
    """The object as lines, in pieces. Raises ValueError for a type that has no portable form."""
    line = _ENCODERS.get(value.type)
    if line is None:
        raise ValueError(f"no portable form for type {value.type!r}")
    header = {"logical": FORMAT, "type": value.type.decode(), **value.facts}
    pieces = [_json(header)]
    size = 0
    for element in value.elements:
        text = _json(line(element))
        pieces.append(text)
        size += len(text)
        if size >= PIECE:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


def decode(chunks: Iterable[bytes]) -> LogicalObject:
    """The object in these bytes; its elements are decoded as they are walked, once.

    Raises JournalError for bytes that `encode` did not make (the elements, too, while they are walked).
    """
    found = lines(chunks)
    try:
        header = json.loads(next(found))
        if header.pop("logical") != FORMAT:
            raise ValueError("a later format")
        type = header.pop("type").encode()
        element = _DECODERS[type]
    except (StopIteration, ValueError, KeyError, AttributeError, TypeError) as error:
        raise JournalError(f"a portable copy in the journal can't be read: {error}") from error
    return LogicalObject(type, _decoded(found, element), header)


def _decoded(found: Iterator[bytes], element: Callable[[Any], Any]) -> Iterator[Any]:
    for line in found:
        try:
            yield element(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise JournalError(f"a portable copy in the journal can't be read: {error}") from error


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a text that comes in pieces, without their newlines."""
    held: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        held.append(first)
        if rest:
            yield b"".join(held)
            yield from rest[:-1]
            held = [rest[-1]]
    last = b"".join(held)
    if last:
        yield last


def fingerprint(content: Content) -> bytes:
    """Equal for copies of equal values, in whatever order the server gave the elements of a set or hash.

    Constant memory: where order means nothing, the lines' digests are added up. The facts count too.
    """
    found = lines(content.chunks())
    header = next(found, b"")
    sha = hashlib.sha256(header)
    try:
        unordered = json.loads(header)["type"].encode() in UNORDERED
    except (ValueError, KeyError, TypeError, AttributeError):
        unordered = False
    if not unordered:
        for line in found:
            sha.update(b"%d\n" % len(line))
            sha.update(line)
        return sha.digest()
    total = count = 0
    for line in found:
        total += int.from_bytes(hashlib.sha256(line).digest(), "big")
        count += 1
    sha.update(b"%d %x" % (count, total))
    return sha.digest()


def same(one: Content, other: Content) -> bool:
    """Whether two portable copies are of equal values."""
    return one == other or fingerprint(one) == fingerprint(other)


def plain(data: bytes) -> str | dict[str, str]:
    """Bytes as JSON has them here: text if they are UTF-8, else base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def unplain(value: Any) -> bytes:
    """The inverse of `plain`. Raises ValueError or TypeError for anything else."""
    if isinstance(value, str):
        return value.encode()
    return base64.b64decode(value["base64"], validate=True)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _encode_scored(element: ScoredMember) -> Any:
    return [plain(element[0]), element[1].decode("ascii")]


def _encode_field(element: HashField) -> Any:
    name, value, expires_at = element
    return [plain(name), plain(value)] if expires_at is None else [plain(name), plain(value), expires_at]


def _encode_entry(element: StreamEntry) -> Any:
    return [element[0].decode("ascii"), *(plain(each) for each in element[1])]


def _decode_scored(value: Any) -> ScoredMember:
    member, score = value
    return unplain(member), score.encode()


def _decode_field(value: Any) -> HashField:
    name, content, *expiry = value
    return unplain(name), unplain(content), expiry[0] if expiry else None


def _decode_entry(value: Any) -> StreamEntry:
    return value[0].encode(), tuple(unplain(each) for each in value[1:])


_ENCODERS: dict[bytes, Callable[[Any], Any]] = {
    b"list": plain,
    b"set": plain,
    b"zset": _encode_scored,
    b"hash": _encode_field,
    b"stream": _encode_entry,
    b"ReJSON-RL": plain,
}
_DECODERS: dict[bytes, Callable[[Any], Any]] = {
    b"list": unplain,
    b"set": unplain,
    b"zset": _decode_scored,
    b"hash": _decode_field,
    b"stream": _decode_entry,
    b"ReJSON-RL": unplain,
}

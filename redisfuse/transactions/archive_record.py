"""The lines of an archive of keys: a header, the records of keys, and an end.

Pure. docs/archives.md has the format. A record is a JSON object on one line, or on several if it exceeds 1 MiB: each
but the last has `"more": true`, and the values of the same name are joined.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

from more_itertools import constrained_batches

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import InvalidArgumentError
from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.transactions.portable_types import PORTABLE_TYPES
from redisfuse.transactions.spool import open_spool_file

FORMAT_VERSION = 1
_HEADER_NAME = "redisfuse_archive"


@dataclass(frozen=True, slots=True)
class ArchiveHeader:
    """The first line: where the keys are from."""

    server: str  # such as "redis 7.0.15"
    prefix: bytes = b""  # of all keys
    created_at: str = ""  # ISO 8601, UTC

    def encode(self) -> bytes:
        """Return the line."""
        facts = {
            _HEADER_NAME: FORMAT_VERSION,
            "server": self.server,
            "prefix": bytes_to_json(self.prefix),
            "created_at": self.created_at,
        }
        return json.dumps(facts).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> ArchiveHeader:
        """Parse the line. Raises InvalidArgumentError."""
        try:
            facts = json.loads(line)
            version = facts[_HEADER_NAME]
            header = cls(str(facts["server"]), bytes_from_json(facts["prefix"]), str(facts["created_at"]))
        except (ValueError, KeyError, TypeError):
            raise InvalidArgumentError("it is not an archive of redisfuse: its first line is not a header") from None
        if version != FORMAT_VERSION:
            raise InvalidArgumentError(
                f"the archive has format {version}, this redisfuse reads format {FORMAT_VERSION}; use a newer one"
            )
        return header


@dataclass(frozen=True, slots=True)
class ArchivedKey:
    """A key and its state, which is a `value` or an `object`."""

    key: bytes
    state: State

    @property
    def approximate_bytes(self) -> int:
        """The bytes of its value, or of its DUMP and its elements."""
        return sum(blob.size for blob in (self.state.content, self.state.portable_copy) if blob is not None)


def encode_end(key_count: int) -> bytes:
    """Return the last line, without which an archive is incomplete."""
    return json.dumps({"end": True, "keys": key_count}).encode() + b"\n"


def encode_record(archived: ArchivedKey) -> Iterator[bytes]:
    """Yield the lines of a key, each of about 1 MiB at most, or of one element."""
    key, state = archived.key, archived.state
    facts: dict[str, Any] = {"key": bytes_to_json(key), "type": bytes_to_json(state.type)}
    if state.expires_at is not None:
        facts["expires_at"] = state.expires_at
    if state.note is not None:
        facts["note"] = state.note
    if state.portable_copy is not None:
        header, _ = portable.decode_copy(state.portable_copy.iter_chunks())
        facts |= {name: value for name, value in header.items() if name not in ("type", "elements")}
    names: dict[str, bytes] = {name: json.dumps(value).encode() for name, value in facts.items()}
    size = 0
    for name, piece in _encode_pieces(state):
        if name in names or (size and size + len(piece) > 2 * CHUNK_BYTES):
            yield _join_line({**names, "more": b"true"})
            names, size = {}, 0
        names[name] = piece
        size += len(piece)
    yield _join_line(names)


def _encode_pieces(state: State) -> Iterator[tuple[str, bytes]]:
    content = state.content
    if state.kind == "value":
        assert content is not None
        if content.size <= CHUNK_BYTES:
            yield "value", json.dumps(bytes_to_json(content.read())).encode()
        else:
            yield from (("value", _encode_base64(chunk, named=True)) for chunk in content.iter_chunks())
        return
    if state.portable_copy is not None:
        lines = portable.split_lines(state.portable_copy.iter_chunks())
        next(lines)
        for batch in constrained_batches(lines, CHUNK_BYTES, strict=False):
            yield "elements", b"[" + b",".join(batch) + b"]"
    if content is not None:
        yield from (("dump", _encode_base64(chunk)) for chunk in content.iter_chunks())


def _encode_base64(data: bytes, *, named: bool = False) -> bytes:
    text = b'"' + base64.b64encode(data) + b'"'
    return b'{"base64": ' + text + b"}" if named else text


def _join_line(names: dict[str, bytes]) -> bytes:
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in names.items()) + b"}\n"


def bytes_to_json(data: bytes) -> str | dict[str, str]:
    """Return a string if the bytes are UTF-8, else `{"base64": …}`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def bytes_from_json(value: Any) -> bytes:
    """Return the bytes of `bytes_to_json`. Raises ValueError, KeyError, TypeError."""
    if isinstance(value, str):
        return value.encode()
    return base64.b64decode(value["base64"], validate=True)


def decode_key(line: bytes) -> tuple[bytes | None, bool] | None:
    """Return the key in a line, and whether the next line continues its record.

    Only the first line of a record has its key. Returns None for a torn line, and for the end of the archive.
    """
    try:
        row = json.loads(line)
        if "end" in row:
            return None
        return bytes_from_json(row["key"]) if "key" in row else None, "more" in row
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return None


@dataclass(slots=True)
class _Assembly:
    """A record of which more lines follow."""

    facts: dict[str, Any]
    value: BinaryIO = field(default_factory=open_spool_file)
    elements: BinaryIO = field(default_factory=open_spool_file)
    dump: BinaryIO = field(default_factory=open_spool_file)
    element_count: int = 0

    def add(self, row: dict[str, Any]) -> None:
        if "value" in row:
            self.value.write(bytes_from_json(row["value"]))
        lines = _encode_elements(row.get("elements", ()))
        self.elements.writelines(lines)
        self.element_count += len(lines)
        if "dump" in row:
            self.dump.write(base64.b64decode(row["dump"], validate=True))

    def build(self) -> ArchivedKey:
        dump = Blob.from_file(self.dump)
        self.elements.seek(0)
        chunks = iter(lambda: self.elements.read(CHUNK_BYTES), b"")
        copy = Blob.from_chunks(chain([_encode_copy_header(self.facts, self.element_count)], chunks), open_spool_file())
        return _build_key(self.facts, Blob.from_file(self.value), dump if dump.size else None, copy)


def decode_records(lines: Iterable[tuple[str, bytes]]) -> Iterator[ArchivedKey | int]:
    """Yield the keys, and the number of keys that the end states.

    `lines`: each with its place, for errors. Raises InvalidArgumentError for a line that is not a record.
    """
    assembly: _Assembly | None = None
    for place, line in lines:
        try:
            row = json.loads(line)
            if "end" in row:
                yield int(row["keys"])
                continue
            if assembly is None and "more" not in row:
                yield _decode_single(row)
                continue
            assembly = assembly or _Assembly(row)
            assembly.add(row)
            if "more" not in row:
                yield assembly.build()
                assembly = None
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise InvalidArgumentError(f"{place} is not the record of a key: {error}") from None
    if assembly is not None:
        raise InvalidArgumentError("it ends within the record of a key")


def _decode_single(row: dict[str, Any]) -> ArchivedKey:
    value = Blob.from_bytes(bytes_from_json(row["value"])) if "value" in row else None
    dump = Blob.from_bytes(base64.b64decode(row["dump"], validate=True)) if "dump" in row else None
    lines = _encode_elements(row.get("elements", ()))
    portable_type = PORTABLE_TYPES.get(bytes_from_json(row["type"]))
    if portable_type is not None and portable_type.needs_sorting:
        lines = sorted(set(lines))  # an edited archive may have them in another order
    copy = Blob.from_bytes(b"".join([_encode_copy_header(row, len(lines)), *lines]))
    return _build_key(row, value, dump, copy)


def _encode_elements(elements: Iterable[Any]) -> list[bytes]:
    return [portable.encode_record(portable.decode_record(element)) for element in elements]


def _encode_copy_header(facts: dict[str, Any], element_count: int) -> bytes:
    """Return the first line of the portable copy, as `read_portable_copy` writes it."""
    header: dict[str, Any] = {"type": facts["type"], "elements": element_count}
    if facts["type"] == "stream":
        header |= {"last_id": str(facts["last_id"]), "groups": dict(facts["groups"])}
    return portable.encode_header(header)


def _build_key(facts: dict[str, Any], value: Blob | None, dump: Blob | None, copy: Blob) -> ArchivedKey:
    key, key_type = bytes_from_json(facts["key"]), bytes_from_json(facts["type"])
    expires_at = facts.get("expires_at")
    if expires_at is not None and (not isinstance(expires_at, int) or expires_at < 0):
        raise ValueError(f"expires_at is {expires_at!r}")
    if key_type == b"string":
        if value is None:
            raise ValueError("a string has no value")
        return ArchivedKey(key, State.from_value(value, expires_at=expires_at))
    is_portable = key_type in PORTABLE_TYPES
    if not is_portable and dump is None:
        raise ValueError(f"a key of type {facts['type']} has no dump")
    state = State.from_object(
        key_type, dump, copy if is_portable else None, expires_at=expires_at, note=facts.get("note")
    )
    return ArchivedKey(key, state)

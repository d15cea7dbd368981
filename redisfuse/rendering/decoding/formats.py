"""The formats of values, and how each is recognized. Pure.

Formats with a signature, and those that no other value can be by accident, come first; then text; then the binary
formats without a signature, which must fit a value from its first byte to its last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from redisfuse.rendering.decoding import plain, signatures
from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.cbor import begins_cbor, write_cbor
from redisfuse.rendering.decoding.java import JavaStreamParser
from redisfuse.rendering.decoding.json_values import is_json, write_json
from redisfuse.rendering.decoding.limits import (
    DecodeBudget,
    DecodingError,
    DecodingLimitError,
    MalformedValueError,
    TruncatedValueError,
)
from redisfuse.rendering.decoding.message_pack import begins_message_pack, write_message_pack
from redisfuse.rendering.decoding.notation import EmbeddedValue, NotationWriter, describe_stop
from redisfuse.rendering.decoding.php import write_php, write_php_session
from redisfuse.rendering.decoding.pickles import disassemble, is_pickle
from redisfuse.rendering.decoding.protobuf import write_protobuf

TEXT = "text"
BINARY = "binary"
EMPTY = "empty"
_MIN_WEAK_BYTES = 2  # of a value in a format without a signature

FORMAT_NAMES = ("JSON", "msgpack", "CBOR", "pickle", "PHP", "Java", "protobuf")


_ValueWriter = Callable[[ByteReader, NotationWriter], None]


class FormattedValue(NamedTuple):
    """A value below its layers, as text."""

    name: str  # of the format
    lines: list[str]
    is_certain: bool = True  # no other value has this form by accident
    embedded: tuple[EmbeddedValue, ...] = ()


@dataclass(frozen=True, slots=True)
class _WeakFormat:
    name: str
    begins: Callable[[bytes], bool]
    write: _ValueWriter


_WEAK_FORMATS = (
    _WeakFormat("msgpack", begins_message_pack, write_message_pack),
    _WeakFormat("CBOR", begins_cbor, write_cbor),
    _WeakFormat("protobuf?", lambda _: True, write_protobuf),
)


def render_format(data: bytes, budget: DecodeBudget, *, is_cut: bool) -> FormattedValue:
    """Return a value as text.

    `is_cut`: it is only the beginning of a value, because a limit or damage cut the rest off.
    """
    if not data:
        return FormattedValue(EMPTY, [])
    return (
        _render_recognized(data, budget, is_cut=is_cut)
        or _render_named(data)
        or (_render_text(data, budget) if plain.is_printable(data) else None)
        or _render_weak(data, budget, is_cut=is_cut)
        or (_render_text(data, budget) if plain.is_text(data) else None)
        or render_binary(data)
    )


def _render_recognized(data: bytes, budget: DecodeBudget, *, is_cut: bool) -> FormattedValue | None:
    if is_json(data, is_cut=is_cut):
        return _render_json(data, budget)
    if data.startswith(signatures.JAVA):
        return _write(data, budget, "Java", lambda reader, writer: JavaStreamParser(reader, writer).write_stream())
    if is_pickle(data, budget):
        return _render_pickle(data, budget)
    for name, signature, write in (
        ("PHP", signatures.PHP_VALUE, write_php),
        ("PHP session", signatures.PHP_SESSION, write_php_session),
    ):
        if signature.match(data) is not None:
            rendering = _write(data, budget, name, write, must_match=not is_cut)
            if rendering is not None:
                is_scalar = signature is signatures.PHP_VALUE and data[:1] not in b"aOC"
                return rendering._replace(is_certain=not is_scalar)
    return None


def _render_json(data: bytes, budget: DecodeBudget) -> FormattedValue:
    writer = NotationWriter(budget)
    problem = ""
    try:
        write_json(data, writer)
    except DecodingError as error:
        problem = describe_stop(error, "JSON", None)
    return _finish("JSON", writer, problem)


def _render_pickle(data: bytes, budget: DecodeBudget) -> FormattedValue:
    lines: list[str] = []
    try:
        lines.extend(disassemble(data, budget))
    except DecodingError as error:
        lines.append(describe_stop(error, "pickle", None))
    return FormattedValue("pickle", lines)


def _render_named(data: bytes) -> FormattedValue | None:
    for signature, name in signatures.NAMED:
        if signature.match(data) is not None:
            return render_binary(data)._replace(name=name)
    return None


def _render_weak(data: bytes, budget: DecodeBudget, *, is_cut: bool) -> FormattedValue | None:
    if len(data) < _MIN_WEAK_BYTES:
        return None
    candidates = [candidate for candidate in _WEAK_FORMATS if candidate.begins(data)]
    for allows_early_end in (False, True):
        for candidate in candidates:
            rendering = _write(
                *(data, budget, candidate.name, candidate.write),
                must_match=True,
                allows_early_end=allows_early_end,
                is_cut=is_cut,
            )
            if rendering is not None:
                return rendering
            budget.check_time()  # if it is used up, nothing was recognized
    return None


def _write(
    data: bytes,
    budget: DecodeBudget,
    name: str,
    write: _ValueWriter,
    *,
    must_match: bool = False,
    allows_early_end: bool = False,
    is_cut: bool = False,
) -> FormattedValue | None:
    """Return the text of a value in one format, up to where it is damaged.

    `must_match`: return None for a value that is damaged, and restore the budget. With `allows_early_end`, a value that
    ends early is not such a value if it `is_cut`, or is a map whose first key is a text.
    """
    reader, writer = ByteReader(data), NotationWriter(budget)
    text_bytes = budget.text_bytes
    problem = ""
    try:
        write(reader, writer)
        if reader.remaining:
            raise MalformedValueError(f"{reader.remaining} bytes follow the value")
    except DecodingError as error:
        is_early_end = (
            allows_early_end and isinstance(error, TruncatedValueError) and (is_cut or bool(writer.first_key))
        )
        is_limit = isinstance(error, DecodingLimitError) and writer.has_items
        if must_match and not is_early_end and not is_limit:
            budget.text_bytes = text_bytes
            return None
        problem = describe_stop(error, name.rstrip("?"), reader.position)
    is_certain = not must_match or bool(writer.first_key)
    return _finish(name, writer, problem)._replace(is_certain=is_certain)


def _finish(name: str, writer: NotationWriter, problem: str) -> FormattedValue:
    writer.close_all()
    lines = [writer.get_text()]
    if problem:
        lines.append(problem)
    return FormattedValue(name, lines, embedded=tuple(writer.embedded))


def _render_text(data: bytes, budget: DecodeBudget) -> FormattedValue:
    text, problem = plain.escape_text_within(data, budget)
    return FormattedValue(TEXT, [text, problem] if problem else [text], is_certain=False)


def render_binary(data: bytes) -> FormattedValue:
    """Return a value in hexadecimal."""
    lines = list(plain.dump_hex(data))
    if len(data) > plain.MAX_HEX_BYTES:
        lines.append(f"# {plain.MAX_HEX_BYTES} of {len(data)} bytes are shown")
    return FormattedValue(BINARY, lines, is_certain=False)

"""Streams of Java's ObjectOutputStream, by the grammar of its specification.

Pure: no class is loaded.

An object is `pkg.Class {field: value, …}`. Data that a class wrote with a method of its own follows its fields as
`"#data": […]`. What a class of the kind Externalizable wrote in the old protocol has no length, so nothing can follow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from redisfuse.rendering.decoding.byte_reader import ByteReader
from redisfuse.rendering.decoding.limits import MalformedValueError
from redisfuse.rendering.decoding.notation import NotationWriter
from redisfuse.rendering.decoding.signatures import JAVA

_NULL, _REFERENCE, _CLASS_DESC, _OBJECT, _STRING, _ARRAY = 0x70, 0x71, 0x72, 0x73, 0x74, 0x75
_CLASS, _BLOCK_DATA, _END_BLOCK_DATA, _RESET, _LONG_BLOCK_DATA = 0x76, 0x77, 0x78, 0x79, 0x7A
_EXCEPTION, _LONG_STRING, _PROXY_CLASS_DESC, _ENUM = 0x7B, 0x7C, 0x7D, 0x7E
_BASE_HANDLE = 0x7E0000

_WRITE_METHOD, _SERIALIZABLE, _EXTERNALIZABLE, _HAS_BLOCK_DATA = 0x01, 0x02, 0x04, 0x08

_NUMBERS = {"B": ">b", "D": ">d", "F": ">f", "I": ">i", "J": ">q", "S": ">h"}
_MAX_CLASS_DEPTH = 100  # superclasses


@dataclass(slots=True, eq=False)
class _ClassDescription:
    name: str
    flags: int = 0
    fields: tuple[tuple[str, str], ...] = ()  # (type code, name)
    parent: _ClassDescription | None = None


class JavaStreamParser:
    """Writes the contents of one stream. Raises a DecodingError."""

    def __init__(self, reader: ByteReader, writer: NotationWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._handles: list[str | _ClassDescription] = []  # the descriptions of classes, and names of other objects

    def write_stream(self) -> None:
        """Write all contents."""
        self._reader.take(len(JAVA))
        self._write_content()
        while self._reader.remaining:
            self._write_content()

    # -- contents ----------------------------------------------------------------------------------------------------

    def _write_content(self) -> None:
        code = self._reader.take_byte()
        if code in (_BLOCK_DATA, _LONG_BLOCK_DATA):
            size = self._reader.unpack(">B" if code == _BLOCK_DATA else ">i")
            self._writer.write_hex(self._reader.take(_check_size(size)))
        elif code == _RESET:
            self._handles.clear()
        else:
            self._write_object(code)

    def _write_object(self, code: int) -> None:
        writers = {
            _OBJECT: self._write_instance,
            _ARRAY: self._write_array,
            _ENUM: self._write_enum,
            _CLASS: self._write_class,
            _EXCEPTION: self._write_exception,
        }
        if code == _NULL:
            self._writer.write_scalar("null")
        elif code in (_STRING, _LONG_STRING):
            text = self._take_text(">H" if code == _STRING else ">q")
            self._handles.append(json.dumps(text[:40], ensure_ascii=False))
            self._writer.write_string(text, text.encode("utf-8", "replace"))
        elif code == _REFERENCE:
            target = self._take_handle()
            self._writer.write_scalar(f"reference({target if isinstance(target, str) else target.name})")
        elif code in (_CLASS_DESC, _PROXY_CLASS_DESC):
            description = self._take_class_description(code, 0)
            self._writer.write_scalar(f"class({description.name if description else 'null'})")
        elif code in writers:
            writers[code]()
        else:
            raise MalformedValueError(f"0x{code:02x} begins no known content")

    def _write_instance(self) -> None:
        description = self._take_class()
        self._handles.append(description.name)
        self._writer.begin_label(description.name + " ")
        self._writer.begin_map()
        for part in _list_hierarchy(description):
            self._write_class_data(part)
        self._writer.end_container()

    def _write_class_data(self, part: _ClassDescription) -> None:
        if part.flags & _SERIALIZABLE:
            for code, name in part.fields:
                self._writer.write_string(name)
                self._write_value(code)
            if part.flags & _WRITE_METHOD:
                self._write_annotation()
        elif part.flags & _EXTERNALIZABLE:
            if not part.flags & _HAS_BLOCK_DATA:
                raise MalformedValueError(f"the data of {part.name} has no length")
            self._write_annotation()

    def _write_annotation(self) -> None:
        """Write what a class wrote with a method of its own, if that is anything."""
        if self._reader.peek_byte() == _END_BLOCK_DATA:
            self._reader.take_byte()
            return
        self._writer.write_string("#data")
        self._writer.begin_array()
        while self._reader.peek_byte() != _END_BLOCK_DATA:
            self._write_content()
        self._reader.take_byte()
        self._writer.end_container()

    def _write_value(self, code: str) -> None:
        if code in _NUMBERS:
            self._writer.write_scalar(repr(self._reader.unpack(_NUMBERS[code])))
        elif code == "Z":
            self._writer.write_scalar("true" if self._reader.take_byte() else "false")
        elif code == "C":
            self._writer.write_string(chr(self._reader.unpack(">H")).encode("utf-8", "replace").decode())
        elif code in ("L", "["):
            self._write_object(self._reader.take_byte())
        else:
            raise MalformedValueError(f"{code!r} is not the type of a field")

    def _write_array(self) -> None:
        description = self._take_class()
        self._handles.append(description.name)
        count = _check_size(self._reader.unpack(">i"))
        code = description.name[1:2]
        if description.name == "[B":
            self._writer.write_hex(self._reader.take(count))
            return
        self._writer.begin_array()
        for _ in range(count):
            self._write_value(code)
        self._writer.end_container()

    def _write_enum(self) -> None:
        description = self._take_class()
        number = len(self._handles)
        self._handles.append(description.name)
        code = self._reader.take_byte()
        if code == _REFERENCE:
            target = self._take_handle()
            constant = target.strip('"') if isinstance(target, str) else target.name
        elif code == _STRING:
            constant = self._take_text(">H")
            self._handles.append(json.dumps(constant[:40], ensure_ascii=False))
        else:
            raise MalformedValueError("the name of an enum's constant is expected")
        self._handles[number] = f"{description.name}.{constant}"
        self._writer.write_scalar(f"{description.name}.{constant}")

    def _write_class(self) -> None:
        description = self._take_class()
        self._handles.append(description.name)
        self._writer.write_scalar(f"class({description.name})")

    def _write_exception(self) -> None:
        self._handles.clear()
        self._writer.begin_label("exception(", ")")
        self._write_object(self._reader.take_byte())

    # -- descriptions of classes -------------------------------------------------------------------------------------

    def _take_class(self) -> _ClassDescription:
        description = self._take_class_description(self._reader.take_byte(), 0)
        if description is None:
            raise MalformedValueError("an object has no class")
        return description

    def _take_class_description(self, code: int, depth: int) -> _ClassDescription | None:
        if depth > _MAX_CLASS_DEPTH:
            raise MalformedValueError("a class has too many superclasses")
        if code == _NULL:
            return None
        if code == _REFERENCE:
            target = self._take_handle()
            if isinstance(target, str):
                raise MalformedValueError("a reference to a class leads to another object")
            return target
        if code == _PROXY_CLASS_DESC:
            description = _ClassDescription("proxy", _SERIALIZABLE)
            self._handles.append(description)
            names = [self._take_text(">H") for _ in range(_check_size(self._reader.unpack(">i")))]
            description.name = f"proxy({', '.join(names)})"
        elif code == _CLASS_DESC:
            description = _ClassDescription(self._take_text(">H"))
            self._reader.take(8)  # serialVersionUID
            self._handles.append(description)
            description.flags = self._reader.take_byte()
            description.fields = tuple(self._take_field() for _ in range(self._reader.unpack(">H")))
        else:
            raise MalformedValueError("the description of a class is expected")
        self._skip_class_annotation()
        description.parent = self._take_class_description(self._reader.take_byte(), depth + 1)
        return description

    def _take_field(self) -> tuple[str, str]:
        code, name = chr(self._reader.take_byte()), self._take_text(">H")
        if code in ("L", "["):  # the name of its class follows, as a string or a reference to one
            kind = self._reader.take_byte()
            if kind == _STRING:
                self._handles.append(json.dumps(self._take_text(">H")[:40], ensure_ascii=False))
            elif kind == _REFERENCE:
                self._take_handle()
            else:
                raise MalformedValueError("the type of a field is expected")
        return code, name

    def _skip_class_annotation(self) -> None:
        while (code := self._reader.take_byte()) != _END_BLOCK_DATA:
            if code not in (_BLOCK_DATA, _LONG_BLOCK_DATA):
                raise MalformedValueError("the annotation of a class has objects")
            self._reader.take(_check_size(self._reader.unpack(">B" if code == _BLOCK_DATA else ">i")))

    def _take_handle(self) -> str | _ClassDescription:
        number = self._reader.unpack(">i") - _BASE_HANDLE
        if not 0 <= number < len(self._handles):
            raise MalformedValueError("a reference leads nowhere")
        target: str | _ClassDescription = self._handles[number]
        return target

    def _take_text(self, length_layout: str) -> str:
        """Return a text in Java's modified UTF-8."""
        data = self._reader.take(_check_size(self._reader.unpack(length_layout)))
        data = data.replace(b"\xc0\x80", b"\0")
        try:  # a character beyond U+FFFF is two surrogates
            return data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")


def _list_hierarchy(description: _ClassDescription) -> list[_ClassDescription]:
    """Return a class and its superclasses, the topmost first."""
    hierarchy: list[_ClassDescription] = []
    part: _ClassDescription | None = description
    while part is not None:
        if part in hierarchy or len(hierarchy) > _MAX_CLASS_DEPTH:
            raise MalformedValueError("a class is its own superclass")
        hierarchy.append(part)
        part = part.parent
    return hierarchy[::-1]


def _check_size(size: int) -> int:
    if size < 0:
        raise MalformedValueError("a length is negative")
    return size

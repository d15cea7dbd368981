"""Values as indented text: JSON, extended as CBOR's diagnostic notation is.

Pure.

Byte strings are `h'00ff'`, tags `1(1363896240)`, objects `Cart {…}`. Keys of maps may be any value.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

from redisfuse.rendering.decoding.limits import DecodeBudget, DecodingError, DecodingLimitError
from redisfuse.rendering.decoding.signatures import may_be_encoded
from redisfuse.rendering.json_encoding import encode_json_string

MAX_EMBEDDED = 100  # encoded values in one value that are decoded, too
_MAX_PATH_KEY = 60  # characters of a key in the path of an embedded value
_FLOAT_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_CHECK_INTERVAL = 256  # items between two checks of the time


@dataclass(frozen=True, slots=True)
class EmbeddedValue:
    """A string or byte string in a value that may itself be encoded."""

    path: str  # such as `.args[0].body`
    data: bytes


@dataclass(slots=True)
class _Container:
    closing: str
    is_map: bool
    count: int = 0  # of items so far: keys and values of a map
    key: str = ""  # the text of the last key


class NotationWriter:
    """Writes a value as it is parsed.

    Every method raises DecodingLimitError where the text, the depth or the time reaches its limit.
    """

    def __init__(self, budget: DecodeBudget) -> None:
        self.budget = budget
        self.embedded: list[EmbeddedValue] = []
        self.first_key: str | None = None  # of the outermost map, if it is a text
        self.has_items = False  # or labels
        self._has_written = False  # an item
        self._text = StringIO()
        self._containers: list[_Container] = []
        self._items_to_check = _CHECK_INTERVAL
        self._label = ""  # precedes the next item: a tag, the name of a class
        self._closings = ""  # follow the next item

    def write_scalar(self, text: str) -> None:
        """Write a number, a constant or another item that is a single word."""
        self._begin_item()
        self._write(text)
        self._end_item(text)

    def write_float(self, number: float) -> None:
        """Write a floating-point number."""
        self.write_scalar(_FLOAT_NAMES.get(repr(number)) or repr(number))

    def write_string(self, text: str, data: bytes | None = None) -> None:
        """Write a text; `data` are its bytes, if they may be an encoded value."""
        if len(text) > self.budget.limits.output_bytes:
            raise self.budget.text_error()
        encoded = encode_json_string(text)
        if data is not None:
            self._add_embedded(data)
        if len(self._containers) == 1 and self._containers[0].is_map and not self._containers[0].count:
            self.first_key = text
        self.write_scalar(encoded)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes: as a text if they are UTF-8, else in hexadecimal."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.write_hex(data)
        else:
            self.write_string(text, data)

    def write_hex(self, data: bytes) -> None:
        """Write a byte string."""
        if 2 * len(data) > self.budget.limits.output_bytes:
            raise self.budget.text_error()
        self._add_embedded(data)
        self.write_scalar(f"h'{data.hex()}'")

    def begin_array(self) -> None:
        """Begin an array, whose items follow."""
        self._begin_container("[", "]", is_map=False)

    def begin_map(self) -> None:
        """Begin a map, whose keys and values follow in turn."""
        self._begin_container("{", "}", is_map=True)

    def end_container(self) -> None:
        """End the innermost array or map."""
        container = self._containers.pop()
        if container.count:
            self._write("\n" + "  " * len(self._containers))
        self._write(container.closing)
        self._end_item("")

    def begin_label(self, text: str, closing: str = "") -> None:
        """Write a label before the next item, and `closing` after it.

        Labels nest as containers do.
        """
        self.budget.check_depth(len(self._containers) + len(self._closings) + 1)
        self.has_items = True
        self._label += text
        self._closings = closing + self._closings

    def close_all(self) -> None:
        """Close what is open, after an error; the text is then complete again."""
        while self._containers:
            container = self._containers.pop()
            indent = "  " * len(self._containers)
            self._text.write(f"\n{indent}{container.closing}" if container.count else container.closing)
        self._label = self._closings = ""

    def get_text(self) -> str:
        """Return the text, without a newline at its end."""
        return self._text.getvalue()

    @property
    def depth(self) -> int:
        """The number of arrays and maps that are open."""
        return len(self._containers)

    # -- items -------------------------------------------------------------------------------------------------------

    def _begin_container(self, opening: str, closing: str, *, is_map: bool) -> None:
        self.budget.check_depth(len(self._containers) + 1)
        self._begin_item()
        closings, self._closings = self._closings, ""
        self._write(opening)
        self._containers.append(_Container(closing + closings, is_map))

    def _begin_item(self) -> None:
        self._items_to_check -= 1
        if not self._items_to_check:
            self._items_to_check = _CHECK_INTERVAL
            self.budget.check_time()
        if self._containers:
            container = self._containers[-1]
            if container.is_map and container.count % 2:
                self._write(": ")
            else:
                self._write((",\n" if container.count else "\n") + "  " * len(self._containers))
        elif self._has_written:
            self._write("\n")
        self.has_items = self._has_written = True
        if self._label:
            label, self._label = self._label, ""
            self._write(label)

    def _end_item(self, text: str) -> None:
        if self._closings:
            closings, self._closings = self._closings, ""
            self._write(closings)
        if self._containers:
            container = self._containers[-1]
            if container.is_map and not container.count % 2:
                container.key = text[:_MAX_PATH_KEY]
            container.count += 1

    def _write(self, text: str) -> None:
        self.budget.add_text(len(text))  # characters: a limit of bytes, as far as it matters
        self._text.write(text)

    # -- embedded values ---------------------------------------------------------------------------------------------

    def _add_embedded(self, data: bytes) -> None:
        is_key = bool(self._containers) and self._containers[-1].is_map and not self._containers[-1].count % 2
        if self._containers and not is_key and len(self.embedded) < MAX_EMBEDDED and may_be_encoded(data):
            self.embedded.append(EmbeddedValue(self._path(), data))

    def _path(self) -> str:
        """Return the path of the next item, as jq(1) writes it."""
        parts = []
        for container in self._containers:
            if not container.is_map:
                parts.append(f"[{container.count}]")
            else:
                name = container.key.strip('"')
                parts.append(f".{name}" if name.isidentifier() else f"[{container.key}]")
        return "".join(parts)


def describe_stop(error: DecodingError, name: str, position: int | None) -> str:
    """Return the line that says where decoding stopped."""
    place = "" if position is None else f" at byte {position}"
    kind = "limit reached" if isinstance(error, DecodingLimitError) else "stopped"
    return f"# {name}: {kind}{place}: {error}"

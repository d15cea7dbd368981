"""Keys and fields as paths, lines or JSON, for `find` and `top`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redisfuse.cli._output import bytes_to_json, format_bytes
from redisfuse.text import are_plain_lines, escape_text, for_terminal

if TYPE_CHECKING:
    from redisfuse.cli._result_writer import ResultWriter
    from redisfuse.cli._where import Where
    from redisfuse.survey.records import KeyRecord, Property

_DURATIONS = ((86_400, "d"), (3_600, "h"), (60, "m"))


class RecordPrinter:
    """Prints records in the format of the options of `find`."""

    def __init__(self, writer: ResultWriter, where: Where, *, as_json: bool, long: bool, keys: bool, nul: bool) -> None:
        self._writer = writer
        self._where = where
        self._as_json = as_json
        self._long = long
        self._keys = keys
        self._end = b"\0" if nul else b"\n"
        self.omitted_keys = 0  # those that contain NUL, with `keys` and `nul`

    @property
    def needs_paths(self) -> bool:
        """Whether the paths of records are printed."""
        return not self._keys

    @property
    def properties(self) -> set[Property]:
        """The properties that the format needs."""
        return {"type", "length", "ttl"} if self._as_json or self._long else set()

    @property
    def prints_only_keys(self) -> bool:
        """Whether lines in a pipe are keys only: then `print_keys` does the same."""
        return self._keys and not (self._as_json or self._long or self._writer.on_terminal)

    def print_keys(self, keys: Sequence[bytes]) -> None:
        """Print keys, in a pipe."""
        if self._end == b"\0":
            keys = [key for key in keys if self._has_no_nul(key)]
        elif not are_plain_lines(keys):
            keys = [escape_text(key).encode("utf-8", "surrogateescape") for key in keys]
        if keys:
            self._writer.write(self._end.join(keys) + self._end)

    def print(self, record: KeyRecord, path: bytes | None) -> None:
        """Print a record; `path` is from the mount's root, None with `keys`."""
        shown = None if path is None else self._where.display_path(path, record.target)
        if self._as_json:
            self._print_json(record, shown)
        elif self._long:
            self._print_long(record, shown)
        elif self._end == b"\0":
            name = _format_target(record) if shown is None else shown
            if self._has_no_nul(name):
                self._writer.write(name + self._end)
        else:
            self._print_line(self._format_name(record, shown))

    def _has_no_nul(self, name: bytes) -> bool:
        """Return whether a name contains no NUL, as no path does; else count it."""
        if b"\0" not in name:
            return True
        self.omitted_keys += 1
        return False

    def _format_name(self, record: KeyRecord, path: bytes | None) -> str | bytes:
        """Return the path, or the key as one line."""
        if path is None:
            return escape_text(_format_target(record))
        return path

    def _print_line(self, line: str | bytes) -> None:
        if self._writer.on_terminal:
            self._writer.print(for_terminal(line))
        else:
            self._writer.write((line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape")) + b"\n")

    def _print_long(self, record: KeyRecord, path: bytes | None) -> None:
        name = self._format_name(record, path)
        type_name = escape_text(record.type or b"")
        if self._writer.on_terminal:
            cells = [f"{type_name:<7}", f"{format_length(record):>12}", f"{format_ttl(record.ttl_ms):>8}"]
            if record.memory is not None:
                cells.append(f"{format_bytes(record.memory):>10}")
            if record.idle_seconds is not None:
                cells.append(f"{format_seconds(record.idle_seconds):>8}")
            self._writer.print("  ".join([*cells, for_terminal(name)]))
            return
        numbers = [record.length, record.ttl_ms, record.memory, record.idle_seconds]
        cells = [type_name, *(str(number) for number in numbers if number is not None)]
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        self._writer.write("\t".join(cells).encode() + b"\t" + raw + b"\n")

    def _print_json(self, record: KeyRecord, path: bytes | None) -> None:
        row = json.dumps(record_to_json(record, path), ensure_ascii=self._writer.on_terminal)
        if self._writer.on_terminal:
            self._writer.print(row)
        else:
            self._writer.write(row.encode() + b"\n")


def _format_target(record: KeyRecord) -> bytes:
    """Return the key; of a field, the hash, a dot and the field."""
    return record.key if record.field is None else record.key + b"." + record.field


def record_to_json(record: KeyRecord, path: bytes | None) -> dict[str, Any]:
    """Return a record for JSON, with the properties that were fetched."""
    row: dict[str, Any] = {} if path is None else {"path": bytes_to_json(path)}
    row |= {"key": bytes_to_json(record.key)}
    if record.field is not None:
        row["field"] = bytes_to_json(record.field)
    properties = {
        "type": bytes_to_json(record.type),
        "length": None if record.length == -1 else record.length,
        "ttl_ms": record.ttl_ms,
        "memory": record.memory,
        "idle_s": record.idle_seconds,
        "encoding": bytes_to_json(record.encoding),
    }
    return row | {name: value for name, value in properties.items() if value is not None}


def format_length(record: KeyRecord) -> str:
    """Return a length for people: bytes of a string, elements of a collection."""
    if record.size is not None:
        return format_bytes(record.size)
    return "" if record.length in (None, -1) else f"{record.length:,} el."


def format_ttl(milliseconds: int | None) -> str:
    """Return a time to live for people: `5.0m`; `-` for none."""
    if milliseconds is None:
        return ""
    return "-" if milliseconds < 0 else format_seconds(milliseconds / 1000)


def format_seconds(seconds: float) -> str:
    """Return a duration for people: `12s`, `1.5h`, `12.0d`."""
    for unit, name in _DURATIONS:
        if seconds >= unit:
            return f"{seconds / unit:.1f}{name}"
    return f"{seconds:.0f}s"

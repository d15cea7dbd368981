"""The fields of a query or a form, byte by byte as they were typed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qsl, quote, urlencode

from redisfuse.errors import UsageError

MAX_FIELDS = 2000
MAX_INTEGER = (1 << 63) - 1
MAX_DIGITS = len(str(MAX_INTEGER))


class FormFields:
    """Decoded fields.

    Bytes that are not UTF-8 are surrogates, as in arguments of commands.
    """

    def __init__(self, encoded: bytes) -> None:
        """Decode `application/x-www-form-urlencoded`. Raises UsageError."""
        try:
            pairs = parse_qsl(
                encoded.decode("latin-1"),
                keep_blank_values=True,
                encoding="utf-8",
                errors="surrogateescape",
                max_num_fields=MAX_FIELDS,
            )
        except ValueError as error:
            raise UsageError(f"a request has more than {MAX_FIELDS} fields") from error
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def get(self, name: str) -> str:
        """Return the first value of a field, stripped; empty if there is none."""
        return self._values.get(name, [""])[0].strip()

    def get_all(self, name: str) -> list[str]:
        """Return all values of a field."""
        return self._values.get(name, [])

    def get_bytes(self, name: str) -> bytes | None:
        """Return the bytes of a field; None if it is empty."""
        value = self._values.get(name, [""])[0]
        return os.fsencode(value) if value else None

    def get_integer(self, name: str) -> int | None:
        """Return a number; None if the field is empty. Raises UsageError."""
        return parse_integer(name, self.get(name))


def parse_integer(name: str, text: str) -> int | None:
    """Return a number that SQLite can store.

    None for an empty text. Raises UsageError.
    """
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS or int(text) > MAX_INTEGER:
        raise UsageError(f"{name} is a number, not {text!r}")
    return int(text)


def encode_query(fields: Mapping[str, str | Sequence[str]]) -> str:
    """Return fields as a query, without those that are empty."""
    pairs: Iterable[tuple[str, str]] = (
        (name, value)
        for name, values in fields.items()
        for value in ([values] if isinstance(values, str) else values)
        if value
    )
    return urlencode(list(pairs), encoding="utf-8", errors="surrogateescape", quote_via=quote)

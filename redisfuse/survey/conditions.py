"""Conditions on keys, with find(1)'s words where it has them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from redisfuse.config import parse_size
from redisfuse.errors import UsageError
from redisfuse.survey.records import NO_EXPIRY, KeyRecord, Property
from redisfuse.text import compile_glob

Quantity = Literal["size", "elements", "memory"]

TYPE_NAMES = {
    "string": b"string",
    "list": b"list",
    "set": b"set",
    "zset": b"zset",
    "hash": b"hash",
    "stream": b"stream",
    "json": b"ReJSON-RL",
}
"""The types of `--type`, as TYPE replies them. Another word of 9 bytes is a module's type."""

_MODULE_TYPE_BYTES = 9  # of each name, as the server requires of modules

_QUANTITY_PROPERTIES: dict[Quantity, Property] = {"size": "length", "elements": "length", "memory": "memory"}

_DURATION_UNITS_MS = {"ms": 1, "": 1000, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION_PATTERN = re.compile(r"(\d+)(ms|[smhdw]?)", re.ASCII)


class Condition(Protocol):
    """A condition on one property of a key."""

    @property
    def needs(self) -> Property:
        """The property that must be fetched before `matches`."""

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the record satisfies the condition."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of numbers, both ends included; None: no end."""

    minimum: int | None = None
    maximum: int | None = None

    def contains(self, number: int) -> bool:
        """Return whether the number is in the range."""
        return (self.minimum is None or number >= self.minimum) and (self.maximum is None or number <= self.maximum)


@dataclass(frozen=True, slots=True)
class TypeCondition:
    """`--type`: the key has one of these types, as TYPE replies them."""

    types: frozenset[bytes]
    needs: Property = "type"

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the type is one of them."""
        return record.type in self.types


@dataclass(frozen=True, slots=True)
class EncodingCondition:
    """`--encoding`: the server encodes the value like this."""

    encodings: frozenset[bytes]
    needs: Property = "encoding"

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the encoding is one of them."""
        return record.encoding in self.encodings


@dataclass(frozen=True, slots=True)
class QuantityCondition:
    """`--size`, `--elements` or `--memory` in a range."""

    quantity: Quantity
    interval: Interval

    @property
    def needs(self) -> Property:
        """The property that has this quantity."""
        return _QUANTITY_PROPERTIES[self.quantity]

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the record has this quantity, in the range."""
        number: int | None = getattr(record, self.quantity)
        return number is not None and self.interval.contains(number)


@dataclass(frozen=True, slots=True)
class ExpiryCondition:
    """`--ttl`: a time to live in a range (ms), `none`, or `any`."""

    interval: Interval | None  # None: no expiry
    needs: Property = "ttl"

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the key expires then, or never."""
        if record.ttl_ms is None:
            return False
        if self.interval is None:
            return record.ttl_ms == NO_EXPIRY
        return record.ttl_ms != NO_EXPIRY and self.interval.contains(record.ttl_ms)


@dataclass(frozen=True, slots=True)
class IdleCondition:
    """`--idle`: not accessed for a time in a range (ms)."""

    interval: Interval
    needs: Property = "idle"

    def matches(self, record: KeyRecord) -> bool:
        """Return whether the idle time is in the range."""
        return record.idle_seconds is not None and self.interval.contains(record.idle_seconds * 1000)


def admitted_types(conditions: Collection[Condition]) -> frozenset[bytes] | None:
    """Return the types that a key must have to satisfy all conditions; None: any."""
    sets = [one.types for one in conditions if isinstance(one, TypeCondition)]
    if any(isinstance(one, QuantityCondition) and one.quantity == "size" for one in conditions):
        sets.append(frozenset([b"string"]))  # only strings have a size
    return frozenset.intersection(*sets) if sets else None


def parse_types(words: Collection[str]) -> TypeCondition:
    """Return the condition of `--type`, whose words may be comma lists.

    Raises UsageError for a word that no type can have as its name.
    """
    names = [name for word in words for name in word.split(",") if name]
    for name in names:
        if name not in TYPE_NAMES and len(name.encode()) != _MODULE_TYPE_BYTES:
            raise UsageError(f"no type {name!r}: the types are {', '.join(TYPE_NAMES)}, and those of modules")
    return TypeCondition(frozenset(TYPE_NAMES.get(name, name.encode()) for name in names))


def parse_quantity(quantity: Quantity, text: str) -> QuantityCondition:
    """Parse `+1M` (more), `-1M` (less) or `1M` (exactly). Raises UsageError."""
    sign, number = _split_sign(text)
    if quantity == "elements" and not (number.isascii() and number.isdigit()):
        raise UsageError(f"--elements {text}: not a number; write +1000 (more), -1000 (fewer) or 1000")
    try:
        value = parse_size(number)
    except UsageError:
        raise UsageError(f"--{quantity} {text}: not a size; write +1M (more), -64K (less) or 0") from None
    return QuantityCondition(quantity, _build_interval(sign, value, 1))


def parse_expiry(text: str) -> ExpiryCondition:
    """Parse `-1h` (sooner), `+7d` (later), `1h`, `none` or `any`. Raises UsageError."""
    if text == "none":
        return ExpiryCondition(None)
    if text == "any":
        return ExpiryCondition(Interval(0))
    return ExpiryCondition(_parse_duration("ttl", text))


def parse_idle(text: str) -> IdleCondition:
    """Parse `+7d` (longer), `-1h` (shorter) or `1h`. Raises UsageError."""
    return IdleCondition(_parse_duration("idle", text))


def _parse_duration(option: str, text: str) -> Interval:
    sign, number = _split_sign(text)
    match = _DURATION_PATTERN.fullmatch(number)
    if match is None:
        words = "; write -1h (sooner), +7d (later), none or any" if option == "ttl" else "; write +7d (longer) or -1h"
        raise UsageError(f"--{option} {text}: not a time{words}; the units are ms, s, m, h, d and w")
    unit = _DURATION_UNITS_MS[match[2]]
    return _build_interval(sign, int(match[1]) * unit, unit)


def _split_sign(text: str) -> tuple[str, str]:
    return (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)


def _build_interval(sign: str, value: int, unit: int) -> Interval:
    """Return the range of a number.

    Without a sign: values that round down to it, in its unit.
    """
    if sign == "+":
        return Interval(value + 1, None)
    if sign == "-":
        return Interval(None, value - 1)
    return Interval(value, value + unit - 1)


@dataclass(frozen=True, slots=True)
class NameFilter:
    """Redis globs for whole keys and for their last components."""

    separator: bytes
    key_globs: tuple[bytes, ...] = ()
    name_globs: tuple[bytes, ...] = ()

    @property
    def scan_prefix(self) -> bytes:
        """The bytes that every key that passes begins with."""
        return compile_glob(self.key_globs[0])[0] if len(self.key_globs) == 1 else b""

    def select(self, keys: list[bytes]) -> list[bytes]:
        """Return the keys that match one glob of each kind that is given."""
        if self.key_globs:
            matches_key = _compile_any(self.key_globs)
            keys = [key for key in keys if matches_key.fullmatch(key)]
        if self.name_globs:
            matches_name = _compile_any(self.name_globs)
            keys = [key for key in keys if matches_name.fullmatch(key.rpartition(self.separator)[2])]
        return keys


@lru_cache(maxsize=16)
def _compile_any(globs: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """Return the expression for keys that match one of these globs."""
    expressions = [
        re.escape(literal) if expression is None else expression.pattern
        for literal, expression in map(compile_glob, globs)
    ]
    return re.compile(b"|".join(b"(?:" + expression + b")" for expression in expressions), re.DOTALL)

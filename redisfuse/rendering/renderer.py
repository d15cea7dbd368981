"""What the module of one Redis type says about it: how to walk it, and how one of its elements reads.

An element is a tuple of its raw parts: `(element,)` of a list, `(member,)`, `(score, member)`, `(field, value)`,
`(id, field, value, field, value…)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from redisfuse.client.client import Server

Element = tuple[bytes, ...]

LENGTHS = {
    b"string": b"STRLEN",
    b"list": b"LLEN",
    b"set": b"SCARD",
    b"zset": b"ZCARD",
    b"hash": b"HLEN",
    b"stream": b"XLEN",
}


def length_command(type: bytes) -> bytes | None:
    """The command that tells a key's length (bytes of a string, elements of a collection); None for a module's type."""
    return LENGTHS.get(type)


@dataclass(frozen=True, slots=True)
class Kind:
    """A collection type."""

    type: bytes
    walk: Callable[[Server, bytes], Iterator[list[Element]]]  # the elements of a key, in pieces
    item: Callable[[Element], Iterator[bytes]]  # an element as JSON, in pieces
    columns: bytes  # the format of a line, with a %b for each part; before the pairs, if it is `named`
    brackets: tuple[bytes, bytes] = (b"[", b"]")  # around the elements in JSON
    keyed: bool = False  # its JSON is an object, whose names can't be anything but UTF-8
    named: bool = False  # the parts from 1 on are pairs, written name=value; a "=" is escaped in names

    def line(self, parts: int) -> bytes:
        """The format of a line with so many parts."""
        return _line_of_pairs(self.columns, parts // 2) if self.named else self.columns


@lru_cache
def _line_of_pairs(columns: bytes, pairs: int) -> bytes:
    return columns + b"\t".join([b"%b=%b"] * pairs) + b"\n"

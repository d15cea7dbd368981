"""What the module of one Redis type says about it: how to walk it, and how one of its elements reads.

An element is a tuple of its raw parts: `(element,)` of a list, `(member,)`, `(score, member)`, `(field, value)`,
`(id, field, value, field, value…)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from redisfuse.client.client import RedisClient

Element = tuple[bytes, ...]

LENGTH_COMMANDS = {
    b"string": b"STRLEN",
    b"list": b"LLEN",
    b"set": b"SCARD",
    b"zset": b"ZCARD",
    b"hash": b"HLEN",
    b"stream": b"XLEN",
}


def length_command(type: bytes) -> bytes | None:
    """The command that tells a key's length (bytes of a string, elements of a collection); None for a module's type."""
    return LENGTH_COMMANDS.get(type)


@dataclass(frozen=True, slots=True)
class TypeRenderer:
    """A collection type."""

    type: bytes
    iter_batches: Callable[[RedisClient, bytes], Iterator[list[Element]]]  # the elements of a key, in pieces
    element_to_json: Callable[[Element], Iterator[bytes]]  # an element as JSON, in pieces
    line_format: bytes  # the format of a line, with a %b for each part; before the pairs, if it is `has_pairs`
    json_brackets: tuple[bytes, bytes] = (b"[", b"]")  # around the elements in JSON
    is_json_object: bool = False  # its JSON is an object, whose names can't be anything but UTF-8
    has_pairs: bool = False  # the parts from 1 on are pairs, written name=value; a "=" is escaped in names

    def get_line_format(self, part_count: int) -> bytes:
        """The format of a line with so many parts."""
        return _build_pair_format(self.line_format, part_count // 2) if self.has_pairs else self.line_format


@lru_cache
def _build_pair_format(line_format: bytes, pair_count: int) -> bytes:
    return line_format + b"\t".join([b"%b=%b"] * pair_count) + b"\n"

"""The interface of a collection type: iterate over elements, render one.

An element is a tuple of its raw parts: `(element,)` of a list, `(member,)` of a set, `(score, member)` of a sorted
set, `(field, value)` of a hash, `(id, field, value, field, value…)` of a stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import ClassVar

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
    """Return the command for a key's length.

    Bytes of a string, elements of a collection. None for a module's type.
    """
    return LENGTH_COMMANDS.get(type)


class TypeRenderer(ABC):
    """One collection type. Stateless."""

    type: ClassVar[bytes]  # as TYPE replies
    line_format: ClassVar[bytes]  # of a line, with a %b for each part; with `has_pairs`, what precedes the pairs
    json_brackets: ClassVar[tuple[bytes, bytes]] = (b"[", b"]")  # around the elements in JSON
    is_json_object: ClassVar[bool] = False  # its JSON is an object, whose names must be UTF-8
    is_unordered: ClassVar[bool] = False  # `iter_batches` yields the elements in no particular order
    has_pairs: ClassVar[bool] = False  # the parts from 1 on are pairs, written name=value; a "=" in a name is escaped

    @abstractmethod
    def iter_batches(self, client: RedisClient, key: bytes) -> Iterator[list[Element]]:
        """Yield the elements of a key in batches. Raises NotFoundError, WrongTypeError."""

    @abstractmethod
    def element_to_json(self, element: Element) -> Iterator[bytes]:
        """Yield an element as JSON, in chunks."""

    def get_line_format(self, part_count: int) -> bytes:
        """Return the format of the line of an element with `part_count` parts."""
        return _build_pair_format(self.line_format, part_count // 2) if self.has_pairs else self.line_format


@lru_cache
def _build_pair_format(line_format: bytes, pair_count: int) -> bytes:
    return line_format + b"\t".join([b"%b=%b"] * pair_count) + b"\n"

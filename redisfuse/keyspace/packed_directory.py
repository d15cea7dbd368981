"""Small directories of the trie, packed into one bytes string.

A packed directory is a sequence of tails (all that follows the component and its separator, further separators
included), each after one byte with its length; a leading 0xFF says that the component is a key, too. It is never empty.
"""

from collections.abc import Iterable

from redisfuse.keyspace.index_backend import Child

MAX_PACKED_BYTES = 192  # a larger packed directory becomes a dict
MAX_CACHED_TRANSITIONS = 20_000  # about 5 MB

LENGTH_BYTES = tuple(bytes((length,)) for length in range(255))
KEY_FLAG = b"\xff"


def unpack_tails(packed: bytes) -> list[bytes]:
    """Return the tails of a packed directory."""
    tails = []
    position = 1 if packed[:1] == KEY_FLAG else 0
    end = len(packed)
    while position < end:
        start = position + 1
        position = start + packed[position]
        tails.append(packed[start:position])
    return tails


def pack_tails(tails: Iterable[bytes], *, is_key: bool) -> bytes:
    """Pack tails, each shorter than 255 bytes."""
    row = b"".join(LENGTH_BYTES[len(tail)] + tail for tail in tails)
    return KEY_FLAG + row if is_key else row


def list_tails_below(packed: bytes, components: list[bytes], separator: bytes) -> list[bytes]:
    """Return what follows these components in the tails that begin with them."""
    if not components:
        return unpack_tails(packed)
    start = len(separator.join([*components, b""]))
    splits = ((tail, tail.split(separator)) for tail in unpack_tails(packed))
    return [tail[start:] for tail, split in splits if split[:-1][: len(components)] == components]


def get_packed_child(packed: bytes, components: list[bytes], separator: bytes) -> Child | None:
    """Return what the last of the components is, below a packed directory.

    None if it is neither a key nor a directory.
    """
    depth = len(components)
    is_key = is_directory = False
    start = separator.join(components)
    for tail in unpack_tails(packed):
        # Compare components: with a separator of several bytes, other components may join to the same bytes.
        if tail.startswith(start) and (split := tail.split(separator))[:depth] == components:
            if len(split) == depth:
                is_key = True
            else:
                is_directory = True
    return Child(components[-1], is_key, is_directory) if is_key or is_directory else None


def collect_children(tails: Iterable[bytes], separator: bytes) -> list[Child]:
    """Return the children that tails form."""
    flags: dict[bytes, int] = {}  # 1: a key, 2: a directory
    for tail in tails:
        head, found, _ = tail.partition(separator)
        flags[head] = flags.get(head, 0) | (2 if found else 1)
    return [Child(name, bool(flag & 1), bool(flag & 2)) for name, flag in flags.items()]


class TransitionCache:
    """The results of appending tails to packed directories.

    In `user:1:name`, `user:2:name` the same transitions recur: looking one up is faster than building the result, and
    equal results share their memory. `table` is public for the trie's innermost loop.
    """

    def __init__(self) -> None:
        self.table: dict[bytes, dict[bytes, bytes]] = {}  # packed directory → appended tail → packed directory
        self._count = 0

    def append_tail(self, packed: bytes, tail: bytes) -> bytes | None:
        """Return the directory with the tail; None if it is too large to be packed.

        Returns the directory itself if it has the tail.
        """
        if len(packed) + len(tail) >= MAX_PACKED_BYTES:
            return packed if tail in unpack_tails(packed) else None
        entry = LENGTH_BYTES[len(tail)] + tail
        # The first test is fast and can only err towards "present"; the second is exact.
        longer = packed if entry in packed and tail in unpack_tails(packed) else packed + entry
        self._count += 1
        if self._count > MAX_CACHED_TRANSITIONS:
            self.table.clear()
            self._count = 0
        self.table.setdefault(packed, {})[tail] = longer
        return longer

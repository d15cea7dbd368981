"""How the bytes of a file are come by: whole and cached when small, in pieces when not, rendered for collections.

Sizes (DESIGN.md 2): a string's or field's is its length. A collection's is the length of its rendering as long as it
has at most `render_limit` elements and is not longer than RENDER_BYTES; beyond that it is 0, and the file streams.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from redisfuse.client.client import Server
from redisfuse.errors import AccessError, ConflictError, NotFoundError, TooLargeError
from redisfuse.keyspace.metadata import UNREADABLE, AttributeStore
from redisfuse.keyspace.monitor import Keyspace
from redisfuse.paths.grammar import Target
from redisfuse.rendering.dump import dump
from redisfuse.rendering.json_document import document
from redisfuse.rendering.registry import render, rendered
from redisfuse.transactions.precondition import Basis
from redisfuse.vfs.content_types import LargeField, LargeString, SmallSnapshot, Snapshot, StreamedRendering
from redisfuse.vfs.growing_content import FollowingSnapshot
from redisfuse.vfs.nodes import FileNode

RENDER_BYTES = 4 * 1024 * 1024  # a longer rendering streams, however few its elements are
ATTEMPTS = 8  # at a large value that keeps changing; then its edit may be refused for no reason
CACHED_BYTES = 32 * 1024 * 1024  # renderings kept so that a size and the content agree

STREAMED = None  # in the cache of renderings: it is too long to be kept


class Reader:
    """Measures and opens files. Thread-safe; asks the server outside its lock."""

    def __init__(
        self,
        server: Server,
        attributes: AttributeStore,
        keyspace: Keyspace,
        trust: Callable[[], float],
        *,
        render_limit: int,
        dump_limit: int,
    ) -> None:
        self._server = server
        self._attributes = attributes
        self._keyspace = keyspace
        self._trust = trust  # for how many seconds a rendering may be believed
        self._render_limit = render_limit
        self._dump_limit = dump_limit
        self._lock = threading.Lock()
        self._renderings: OrderedDict[tuple[bytes, str | None], tuple[int, float, bytes | None]] = OrderedDict()
        self._cached = 0  # bytes

    # -- strings and fields ------------------------------------------------------------------------------------------

    def snapshot(self, target: Target) -> tuple[Snapshot, Basis]:
        """What a string or field holds, and what an edit of it will be checked against.

        Raises NotFoundError, WrongTypeError.
        """
        content = self._attributes.content(target)
        if content is not None:
            return SmallSnapshot(content), Basis.of(content)
        for _ in range(ATTEMPTS):
            before = self._keyspace.change_count(target.key)
            snapshot = self._large(target)
            self._keyspace.catch_up()
            if self._keyspace.change_count(target.key) == before:  # else it was an older change, or one in between
                break
        return snapshot, Basis.big(snapshot.size, _Unchanged(self._keyspace, target.key, before))

    def _large(self, target: Target) -> Snapshot:
        length = self._length(target)
        if target.field is None:
            return LargeString(self._server, target.key, length)
        return LargeField(self._server, target.key, target.field, length)

    def _length(self, target: Target) -> int:
        if target.field is None:
            return self._attributes.look(target.key).length
        [length] = self._attributes.field_lengths(target.key, [target.field])
        if length is None:
            raise NotFoundError("the field is gone")
        return length

    def field_ttl(self, target: Target, key_ttl: int) -> int:
        """The TTL of a hash field in milliseconds: its own where the server has such, else its key's; -1: none."""
        if not self._server.facts.has_hash_field_ttl:
            return key_ttl
        assert target.field is not None
        [ttl] = self._server.ask(b"HPTTL", target.key, b"FIELDS", 1, target.field) or [-1]
        return int(ttl) if int(ttl) >= 0 else key_ttl

    # -- everything --------------------------------------------------------------------------------------------------

    def open(self, node: FileNode, told: int | None = None) -> tuple[Snapshot, bool]:
        """A file's bytes to read, and whether they stream (then they are read to their end, whatever the size says).

        `told`: a length that the program was told a moment ago; the rendering that had it is taken if it is kept.
        Raises NotFoundError, WrongTypeError, TooLargeError (`%dump`).
        """
        if node.type == UNREADABLE.type:
            raise AccessError("the server's ACL does not let this user read the key")
        if node.editable:
            return self.following(node.target), False
        text = self._measured(node, told)
        if text is STREAMED:
            text = self._rendering(node)
        if text is not STREAMED:
            return SmallSnapshot(text), False
        return StreamedRendering(lambda: self._render(node)), True

    def following(self, target: Target) -> Snapshot:
        """What a string or field holds, for a reader that may hold on to its file. Raises as `snapshot` does."""
        version = self._keyspace.change_count(target.key)
        return FollowingSnapshot(self._whole(target), version, target, self)

    def present(self, target: Target) -> Snapshot | None:
        """As `following` of a string, if its content is known without asking; else None."""
        version = self._keyspace.change_count(target.key)
        content = self._attributes.present(target.key)
        return None if content is None else FollowingSnapshot(SmallSnapshot(content), version, target, self)

    def version(self, target: Target) -> int:
        """A number that grows whenever the target may have changed."""
        return self._keyspace.change_count(target.key)

    def renew(self, target: Target) -> Snapshot:
        """What it holds now."""
        return self._whole(target)

    def _whole(self, target: Target) -> Snapshot:
        content = self._attributes.content(target)
        return self._large(target) if content is None else SmallSnapshot(content)

    def measure(self, node: FileNode) -> tuple[int, bool]:
        """A file's size in bytes, and whether it streams (its size is 0 then)."""
        if node.editable:
            return node.length, False
        try:
            text = self._rendering(node)
        except (NotFoundError, TooLargeError, ConflictError):
            return 0, True  # `stat` must not fail because `cat` will
        return (0, True) if text is STREAMED else (len(text), False)

    def _rendering(self, node: FileNode) -> bytes | None:
        key, view = node.target.key, node.view
        if node.length > self._render_limit and view != "dump":
            return STREAMED
        if view == "json" and self._expires(key):
            return STREAMED  # the document tells the time to live, which is never the same twice
        count = self._keyspace.change_count(key)
        now = time.monotonic()
        with self._lock:
            found = self._renderings.get((key, view))
            if found is not None and found[0] == count and now - found[1] < self._trust():
                self._renderings.move_to_end((key, view))
                return found[2]
        text = self._render_whole(node)
        with self._lock:
            self._remember((key, view), (count, now, text))
        return text

    def _measured(self, node: FileNode, told: int | None) -> bytes | None:
        with self._lock:
            found = self._renderings.get((node.target.key, node.view))
        return found[2] if found is not None and found[2] is not None and len(found[2]) == told else None

    def _expires(self, key: bytes) -> bool:
        known = self._attributes.known(key)
        return known is None or known.expires is not None

    def _remember(self, name: tuple[bytes, str | None], found: tuple[int, float, bytes | None]) -> None:
        old = self._renderings.pop(name, None)
        self._cached += _cost(found) - (0 if old is None else _cost(old))
        self._renderings[name] = found
        while self._cached > CACHED_BYTES and len(self._renderings) > 1:
            _, dropped = self._renderings.popitem(last=False)
            self._cached -= _cost(dropped)

    def _render_whole(self, node: FileNode) -> bytes | None:
        if node.view is None:
            return rendered(self._server, node.target.key, node.type, RENDER_BYTES)
        if node.view == "dump":
            return dump(self._server, node.target.key, self._dump_limit)
        pieces: list[bytes] = []
        size = 0
        for piece in document(self._server, node.target.key):
            size += len(piece)
            if size > RENDER_BYTES:
                return STREAMED
            pieces.append(piece)
        return b"".join(pieces)

    def _render(self, node: FileNode) -> Iterator[bytes]:
        if node.view is None:
            return render(self._server, node.target.key, node.type)
        return document(self._server, node.target.key)

    def forget(self) -> None:
        """Drop every rendering."""
        with self._lock:
            self._renderings.clear()
            self._cached = 0


def _cost(found: tuple[int, float, bytes | None]) -> int:
    return 200 + len(found[2] or b"")


class _Unchanged:
    """Whether a key was not heard of since a big value of it was opened."""

    def __init__(self, keyspace: Keyspace, key: bytes, count: int) -> None:
        self._keyspace = keyspace
        self._key = key
        self._count = count

    def __call__(self) -> bool:
        return self._keyspace.change_count(self._key) == self._count

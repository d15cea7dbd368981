"""Which names a directory shows: from the index of keys, and the types that the server tells.

A listing is a generator: it asks for types in batches of `BATCH` keys and gives names as it goes, so that a directory
of a million keys shows its first name at once and nothing grows. What can't be named before more is known (a hash is
listed as its fields only in a directory of few hashes) is held back, at most `hash_limit` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from redisfuse.batching import batched
from redisfuse.errors import NotFoundError
from redisfuse.keyspace.index import Child, Index
from redisfuse.keyspace.metadata import Attributes, AttributeStore
from redisfuse.paths.encoding import NAME_MAX
from redisfuse.paths.grammar import Grammar, Target, digest
from redisfuse.vfs.nodes import FIELD_TYPE, DirectoryNode, FileNode, Listed, LongFieldsNode, LongRootNode, PieceNode

_T = TypeVar("_T")

BATCH = 1000  # keys whose types are asked for together
FIELD_BATCH = 100  # hashes whose fields are asked for together


@dataclass(frozen=True, slots=True)
class Lister:
    """Lists directories of one index. Thread-safe: every listing is on its own."""

    grammar: Grammar
    index: Index
    attributes: AttributeStore
    field_limit: int
    hash_limit: int
    change_count: Callable[[bytes], int]  # of a key, looked at before the server is asked about it

    def directory(self, directory: tuple[bytes, ...]) -> Iterator[Listed]:
        """The names in a directory of keys, each once; long ones as the first of their pieces. Raises NotFoundError."""
        pieces: set[bytes] = set()
        if not directory and next(self.index.long_keys(), None) is not None:
            yield Listed(b"%long", LongRootNode())
        for listed in self.uncut(directory):
            if len(listed.name) <= NAME_MAX:
                yield listed
                continue
            first = self.grammar.pieces(listed.name)[0]
            if first not in pieces:
                pieces.add(first)
                yield Listed(first, PieceNode(directory, first[:-2]))

    def piece(self, node: PieceNode) -> Iterator[Listed]:
        """The next pieces of the names in a directory that begin as `node` does. Raises NotFoundError if none does."""
        seen: set[bytes] = set()
        for listed in self.uncut(node.directory):
            if not listed.name.startswith(node.start):
                continue
            pieces = self.grammar.pieces(listed.name)
            start = b""
            for number, piece in enumerate(pieces[:-1]):
                start += piece[:-2]
                if start == node.start:
                    name = pieces[number + 1]
                    if name not in seen:
                        seen.add(name)
                        last = number + 2 == len(pieces)
                        yield (
                            listed
                            if last and name == listed.name
                            else Listed(name, listed.node if last else PieceNode(node.directory, start + name[:-2]))
                        )
                    break
        if not seen:
            raise NotFoundError("no name begins so")

    def uncut(self, directory: tuple[bytes, ...]) -> Iterator[Listed]:
        """The names in a directory as written, before any is cut."""
        hashes = _Hashes(self, directory)
        for batch in batched(self.index.children(directory), BATCH):
            for child in batch:
                if child.is_directory:
                    name = self.grammar.directory_name(child.component, root=not directory)
                    yield Listed(name, DirectoryNode((*directory, child.component)))
            yield from self._keys(directory, [child for child in batch if child.is_key], hashes)
        yield from hashes.rest()

    def _keys(self, directory: tuple[bytes, ...], children: Sequence[Child], hashes: _Hashes) -> Iterator[Listed]:
        keys = [self.grammar.join((*directory, child.component)) for child in children]
        counts = list(map(self.change_count, keys))
        found = self.attributes.get_many(keys)
        shadowed = self._shadowed(directory, [child.component for child in children])
        for child, key, attributes, count in zip(children, keys, found, counts, strict=True):
            if attributes.type == b"none":
                continue  # gone since the index heard of it
            if attributes.type == b"hash":
                yield from hashes.add(child, key, attributes)
            else:
                name = self.grammar.listed_key(
                    child.component,
                    shadowed=child.component in shadowed,
                    is_directory=child.is_directory,
                    root=not directory,
                )
                yield Listed(name, FileNode(Target(key), attributes.type, attributes.length, None, count))

    def _shadowed(self, directory: tuple[bytes, ...], components: Iterable[bytes]) -> set[bytes]:
        """Which keys share their spelling with a field that exists."""
        readings = {}
        for component in components:
            reading = self.grammar.field_reading(component)
            if reading is not None:
                owner = self.index.child(directory, reading[0])
                if owner is not None and owner.is_key:
                    readings[component] = (self.grammar.join((*directory, reading[0])), reading[1])
        if not readings:
            return set()
        owners = list(dict.fromkeys(key for key, _field in readings.values()))
        types = {key: found.type for key, found in zip(owners, self.attributes.get_many(owners), strict=True)}
        asked = {component: pair for component, pair in readings.items() if types[pair[0]] == b"hash"}
        exists = self.attributes.exists_fields(list(asked.values()))
        return {component for component, there in zip(asked, exists, strict=True) if there}

    def whole_hash(self, directory: tuple[bytes, ...], child: Child, key: bytes, length: int) -> Listed:
        """A hash that is listed as one file."""
        name = self.grammar.listed_key(
            child.component, is_hash=True, is_directory=child.is_directory, root=not directory
        )
        return Listed(name, FileNode(Target(key), b"hash", length))

    def fields(
        self, directory: tuple[bytes, ...], component: bytes, key: bytes, lengths: dict[bytes, int]
    ) -> Iterator[Listed]:
        """The fields of one hash, as names in its directory."""
        long = False
        for field, length in lengths.items():
            if self.grammar.field_is_long(key, field):
                long = True
                continue
            name = self.grammar.field_name(component, field)
            reading = self.grammar.directory_reading(name)
            if reading is not None and self.is_directory((*directory, reading)):
                name = self.grammar.mark(name)
            yield Listed(name, FileNode(Target(key, field), FIELD_TYPE, length))
        if long:
            yield Listed(self.grammar.long_fields_name(component), LongFieldsNode(directory, component, key))

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether there are keys below."""
        return self.index.is_directory(directory)

    def long_root(self) -> Iterator[Listed]:
        """The keys that only `%long` can hold, and the fields of those that are hashes."""
        for keys in batched(self.index.long_keys(), BATCH):
            for key, attributes in zip(keys, self.attributes.get_many(keys), strict=True):
                name = digest(key).encode()
                lengths = self._field_lengths(key, attributes)
                if lengths is not None:
                    for field, length in lengths.items():
                        yield Listed(
                            name + b"." + digest(field).encode(), FileNode(Target(key, field), FIELD_TYPE, length)
                        )
                elif attributes.type != b"none":
                    yield Listed(name, FileNode(Target(key), attributes.type, attributes.length))

    def _field_lengths(self, key: bytes, attributes: Attributes) -> dict[bytes, int] | None:
        if attributes.type != b"hash":
            return None
        return self.field_lengths([key])[0]

    def field_lengths(self, keys: Sequence[bytes]) -> list[dict[bytes, int] | None]:
        """The fields of hashes with their lengths in bytes; None for one beyond the limit, or no hash any more."""
        names = self.attributes.fields_many(keys, self.field_limit)
        pairs = [(key, field) for key, fields in zip(keys, names, strict=True) for field in fields or ()]
        lengths = dict(zip(pairs, self.attributes.field_lengths_many(pairs), strict=True))
        found: list[dict[bytes, int] | None] = []
        for key, fields in zip(keys, names, strict=True):
            known = {field: lengths[key, field] for field in fields or ()}
            here = {field: length for field, length in known.items() if length is not None}
            found.append(None if fields is None else here)
        return found

    def long_fields(self, node: LongFieldsNode) -> Iterator[Listed]:
        """The fields of one hash whose own paths would be too long."""
        [lengths] = self.field_lengths([node.key])
        for field, length in (lengths or {}).items():
            if self.grammar.field_is_long(node.key, field):
                yield Listed(digest(field).encode(), FileNode(Target(node.key, field), FIELD_TYPE, length))


class _Hashes:
    """The hashes of one directory, held back until it is known whether they are few enough to be listed as fields."""

    def __init__(self, lister: Lister, directory: tuple[bytes, ...]) -> None:
        self._lister = lister
        self._directory = directory
        self._held: list[tuple[Child, bytes, int]] = []
        self._many = False

    def add(self, child: Child, key: bytes, attributes: Attributes) -> Iterator[Listed]:
        """One more; gives what can be named by now."""
        if self._many:
            yield self._whole(child, key, attributes.length)
            return
        self._held.append((child, key, attributes.length))
        if len(self._held) > self._lister.hash_limit:
            self._many = True
            for each in self._held:
                yield self._whole(*each)
            self._held.clear()

    def _whole(self, child: Child, key: bytes, length: int) -> Listed:
        return self._lister.whole_hash(self._directory, child, key, length)

    def rest(self) -> Iterator[Listed]:
        """At the end of the directory: those that turned out to be few, as their fields."""
        for batch in batched(self._held, FIELD_BATCH):
            small = [each for each in batch if each[2] <= self._lister.field_limit]
            fields = self._lister.field_lengths([key for _, key, _ in small])
            found = {key: lengths for (_, key, _), lengths in zip(small, fields, strict=True)}
            for child, key, length in batch:
                lengths = found.get(key)
                if lengths is None:
                    yield self._whole(child, key, length)
                else:
                    yield from self._lister.fields(self._directory, child.component, key, lengths)

"""Which names a directory shows: from the index of keys, and the types that the server tells.

A listing is a generator: it asks for types in batches of `METADATA_BATCH_KEYS` keys and gives names as it goes, so that a directory
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
from redisfuse.keyspace.metadata import KeyMetadata, MetadataStore
from redisfuse.paths.encoding import NAME_MAX
from redisfuse.paths.grammar import KeyRef, PathCodec, sha256_hex
from redisfuse.vfs.nodes import (
    FIELD_TYPE,
    DigestFieldsNode,
    DigestRootNode,
    DirectoryNode,
    KeyNode,
    NamedNode,
    SegmentNode,
)

_T = TypeVar("_T")

METADATA_BATCH_KEYS = 1000  # keys whose types are asked for together
FIELD_BATCH_HASHES = 100  # hashes whose fields are asked for together


@dataclass(frozen=True, slots=True)
class DirectoryReader:
    """Lists directories of one index. Thread-safe: every listing is on its own."""

    grammar: PathCodec
    index: Index
    metadata: MetadataStore
    field_limit: int
    hash_limit: int
    change_count: Callable[[bytes], int]  # of a key, looked at before the server is asked about it

    def entries(self, directory: tuple[bytes, ...]) -> Iterator[NamedNode]:
        """The names in a directory of keys, each once; long ones as the first of their pieces. Raises NotFoundError."""
        pieces: set[bytes] = set()
        if not directory and next(self.index.iter_long_keys(), None) is not None:
            yield NamedNode(b"%long", DigestRootNode())
        for listed in self.unsplit_entries(directory):
            if len(listed.name) <= NAME_MAX:
                yield listed
                continue
            first = self.grammar.split_name(listed.name)[0]
            if first not in pieces:
                pieces.add(first)
                yield NamedNode(first, SegmentNode(directory, first[:-2]))

    def continuation_entries(self, node: SegmentNode) -> Iterator[NamedNode]:
        """The next pieces of the names in a directory that begin as `node` does. Raises NotFoundError if none does."""
        seen: set[bytes] = set()
        for listed in self.unsplit_entries(node.directory):
            if not listed.name.startswith(node.name_prefix):
                continue
            pieces = self.grammar.split_name(listed.name)
            start = b""
            for number, piece in enumerate(pieces[:-1]):
                start += piece[:-2]
                if start == node.name_prefix:
                    name = pieces[number + 1]
                    if name not in seen:
                        seen.add(name)
                        last = number + 2 == len(pieces)
                        yield (
                            listed
                            if last and name == listed.name
                            else NamedNode(
                                name, listed.node if last else SegmentNode(node.directory, start + name[:-2])
                            )
                        )
                    break
        if not seen:
            raise NotFoundError("no name begins so")

    def unsplit_entries(self, directory: tuple[bytes, ...]) -> Iterator[NamedNode]:
        """The names in a directory as written, before any is cut."""
        hashes = _HashExpansion(self, directory)
        for batch in batched(self.index.iter_children(directory), METADATA_BATCH_KEYS):
            for child in batch:
                if child.is_directory:
                    name = self.grammar.directory_name(child.component, in_root=not directory)
                    yield NamedNode(name, DirectoryNode((*directory, child.component)))
            yield from self._key_entries(directory, [child for child in batch if child.is_key], hashes)
        yield from hashes.flush()

    def _key_entries(
        self, directory: tuple[bytes, ...], children: Sequence[Child], expansion: _HashExpansion
    ) -> Iterator[NamedNode]:
        keys = [self.grammar.join_key((*directory, child.component)) for child in children]
        counts = list(map(self.change_count, keys))
        found = self.metadata.get_many(keys)
        shadowed = self._keys_shadowed_by_fields(directory, [child.component for child in children])
        for child, key, attributes, count in zip(children, keys, found, counts, strict=True):
            if attributes.type == b"none":
                continue  # gone since the index heard of it
            if attributes.type == b"hash":
                yield from expansion.add(child, key, attributes)
            else:
                name = self.grammar.listed_key_name(
                    child.component,
                    shadowed=child.component in shadowed,
                    is_directory=child.is_directory,
                    in_root=not directory,
                )
                yield NamedNode(name, KeyNode(KeyRef(key), attributes.type, attributes.length, None, count))

    def _keys_shadowed_by_fields(self, directory: tuple[bytes, ...], components: Iterable[bytes]) -> set[bytes]:
        """Which keys share their spelling with a field that exists."""
        readings = {}
        for component in components:
            reading = self.grammar.shadowing_field(component)
            if reading is not None:
                owner = self.index.get_child(directory, reading[0])
                if owner is not None and owner.is_key:
                    readings[component] = (self.grammar.join_key((*directory, reading[0])), reading[1])
        if not readings:
            return set()
        owners = list(dict.fromkeys(key for key, _field in readings.values()))
        types = {key: found.type for key, found in zip(owners, self.metadata.get_many(owners), strict=True)}
        asked = {component: pair for component, pair in readings.items() if types[pair[0]] == b"hash"}
        exists = self.metadata.fields_exist(list(asked.values()))
        return {component for component, there in zip(asked, exists, strict=True) if there}

    def hash_file_entry(self, directory: tuple[bytes, ...], child: Child, key: bytes, length: int) -> NamedNode:
        """A hash that is listed as one file."""
        name = self.grammar.listed_key_name(
            child.component, is_hash=True, is_directory=child.is_directory, in_root=not directory
        )
        return NamedNode(name, KeyNode(KeyRef(key), b"hash", length))

    def field_entries(
        self, directory: tuple[bytes, ...], component: bytes, key: bytes, lengths: dict[bytes, int]
    ) -> Iterator[NamedNode]:
        """The fields of one hash, as names in its directory."""
        long = False
        for field, length in lengths.items():
            if self.grammar.field_needs_digest(key, field):
                long = True
                continue
            name = self.grammar.field_name(component, field)
            reading = self.grammar.shadowing_directory(name)
            if reading is not None and self.is_directory((*directory, reading)):
                name = self.grammar.add_file_mark(name)
            yield NamedNode(name, KeyNode(KeyRef(key, field), FIELD_TYPE, length))
        if long:
            yield NamedNode(self.grammar.digest_fields_name(component), DigestFieldsNode(directory, component, key))

    def is_directory(self, directory: tuple[bytes, ...]) -> bool:
        """Whether there are keys below."""
        return self.index.is_directory(directory)

    def digest_root_entries(self) -> Iterator[NamedNode]:
        """The keys that only `%long` can hold, and the fields of those that are hashes."""
        for keys in batched(self.index.iter_long_keys(), METADATA_BATCH_KEYS):
            for key, attributes in zip(keys, self.metadata.get_many(keys), strict=True):
                name = sha256_hex(key).encode()
                lengths = self._fetch_hash_field_lengths(key, attributes)
                if lengths is not None:
                    for field, length in lengths.items():
                        yield NamedNode(
                            name + b"." + sha256_hex(field).encode(), KeyNode(KeyRef(key, field), FIELD_TYPE, length)
                        )
                elif attributes.type != b"none":
                    yield NamedNode(name, KeyNode(KeyRef(key), attributes.type, attributes.length))

    def _fetch_hash_field_lengths(self, key: bytes, metadata: KeyMetadata) -> dict[bytes, int] | None:
        if metadata.type != b"hash":
            return None
        return self.fetch_field_lengths([key])[0]

    def fetch_field_lengths(self, keys: Sequence[bytes]) -> list[dict[bytes, int] | None]:
        """The fields of hashes with their lengths in bytes; None for one beyond the limit, or no hash any more."""
        names = self.metadata.list_fields_many(keys, self.field_limit)
        pairs = [(key, field) for key, fields in zip(keys, names, strict=True) for field in fields or ()]
        lengths = dict(zip(pairs, self.metadata.get_field_lengths_many(pairs), strict=True))
        found: list[dict[bytes, int] | None] = []
        for key, fields in zip(keys, names, strict=True):
            known = {field: lengths[key, field] for field in fields or ()}
            here = {field: length for field, length in known.items() if length is not None}
            found.append(None if fields is None else here)
        return found

    def digest_field_entries(self, node: DigestFieldsNode) -> Iterator[NamedNode]:
        """The fields of one hash whose own paths would be too long."""
        [lengths] = self.fetch_field_lengths([node.key])
        for field, length in (lengths or {}).items():
            if self.grammar.field_needs_digest(node.key, field):
                yield NamedNode(sha256_hex(field).encode(), KeyNode(KeyRef(node.key, field), FIELD_TYPE, length))


class _HashExpansion:
    """The hashes of one directory, held back until it is known whether they are few enough to be listed as fields."""

    def __init__(self, reader: DirectoryReader, directory: tuple[bytes, ...]) -> None:
        self._reader = reader
        self._directory = directory
        self._pending: list[tuple[Child, bytes, int]] = []
        self._limit_exceeded = False

    def add(self, child: Child, key: bytes, metadata: KeyMetadata) -> Iterator[NamedNode]:
        """One more; gives what can be named by now."""
        if self._limit_exceeded:
            yield self._file_entry(child, key, metadata.length)
            return
        self._pending.append((child, key, metadata.length))
        if len(self._pending) > self._reader.hash_limit:
            self._limit_exceeded = True
            for each in self._pending:
                yield self._file_entry(*each)
            self._pending.clear()

    def _file_entry(self, child: Child, key: bytes, length: int) -> NamedNode:
        return self._reader.hash_file_entry(self._directory, child, key, length)

    def flush(self) -> Iterator[NamedNode]:
        """At the end of the directory: those that turned out to be few, as their fields."""
        for batch in batched(self._pending, FIELD_BATCH_HASHES):
            small = [each for each in batch if each[2] <= self._reader.field_limit]
            fields = self._reader.fetch_field_lengths([key for _, key, _ in small])
            found = {key: lengths for (_, key, _), lengths in zip(small, fields, strict=True)}
            for child, key, length in batch:
                lengths = found.get(key)
                if lengths is None:
                    yield self._file_entry(child, key, length)
                else:
                    yield from self._reader.field_entries(self._directory, child.component, key, lengths)

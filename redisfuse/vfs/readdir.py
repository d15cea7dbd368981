"""The names in a directory, from the index of keys and the types on the server.

A listing is a generator. It fetches the types of `METADATA_BATCH_KEYS` keys at a time and yields names as it goes: a
directory of a million keys shows its first name at once, and memory doesn't grow. Hashes are the exception: with
`--hashes auto` they are listed as their fields only in a directory of few hashes, so up to `hash_limit` of them are
held back until their number is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from more_itertools import chunked

from redisfuse.errors import NotFoundError
from redisfuse.keyspace.index import Child, Index
from redisfuse.keyspace.metadata import KeyMetadata, MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.keyspace.prefetch import Listing
from redisfuse.paths.encoding import CONTINUATION, NAME_MAX
from redisfuse.paths.grammar import DIGEST_DIR, FILE_MARK, VIEW_SUFFIXES, KeyRef, PathCodec, sha256_hex
from redisfuse.vfs.hash_layouts import HashLayout, HashLayouts
from redisfuse.vfs.nodes import (
    FIELD_TYPE,
    DigestFieldsNode,
    DigestRootNode,
    DirectoryNode,
    KeyNode,
    NamedNode,
    SegmentNode,
)

METADATA_BATCH_KEYS = 1000  # keys whose types are fetched together
FIELD_BATCH_HASHES = 100  # hashes whose fields are fetched together
_MIN_CUT_COMPONENT = 80  # bytes; a name of 251 bytes has at least so many, of which each takes at most three
_UNLISTED_SUFFIXES = (FILE_MARK, *VIEW_SUFFIXES, *(FILE_MARK + view for view in VIEW_SUFFIXES))


@dataclass(frozen=True, slots=True)
class DirectoryReader:
    """Lists the directories of one index. Thread-safe: listings share no state."""

    grammar: PathCodec
    index: Index
    keyspace: KeyspaceMonitor
    metadata: MetadataStore
    layouts: HashLayouts

    def entries(self, directory: tuple[bytes, ...]) -> Iterator[NamedNode]:
        """Yield the names in a directory of keys, each once.

        A long name is yielded as its first segment. Raises NotFoundError.
        """
        segments: set[bytes] = set()
        if not directory and next(self.index.iter_long_keys(), None) is not None:
            yield NamedNode(DIGEST_DIR, DigestRootNode())
        for entry in self._unsplit_entries(directory):
            if len(entry.name) <= NAME_MAX:
                yield entry
                continue
            first = self.grammar.split_name(entry.name)[0]
            if first not in segments:
                segments.add(first)
                yield NamedNode(first, SegmentNode(directory, first.removesuffix(CONTINUATION)))

    def continuation_entries(self, node: SegmentNode) -> Iterator[NamedNode]:
        """Yield the next segments of the names that start with a segment, each once.

        Raises NotFoundError if there is none.
        """
        names: set[bytes] = set()
        for entry in self._unsplit_entries(node.directory):
            if not entry.name.startswith(node.name_prefix):
                continue
            next_segment = self._next_segment(entry, node)
            if next_segment is not None and next_segment.name not in names:
                names.add(next_segment.name)
                yield next_segment
        if not names:
            raise NotFoundError("no name begins with this segment")

    def begins_unlisted_name(self, node: SegmentNode) -> bool:
        """Return whether a segment begins the name of a view, or `NAME%`, of a key.

        A name of 251 to 255 bytes is listed whole, and such a name of its key is cut.
        """
        listed = (
            self.grammar.key_name(child.component, escape_dots=escape_dots, in_root=not node.directory)
            for child in self.index.iter_children(node.directory)
            if child.is_key and len(child.component) >= _MIN_CUT_COMPONENT
            for escape_dots in (False, True)
        )
        fields = (entry.name for entry in self._unsplit_entries(node.directory))
        return any(self._begins(node.name_prefix, name) for name in chain(listed, fields))

    def _begins(self, prefix: bytes, name: bytes) -> bool:
        if not prefix.startswith(name[: len(prefix)]):
            return False
        for suffix in _UNLISTED_SUFFIXES:
            segments = self.grammar.split_name(name + suffix)[:-1]
            if prefix in accumulate(segment.removesuffix(CONTINUATION) for segment in segments):
                return True
        return False

    def _next_segment(self, entry: NamedNode, node: SegmentNode) -> NamedNode | None:
        """Return the segment of a name that follows those in `node`.

        None if its segments end at other places.
        """
        segments = self.grammar.split_name(entry.name)
        prefix = b""
        for number, segment in enumerate(segments[:-1], start=1):
            prefix += segment.removesuffix(CONTINUATION)
            if prefix == node.name_prefix:
                name = segments[number]
                if number + 1 == len(segments):
                    return NamedNode(name, entry.node)
                return NamedNode(name, SegmentNode(node.directory, prefix + name.removesuffix(CONTINUATION)))
        return None

    def _unsplit_entries(self, directory: tuple[bytes, ...]) -> Iterator[NamedNode]:
        """Yield the names in a directory as written, of any length."""
        expansion, listing = _HashExpansion(self, directory), Listing()
        for batch in chunked(self.index.iter_children(directory), METADATA_BATCH_KEYS):
            for child in batch:
                if child.is_directory:
                    name = self.grammar.directory_name(child.component, in_root=not directory)
                    yield NamedNode(name, DirectoryNode((*directory, child.component)))
            yield from self._key_entries(directory, [child for child in batch if child.is_key], expansion, listing)
        yield from expansion.flush()

    def _key_entries(
        self, directory: tuple[bytes, ...], children: Sequence[Child], expansion: _HashExpansion, listing: Listing
    ) -> Iterator[NamedNode]:
        keys = [self.grammar.join_key((*directory, child.component)) for child in children]
        versions = list(map(self.keyspace.get_version, keys))  # before the server is queried
        metadata_of_keys = self.metadata.get_many(keys, listing)
        shadowed = self._keys_shadowed_by_fields(directory, [child.component for child in children])
        for child, key, metadata, version in zip(children, keys, metadata_of_keys, versions, strict=True):
            if metadata.type == b"none":
                continue  # deleted, and the index doesn't show it yet
            if metadata.type == b"hash":
                yield from expansion.add(child, key, metadata)
            else:
                name = self.grammar.listed_key_name(
                    child.component,
                    shadowed=child.component in shadowed,
                    is_directory=child.is_directory,
                    in_root=not directory,
                )
                node = KeyNode(KeyRef(key), metadata.type, metadata.length, None, version, expansion.listed_at)
                yield NamedNode(name, node)

    def _keys_shadowed_by_fields(self, directory: tuple[bytes, ...], components: Iterable[bytes]) -> set[bytes]:
        """Return the components that are spelled like a field that exists."""
        fields: dict[bytes, tuple[bytes, bytes]] = {}  # by component: the key of the hash, and the field
        for component in components:
            spelling = self.grammar.shadowing_field(component)
            if spelling is not None:
                hash_component, field = spelling
                child = self.index.get_child(directory, hash_component)
                if child is not None and child.is_key:
                    fields[component] = (self.grammar.join_key((*directory, hash_component)), field)
        if not fields:
            return set()
        keys = list(dict.fromkeys(key for key, _field in fields.values()))
        types = {key: metadata.type for key, metadata in zip(keys, self.metadata.get_many(keys), strict=True)}
        candidates = {component: pair for component, pair in fields.items() if types[pair[0]] == b"hash"}
        exist = self.metadata.fields_exist(list(candidates.values()))
        return {component for component, exists in zip(candidates, exist, strict=True) if exists}

    def hash_file_entry(self, directory: tuple[bytes, ...], child: Child, key: bytes, length: int) -> NamedNode:
        """Return the entry of a hash that is listed as one file."""
        name = self.grammar.listed_key_name(
            child.component, is_hash=True, is_directory=child.is_directory, in_root=not directory
        )
        return NamedNode(name, KeyNode(KeyRef(key), b"hash", length))

    def determine_layout(self, directory: tuple[bytes, ...]) -> HashLayout:
        """Return how the hashes of a directory are listed.

        Queries the types of its keys, if that is not known from its last listing.
        """
        version = self.keyspace.changed_at(self.grammar.key_prefix(directory))
        layout = self.layouts.get(directory, version)
        if layout is None or (self.layouts.mode == "auto" and not self.keyspace.is_coherent):
            try:
                layout = "files" if self._has_many_hashes(directory) else "fields"
            except NotFoundError:
                return "fields"  # no key is below it
            self.record_layout(directory, layout, version)
        return layout

    def _has_many_hashes(self, directory: tuple[bytes, ...]) -> bool:
        hash_count, listing = 0, Listing()
        for batch in chunked(self.index.iter_children(directory), METADATA_BATCH_KEYS):
            keys = [self.grammar.join_key((*directory, child.component)) for child in batch if child.is_key]
            hash_count += sum(metadata.type == b"hash" for metadata in self.metadata.get_many(keys, listing))
            if hash_count > self.layouts.hash_limit:
                return True
        return False

    def record_layout(self, directory: tuple[bytes, ...], layout: HashLayout, version: int) -> None:
        """Record how the hashes of a directory are listed with `--hashes auto`."""
        self.layouts.record(directory, layout, version, self.grammar.directory_path(directory))

    def field_entries(
        self, directory: tuple[bytes, ...], component: bytes, key: bytes, pieces: Iterable[dict[bytes, int]]
    ) -> Iterator[NamedNode]:
        """Yield the fields of a hash as names in the directory of the hash.

        The fields are given with their lengths, in pieces.
        """
        has_digests = False
        for field, length in chain.from_iterable(piece.items() for piece in pieces):
            if self.grammar.field_needs_digest(key, field):
                has_digests = True
                continue
            name = self.grammar.field_name(component, field)
            shadowing = self.grammar.shadowing_directory(name)
            if shadowing is not None and self.index.is_directory((*directory, shadowing)):
                name = self.grammar.add_file_mark(name)
            yield NamedNode(name, KeyNode(KeyRef(key, field), FIELD_TYPE, length))
        if has_digests:
            yield NamedNode(self.grammar.digest_fields_name(component), DigestFieldsNode(directory, component, key))

    def digest_root_entries(self) -> Iterator[NamedNode]:
        """Yield the entries of `%long`.

        They are the keys whose paths are too long, and the fields of such hashes.
        """
        listing = Listing()
        for keys in chunked(self.index.iter_long_keys(), METADATA_BATCH_KEYS):
            for key, metadata in zip(keys, self.metadata.get_many(keys, listing), strict=True):
                name = sha256_hex(key).encode()
                pieces = self.field_pieces(key, metadata.length) if metadata.type == b"hash" else None
                if pieces is not None:
                    for field, length in chain.from_iterable(piece.items() for piece in pieces):
                        yield NamedNode(
                            name + b"." + sha256_hex(field).encode(), KeyNode(KeyRef(key, field), FIELD_TYPE, length)
                        )
                elif metadata.type != b"none":
                    yield NamedNode(name, KeyNode(KeyRef(key), metadata.type, metadata.length))

    def digest_field_entries(self, node: DigestFieldsNode) -> Iterator[NamedNode]:
        """Yield the entries of `HASH%long`.

        They are the fields of one hash whose own paths are too long.
        """
        pieces = self.metadata.iter_field_lengths(node.key)
        for field, length in chain.from_iterable(piece.items() for piece in pieces):
            if self.grammar.field_needs_digest(node.key, field):
                yield NamedNode(sha256_hex(field).encode(), KeyNode(KeyRef(node.key, field), FIELD_TYPE, length))

    def field_pieces(self, key: bytes, field_count: int) -> Iterable[dict[bytes, int]] | None:
        """Return the fields of one hash with their lengths in bytes, in pieces.

        None if it is listed as one file.
        """
        if self.layouts.mode == "files":
            return None
        if field_count <= self.layouts.field_limit:
            [lengths] = self.fetch_field_lengths([key])
            return None if lengths is None else [lengths]
        return self.metadata.iter_field_lengths(key) if self.layouts.mode == "fields" else None

    def fetch_field_lengths(self, keys: Sequence[bytes]) -> list[dict[bytes, int] | None]:
        """Return the fields of each hash with their lengths in bytes.

        None for a hash with more than `field_limit` fields, and for a key that is no hash any more.
        """
        fields_of_keys = self.metadata.list_fields_many(keys, self.layouts.field_limit)
        pairs = [(key, field) for key, fields in zip(keys, fields_of_keys, strict=True) for field in fields or ()]
        lengths = dict(zip(pairs, self.metadata.get_field_lengths_many(pairs), strict=True))
        return [
            None
            if fields is None
            else {field: length for field in fields if (length := lengths[key, field]) is not None}
            for key, fields in zip(keys, fields_of_keys, strict=True)
        ]


class _HashExpansion:
    """The hashes of one directory whose names are not yet decided.

    With `auto` they are held back until it is known whether there are few enough to list their fields; with `fields`
    until there are enough for a pipeline.
    """

    def __init__(self, reader: DirectoryReader, directory: tuple[bytes, ...]) -> None:
        self._reader = reader
        self._directory = directory
        self.listed_at = reader.keyspace.changed_at(reader.grammar.key_prefix(directory))
        self._pending: list[tuple[Child, bytes, int]] = []  # with the key and its number of fields
        self._mode = reader.layouts.mode  # `files` as soon as `auto` has decided so

    def add(self, child: Child, key: bytes, metadata: KeyMetadata) -> Iterator[NamedNode]:
        """Add a hash, and yield the entries that are certain now."""
        if self._mode == "files":
            yield self._file_entry(child, key, metadata.length)
            return
        self._pending.append((child, key, metadata.length))
        if self._mode == "fields":
            if len(self._pending) >= FIELD_BATCH_HASHES:
                yield from self._expand_pending()
        elif len(self._pending) > self._reader.layouts.hash_limit:
            self._mode = "files"
            self._reader.record_layout(self._directory, "files", self.listed_at)
            for pending_hash in self._pending:
                yield self._file_entry(*pending_hash)
            self._pending.clear()

    def _file_entry(self, child: Child, key: bytes, length: int) -> NamedNode:
        return self._reader.hash_file_entry(self._directory, child, key, length)

    def flush(self) -> Iterator[NamedNode]:
        """Yield the hashes still held back at the end of the directory."""
        if self._mode == "auto":
            self._reader.record_layout(self._directory, "fields", self.listed_at)
        yield from self._expand_pending()

    def _expand_pending(self) -> Iterator[NamedNode]:
        """Yield the fields of the hashes that are held back."""
        pending, self._pending = self._pending, []
        field_limit = self._reader.layouts.field_limit
        for batch in chunked(pending, FIELD_BATCH_HASHES):
            small_keys = [key for _, key, length in batch if length <= field_limit]
            lengths_by_key = dict(zip(small_keys, self._reader.fetch_field_lengths(small_keys), strict=True))
            for child, key, length in batch:
                lengths = lengths_by_key.get(key)
                if lengths is None and (self._mode == "auto" or length <= field_limit):
                    yield self._file_entry(child, key, length)
                else:
                    pieces = self._reader.metadata.iter_field_lengths(key) if lengths is None else [lengths]
                    yield from self._reader.field_entries(self._directory, child.component, key, pieces)

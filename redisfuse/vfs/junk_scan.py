"""Finds junk that is in Redis: keys and fields that listings omit.

They are omitted because of their names (docs/editing.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from redisfuse.client.client import RedisClient
from redisfuse.keyspace.listener import NullListener
from redisfuse.keyspace.metadata import KeyMetadata, MetadataStore
from redisfuse.keyspace.scanner import ScanObserver, scan_keys
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.vfs.junk_rules import JunkRule, JunkRules
from redisfuse.vfs.nodes import FIELD_TYPE

METADATA_CACHE_BYTES = 1 << 20  # small, since each key is looked up once


@dataclass(frozen=True, slots=True)
class JunkKey:
    """A key or field that is junk by its name."""

    target: KeyRef
    path: bytes  # from the mount's root
    rule: JunkRule
    type: bytes  # the reply of TYPE, or FIELD_TYPE
    length: int  # bytes of a string or field, elements of any other

    @property
    def size(self) -> int | None:
        """Bytes of a string or field; None for another type, which must be read first."""
        return self.length if self.type in (b"string", FIELD_TYPE) else None


class _TotalObserver(ScanObserver):
    def __init__(self, on_total: Callable[[int], None]) -> None:
        self._on_total = on_total
        self._sum = 0

    def set_total(self, total: int) -> None:
        self._sum += total
        self._on_total(self._sum)


class JunkScanner:
    """Scans all keys of a server in batches.

    With `max_hash_fields`, the fields of hashes with up to that many fields are scanned too (0: none).
    """

    def __init__(
        self,
        client: RedisClient,
        grammar: PathCodec,
        junk_rules: JunkRules,
        *,
        prefix: bytes = b"",
        max_hash_fields: int = 0,
    ) -> None:
        self._client = client
        self._grammar = grammar
        self._junk_rules = junk_rules
        self._prefix = prefix
        self._max_hash_fields = max_hash_fields
        self._metadata = MetadataStore(client, max_cache_bytes=METADATA_CACHE_BYTES, freshness=NullListener())
        self._last_directory: tuple[bytes, ...] = ()  # of the last key, and its rule
        self._last_directory_rule: JunkRule | None = None

    def find_junk(
        self,
        on_total: Callable[[int], None] = lambda _total: None,
        on_progress: Callable[[int], None] = lambda _keys: None,
    ) -> Iterator[JunkKey]:
        """Yield each junk key or field once, in no order.

        `on_total` receives the number of keys on the server, `on_progress` the number scanned since its last call.
        Raises UnavailableError, AccessError.
        """
        yielded: set[KeyRef] = set()
        observer = _TotalObserver(on_total)
        servers = self._client.servers  # one, or the primaries of a cluster
        for keys in chain.from_iterable(scan_keys(each, prefix=self._prefix, observer=observer) for each in servers):
            for junk_key in self._find_in_batch(keys):
                if junk_key.target not in yielded:  # SCAN may return a key twice
                    yielded.add(junk_key.target)
                    yield junk_key
            on_progress(len(keys))

    def _find_in_batch(self, keys: Sequence[bytes]) -> Iterator[JunkKey]:
        rules = {key: rule for key in keys if (rule := self._find_rule(key)) is not None}
        requested = keys if self._max_hash_fields else list(rules)
        metadata_by_key = dict(zip(requested, self._metadata.get_many(requested), strict=True))
        for key, rule in rules.items():
            metadata = metadata_by_key[key]
            if metadata.type != b"none":
                path = self._grammar.key_path(key, is_hash=metadata.type == b"hash")
                yield JunkKey(KeyRef(key), path, rule, metadata.type, metadata.length)
        if self._max_hash_fields:
            yield from self._find_fields({key: data for key, data in metadata_by_key.items() if key not in rules})

    def _find_rule(self, key: bytes) -> JunkRule | None:
        """Return the rule for which listings omit a key.

        It matches its own name, or that of a directory above it.
        """
        grammar, find_hiding_rule = self._grammar, self._junk_rules.find_hiding_rule
        *parents, leaf = grammar.split_key(key)
        directory = tuple(parents)
        if directory != self._last_directory:
            names = (grammar.directory_name(component, in_root=not depth) for depth, component in enumerate(directory))
            rules = (find_hiding_rule(name, in_root=not depth) for depth, name in enumerate(names))
            self._last_directory, self._last_directory_rule = directory, next(filter(None, rules), None)
        in_root = not directory
        return self._last_directory_rule or find_hiding_rule(grammar.key_name(leaf, in_root=in_root), in_root=in_root)

    def _find_fields(self, metadata_by_key: dict[bytes, KeyMetadata]) -> Iterator[JunkKey]:
        hashes = [key for key, metadata in metadata_by_key.items() if metadata.type == b"hash"]
        rules: dict[tuple[bytes, bytes], JunkRule] = {}
        for key, fields in zip(hashes, self._metadata.list_fields_many(hashes, self._max_hash_fields), strict=True):
            *directory, leaf = self._grammar.split_key(key)
            for field in fields or ():
                name = self._grammar.field_name(leaf, field)
                rule = self._junk_rules.find_hiding_rule(name, in_root=not directory)
                if rule is not None:
                    rules[key, field] = rule
        lengths = self._metadata.get_field_lengths_many(list(rules))
        for ((key, field), rule), length in zip(rules.items(), lengths, strict=True):
            if length is not None:
                yield JunkKey(KeyRef(key, field), self._grammar.field_path(key, field), rule, FIELD_TYPE, length)

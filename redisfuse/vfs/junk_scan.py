"""Junk that is in Redis already: the keys, and fields, that no mount lists because of their names (DESIGN.md 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from redisfuse.client.client import RedisClient
from redisfuse.keyspace.metadata import KeyMetadata, MetadataStore
from redisfuse.keyspace.scanner import scan_keys
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.vfs.junk_rules import JunkRule, JunkRules
from redisfuse.vfs.nodes import FIELD_TYPE

METADATA_CACHE_BYTES = 1 << 20  # bytes of cached attributes; each key is looked at once


@dataclass(frozen=True, slots=True)
class JunkKey:
    """One key or field that is junk by its name."""

    target: KeyRef
    path: bytes  # in a mount
    rule: JunkRule
    type: bytes  # Redis's word, or FIELD_TYPE
    length: int  # bytes of a string or field, elements of any other

    @property
    def size(self) -> int | None:
        """In bytes, where that is known without reading it all."""
        return self.length if self.type in (b"string", FIELD_TYPE) else None


class JunkScanner:
    """Looks through all keys of a server, in pieces. `fields`: also into hashes of up to so many fields (0: none)."""

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
        self._metadata = MetadataStore(client, max_cache_bytes=METADATA_CACHE_BYTES, trust=lambda: 0.0)
        self._last_directory: tuple[bytes, ...] = ()  # the last one that was judged, and its rule
        self._last_directory_rule: JunkRule | None = None

    def find_junk(
        self,
        on_total: Callable[[int], None] = lambda _total: None,
        on_progress: Callable[[int], None] = lambda _keys: None,
    ) -> Iterator[JunkKey]:
        """Each of them once, in no order. `on_total` is told how many keys there are, `advance` how many were seen.

        Raises UnavailableError, AccessError.
        """
        seen: set[KeyRef] = set()
        for keys in scan_keys(self._client, prefix=self._prefix, on_total=on_total):
            for found in self._find_keys(keys):
                if found.target not in seen:  # SCAN may give a key twice
                    seen.add(found.target)
                    yield found
            on_progress(len(keys))

    def _find_keys(self, keys: Sequence[bytes]) -> Iterator[JunkKey]:
        rules = {key: rule for key in keys if (rule := self._find_rule(key)) is not None}
        asked = keys if self._max_hash_fields else list(rules)
        known = dict(zip(asked, self._metadata.get_many(asked), strict=True))
        for key, rule in rules.items():
            found = known[key]
            if found.type != b"none":
                path = self._grammar.key_path(key, is_hash=found.type == b"hash")
                yield JunkKey(KeyRef(key), path, rule, found.type, found.length)
        if self._max_hash_fields:
            yield from self._find_fields({key: found for key, found in known.items() if key not in rules})

    def _find_rule(self, key: bytes) -> JunkRule | None:
        """The rule for which a key is not listed: of its own name, or of a directory above it."""
        grammar, hiding = self._grammar, self._junk_rules.find_hiding_rule
        *above, leaf = grammar.split_key(key)
        directory = tuple(above)
        if directory != self._last_directory:
            names = (grammar.directory_name(each, in_root=not depth) for depth, each in enumerate(directory))
            found = (hiding(name, in_root=not depth) for depth, name in enumerate(names))
            self._last_directory, self._last_directory_rule = directory, next(filter(None, found), None)
        root = not directory
        return self._last_directory_rule or hiding(grammar.key_name(leaf, in_root=root), in_root=root)

    def _find_fields(self, metadata: dict[bytes, KeyMetadata]) -> Iterator[JunkKey]:
        hashes = [key for key, found in metadata.items() if found.type == b"hash"]
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

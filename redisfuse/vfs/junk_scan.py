"""Junk that is in Redis already: the keys, and fields, that no mount lists because of their names (DESIGN.md 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from redisfuse.client.client import Server
from redisfuse.keyspace.metadata import Attributes, AttributeStore
from redisfuse.keyspace.scanner import scan
from redisfuse.paths.grammar import Grammar, Target
from redisfuse.vfs.junk_rules import Junk, Rule
from redisfuse.vfs.nodes import FIELD_TYPE

MEMORY = 1 << 20  # bytes of cached attributes; each key is looked at once


@dataclass(frozen=True, slots=True)
class JunkKey:
    """One key or field that is junk by its name."""

    target: Target
    path: bytes  # in a mount
    rule: Rule
    type: bytes  # Redis's word, or FIELD_TYPE
    length: int  # bytes of a string or field, elements of any other

    @property
    def size(self) -> int | None:
        """In bytes, where that is known without reading it all."""
        return self.length if self.type in (b"string", FIELD_TYPE) else None


class Finder:
    """Looks through all keys of a server, in pieces. `fields`: also into hashes of up to so many fields (0: none)."""

    def __init__(self, server: Server, grammar: Grammar, junk: Junk, *, prefix: bytes = b"", fields: int = 0) -> None:
        self._server = server
        self._grammar = grammar
        self._junk = junk
        self._prefix = prefix
        self._fields = fields
        self._attributes = AttributeStore(server, memory=MEMORY, trust=lambda: 0.0)
        self._directory: tuple[bytes, ...] = ()  # the last one that was judged, and its rule
        self._rule: Rule | None = None

    def find(
        self,
        on_total: Callable[[int], None] = lambda _total: None,
        advance: Callable[[int], None] = lambda _keys: None,
    ) -> Iterator[JunkKey]:
        """Each of them once, in no order. `on_total` is told how many keys there are, `advance` how many were seen.

        Raises UnavailableError, AccessError.
        """
        seen: set[Target] = set()
        for keys in scan(self._server, prefix=self._prefix, on_total=on_total):
            for found in self._among(keys):
                if found.target not in seen:  # SCAN may give a key twice
                    seen.add(found.target)
                    yield found
            advance(len(keys))

    def _among(self, keys: Sequence[bytes]) -> Iterator[JunkKey]:
        rules = {key: rule for key in keys if (rule := self._rule_of(key)) is not None}
        asked = keys if self._fields else list(rules)
        known = dict(zip(asked, self._attributes.get_many(asked), strict=True))
        for key, rule in rules.items():
            found = known[key]
            if found.type != b"none":
                path = self._grammar.key_path(key, is_hash=found.type == b"hash")
                yield JunkKey(Target(key), path, rule, found.type, found.length)
        if self._fields:
            yield from self._fields_among({key: found for key, found in known.items() if key not in rules})

    def _rule_of(self, key: bytes) -> Rule | None:
        """The rule for which a key is not listed: of its own name, or of a directory above it."""
        grammar, hiding = self._grammar, self._junk.hiding
        *above, leaf = grammar.split(key)
        directory = tuple(above)
        if directory != self._directory:
            names = (grammar.directory_name(each, root=not depth) for depth, each in enumerate(directory))
            found = (hiding(name, root=not depth) for depth, name in enumerate(names))
            self._directory, self._rule = directory, next(filter(None, found), None)
        root = not directory
        return self._rule or hiding(grammar.key_name(leaf, root=root), root=root)

    def _fields_among(self, known: dict[bytes, Attributes]) -> Iterator[JunkKey]:
        hashes = [key for key, found in known.items() if found.type == b"hash"]
        rules: dict[tuple[bytes, bytes], Rule] = {}
        for key, fields in zip(hashes, self._attributes.fields_many(hashes, self._fields), strict=True):
            *directory, leaf = self._grammar.split(key)
            for field in fields or ():
                name = self._grammar.field_name(leaf, field)
                rule = self._junk.hiding(name, root=not directory)
                if rule is not None:
                    rules[key, field] = rule
        lengths = self._attributes.field_lengths_many(list(rules))
        for ((key, field), rule), length in zip(rules.items(), lengths, strict=True):
            if length is not None:
                yield JunkKey(Target(key, field), self._grammar.field_path(key, field), rule, FIELD_TYPE, length)

"""The paths that a mount gives to keys and fields, found without a mount.

The rules are those of docs/names.md. The path of a key depends on its neighbours: it has the file mark if a directory
has its name, and written dots if a field has it. So all names below the scope must be known before the first path is
certain. `DirectorySet` collects the directories while keys are scanned; `iter_named` holds records until the scan is
complete, and scans the names once more where it must not hold more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from more_itertools import chunked

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.paths.grammar import PathCodec
from redisfuse.survey.records import KeyRecord

MAX_HELD_RECORDS = 100_000
"""Records that are held until all names are known. With more, the names are scanned a second time, and none is held."""

_RECORDS_PER_BATCH = 1000

_PLAIN_KEY = re.compile(rb"[ -$&-\-0-~]{1,255}")
"""A short key of printable ASCII without `%`, `/` and dots, which can separate a field."""

FoundRecord = tuple[RedisClient, KeyRecord]
"""A record, with the client of the node that has its key."""


class DirectorySet:
    """The directories of the keys that were added.

    Its memory grows with the number of directories, not with that of the keys.
    """

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._prefixes: set[bytes] = set()  # the keys of each directory begin with this and the separator
        self.is_complete = False

    def add_keys(self, keys: Collection[bytes]) -> None:
        """Add the directories above these keys."""
        prefixes, separator = self._prefixes, self._separator
        if len(separator) > 1:  # components are split from the left: a:::b is a and :b
            for key in keys:
                components = key.split(separator)[:-1]
                prefixes.update(separator.join(components[:count]) for count in range(1, len(components) + 1))
            return
        for key in keys:
            prefix, found, _ = key.rpartition(separator)
            while found and prefix not in prefixes:
                prefixes.add(prefix)
                prefix, found, _ = prefix.rpartition(separator)

    def complete(self, names: Iterable[Collection[bytes]]) -> None:
        """Add the directories above all keys of the scope, unless they are complete."""
        if not self.is_complete:
            for keys in names:
                self.add_keys(keys)
            self.is_complete = True

    def __contains__(self, key: bytes) -> bool:
        """Return whether the components of this key are a directory, too."""
        return key in self._prefixes


def build_plain_path(key: bytes, separator: bytes) -> bytes | None:
    """Return the path of a key whose bytes need no escape, quickly.

    None for any other key. No directory has the same path.
    """
    if _PLAIN_KEY.fullmatch(key) is None or separator * 2 in key:
        return None
    if key.startswith(separator) or key.endswith(separator):
        return None
    return key.replace(separator, b"/")


class PathNamer:
    """Builds the paths of records."""

    def __init__(self, codec: PathCodec, directories: DirectorySet) -> None:
        self._codec = codec
        self.directories = directories

    def build_paths(self, client: RedisClient, records: Sequence[KeyRecord]) -> list[bytes]:
        """Return the path of each record from the mount's root.

        At most two commands for each key whose last component has a dot after its first byte, none for others.
        """
        dotted = [
            record
            for record in records
            if b"." in record.key and record.field is None and b"." in self._leaf(record.key)[1:]
        ]
        hashes = self._find_hashes(client, dotted)
        shadowed = self._find_shadowed(client, dotted)
        return [self._build_path(record, hashes, shadowed) for record in records]

    def _leaf(self, key: bytes) -> bytes:
        return self._codec.split_key(key)[-1]

    def _build_path(self, record: KeyRecord, hashes: set[bytes], shadowed: set[bytes]) -> bytes:
        key = record.key
        if record.field is None:
            if key not in self.directories and (path := build_plain_path(key, self._codec.separator)) is not None:
                return path
            return self._codec.key_path(
                key, is_hash=key in hashes, shadowed=key in shadowed, is_directory=key in self.directories
            )
        *directory, leaf = self._codec.split_key(key)
        component = self._codec.shadowing_directory(self._codec.field_name(leaf, record.field))
        is_directory = component is not None and self._codec.join_key((*directory, component)) in self.directories
        return self._codec.field_path(key, record.field, is_directory=is_directory)

    @staticmethod
    def _find_hashes(client: RedisClient, records: Collection[KeyRecord]) -> set[bytes]:
        unknown = [record.key for record in records if record.type is None]
        types = dict(zip(unknown, client.execute_many([(b"TYPE", key) for key in unknown]), strict=True))
        return {record.key for record in records if (record.type or types[record.key]) == b"hash"}

    def _find_shadowed(self, client: RedisClient, records: Collection[KeyRecord]) -> set[bytes]:
        """Return the keys that are spelled like a field that exists."""
        commands: dict[bytes, RedisCommand] = {}
        for record in records:
            *directory, leaf = self._codec.split_key(record.key)
            if (spelling := self._codec.shadowing_field(leaf)) is not None:
                commands[record.key] = (b"HEXISTS", self._codec.join_key((*directory, spelling[0])), spelling[1])
        replies = client.execute_many(list(commands.values()))
        return {key for key, reply in zip(commands, replies, strict=True) if reply == 1}


def iter_named(
    found: Iterable[FoundRecord], namer: PathNamer, names: Iterable[Collection[bytes]]
) -> Iterator[tuple[KeyRecord, bytes]]:
    """Yield records with their paths, in order.

    Up to MAX_HELD_RECORDS records are held until the namer's directories are complete. If they are not then, they are
    completed from `names`: all keys of the scope, in batches that are fetched while they are consumed.
    """
    directories = namer.directories
    held: list[FoundRecord] = []
    for one in found:
        held.append(one)
        if len(held) >= (_RECORDS_PER_BATCH if directories.is_complete else MAX_HELD_RECORDS):
            directories.complete(names)
            yield from _name_batches(held, namer)
            held = []
    if held:
        directories.complete(names)
    yield from _name_batches(held, namer)


def _name_batches(held: Sequence[FoundRecord], namer: PathNamer) -> Iterator[tuple[KeyRecord, bytes]]:
    by_client: list[tuple[RedisClient, list[KeyRecord]]] = []
    for client, record in held:
        if not by_client or by_client[-1][0] is not client:
            by_client.append((client, []))
        by_client[-1][1].append(record)
    for client, records in by_client:
        for batch in chunked(records, _RECORDS_PER_BATCH):
            yield from zip(batch, namer.build_paths(client, batch), strict=True)

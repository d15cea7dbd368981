"""`redisfuse diff --live`: compares keys of servers, folders and archives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._named_servers import find_servers
from redisfuse.cli._output import bytes_to_json, escape_text, format_bytes
from redisfuse.cli._result_writer import ResultWriter, result_writer
from redisfuse.cli._terminal import print_err
from redisfuse.cli._where import Where, locate_in_mount, resolve_where
from redisfuse.errors import RedisFuseError, UsageError

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.models import State
    from redisfuse.transactions.archive_file import ArchiveReader
    from redisfuse.transactions.archive_record import ArchivedKey
    from redisfuse.transactions.comparison import Difference

_FAILED_STATUS = 2

_MIRRORED = {"gone": "added", "added": "gone"}


@dataclass(frozen=True, slots=True)
class _Side:
    """A or B: a server with the prefix of its keys, or an archive."""

    place: Where | None
    client: RedisClient | None
    archive: ArchiveReader | None

    @property
    def prefix(self) -> bytes:
        """The beginning of names that is not compared."""
        if self.archive is not None:
            return self.archive.header.prefix
        assert self.place is not None
        return self.place.scope.prefix


def compare_live(context: click.Context, words: Sequence[str], *, as_json: bool) -> int:
    """Compare A and B, and return the exit status: 0 equal, 1 different, 2 failed."""
    if len(words) != 2:
        raise UsageError("--live needs two arguments, A and B: each a URL, a path in a mount, or an archive")
    try:
        with ExitStack() as stack:
            left, right = (_open_side(context, word, stack) for word in words)
            is_mirrored = right.archive is not None
            if left.archive is not None and is_mirrored:
                raise UsageError("two archives can't be compared; load one, or dump both as directories for diff -r")
            writer = stack.enter_context(result_writer("comparing the keys"))
            comparison = _Comparison(right, left, writer) if is_mirrored else _Comparison(left, right, writer)
            count, has_unpaired = 0, False
            for difference in comparison.iter_differences():
                _print(writer, difference, as_json=as_json, is_mirrored=is_mirrored)
                count += 1
                has_unpaired = has_unpaired or difference.kind in _MIRRORED
            if has_unpaired and left.prefix != right.prefix:
                print_err(_describe_prefixes(left.prefix, right.prefix))
    except RedisFuseError as error:
        print_err(str(error))
        return _FAILED_STATUS
    return 1 if count else 0


def _open_side(context: click.Context, word: str, stack: ExitStack) -> _Side:
    from redisfuse.transactions.archive_file import ArchiveReader

    if "://" not in word and word not in find_servers(context) and os.path.exists(word):
        try:
            locate_in_mount(word)
        except UsageError:
            archive = ArchiveReader(word)
            stack.callback(archive.close)
            return _Side(None, None, archive)
    place = resolve_where(context, [word])
    if place.scope.target is not None:
        raise UsageError(f"{word} is a single key; compare folders, or two files with diff(1)")
    return _Side(place, stack.enter_context(place.connect_client()), None)


def _describe_prefixes(left: bytes, right: bytes) -> str:
    """Return what is compared where the names of A and B begin differently."""
    names = [repr(escape_text(prefix)) if prefix else "none" for prefix in (left, right)]
    return f"names are compared without the prefixes, which differ: {names[0]} in A, {names[1]} in B"


class _Comparison:
    """A comparison of a server or archive, the left side, with a server."""

    def __init__(self, left: _Side, right: _Side, writer: ResultWriter) -> None:
        self._left = left
        self._right = right
        self._writer = writer

    def iter_differences(self) -> Iterator[Difference]:
        """Yield the keys of the left side that differ.

        Then those of the right side that the left lacks. Raises AccessError for a key that the ACL denies: a comparison
        without it would be wrong.
        """
        from more_itertools import constrained_batches

        from redisfuse.transactions.comparison import ComparedNames, Difference, compare_keys
        from redisfuse.transactions.load import MAX_BATCH_BYTES
        from redisfuse.transactions.unwatched_reader import MAX_KEYS_PER_READ

        assert self._right.client is not None
        reader = _open_reader(self._right.client)
        names = ComparedNames()
        left_prefix, right_prefix = self._left.prefix, self._right.prefix
        batches = constrained_batches(
            self._iter_left(), MAX_BATCH_BYTES, MAX_KEYS_PER_READ, lambda one: one.approximate_bytes, strict=False
        )
        for batch in batches:
            for one in batch:
                names.add(one.key[len(left_prefix) :])
            yield from compare_keys(batch, left_prefix, reader, right_prefix)
        names.complete()
        self._writer.restart("looking for added keys")
        for keys in self._iter_names(self._right):
            added = [key for key in keys if key[len(right_prefix) :] not in names]
            for key, current in reader.read(added).items():
                yield Difference("added", key, None, current.state)

    def _iter_left(self) -> Iterator[ArchivedKey]:
        from redisfuse.transactions.archive_record import ArchivedKey

        archive = self._left.archive
        if archive is not None:
            yield from archive
            if archive.expected_keys != archive.key_count:
                raise UsageError("the archive is incomplete: `redisfuse dump` was interrupted, or the file was cut off")
            return
        assert self._left.client is not None
        reader = _open_reader(self._left.client)
        for keys in self._iter_names(self._left):
            yield from (ArchivedKey(key, current.state) for key, current in reader.read(keys).items())

    def _iter_names(self, side: _Side) -> Iterator[list[bytes]]:
        from more_itertools import chunked

        from redisfuse.survey.conditions import NameFilter
        from redisfuse.survey.scan import KeySurvey
        from redisfuse.transactions.unwatched_reader import MAX_KEYS_PER_READ

        assert side.place is not None
        assert side.client is not None
        names = NameFilter(side.place.codec.separator)
        for _, keys in KeySurvey(side.client.servers, side.place.scope, names, self._writer).iter_keys():
            yield from chunked(keys, MAX_KEYS_PER_READ)


def _open_reader(client: RedisClient) -> Any:
    from redisfuse.transactions.unwatched_reader import UnwatchedReader

    return UnwatchedReader(client, dump_limit=0, on_denied=_raise)


def _raise(error: RedisFuseError) -> None:
    raise error


def _print(writer: ResultWriter, difference: Difference, *, as_json: bool, is_mirrored: bool) -> None:
    """Print a difference; with `is_mirrored`, its left side is B."""
    kind: str = difference.kind
    left, right = difference.left, difference.right
    if is_mirrored:
        kind, left, right = _MIRRORED.get(kind, kind), right, left
    if as_json:
        import json

        row = {"difference": kind, "key": bytes_to_json(difference.key), "a": _to_json(left), "b": _to_json(right)}
        line = json.dumps(row, ensure_ascii=writer.on_terminal)
    else:
        states = [_describe(state, kind) for state in (left, right) if state is not None]
        line = "\t".join([kind, escape_text(difference.key), " → ".join(states)])
    if writer.on_terminal:
        writer.print(line)
    else:
        writer.write(line.encode() + b"\n")


def _to_json(state: State | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {"type": bytes_to_json(state.type), "bytes": state.size, "expires_at": state.expires_at}


def _describe(state: State, kind: str) -> str:
    from redisfuse.text import iso_utc

    if kind == "expiry":
        return "never" if state.expires_at is None else iso_utc(state.expires_at)
    return f"{state.type.decode('ascii', 'replace')} {format_bytes(state.size or 0)}"

"""Loads archived keys into a server: journaled, and checked for conflicts.

A batch is one pipelined read, one fsync and one transaction. A key that holds the archived state already is left as it
is, so loading the same archive again finishes what was interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from more_itertools import constrained_batches

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import (
    AccessError,
    JournalError,
    ReadOnlyError,
    RedisFuseError,
    ServerReplyError,
    UnavailableError,
)
from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ChangeIntent, State
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.text import glob_matches
from redisfuse.transactions.archive_record import ArchivedKey
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.matching import holds_state
from redisfuse.transactions.mutation import Mutation, PartiallyAppliedError
from redisfuse.transactions.operation import Operation, WatchedState
from redisfuse.transactions.spool import open_spool_file
from redisfuse.transactions.state_commands import build_state_commands
from redisfuse.transactions.state_reader import CurrentState, ReadRequest, fetch_server_time_ms
from redisfuse.transactions.unwatched_reader import UnwatchedReader

MAX_KEYS_PER_BATCH = 500
MAX_BATCH_BYTES = 16 * CHUNK_BYTES
MAX_SORTED_KEYS = 50_000
MAX_SORTED_BYTES = 32 * CHUNK_BYTES
MAX_LISTED_KEYS = 20  # conflicts and failures that a report names

ExistingKeys = Literal["refuse", "skip", "replace"]
"""The treatment of a key that exists with another value or expiry."""

Decision = Literal["create", "replace", "unchanged", "skipped", "conflict", "expired"]

PORTABLE_NOTE = "the server refused the exact copy (another version or vendor), so its elements were written"
_FIELD_EXPIRIES_NOTE = "without expiries of fields, which this server does not have"


@dataclass(slots=True)
class LoadReport:
    """The result of loading: keys by decision, and those that could not be written."""

    counts: dict[Decision, int] = field(default_factory=dict)
    conflicts: list[tuple[bytes, str]] = field(default_factory=list)  # the first MAX_LISTED_KEYS, with the reason
    failures: list[tuple[bytes, RedisFuseError]] = field(default_factory=list)  # the first MAX_LISTED_KEYS
    failure_count: int = 0
    notes: dict[str, int] = field(default_factory=dict)  # keys by what was not restored

    def count(self, decision: Decision) -> int:
        """Return the keys with this decision."""
        return self.counts.get(decision, 0)

    def add(self, decision: Decision, archived: ArchivedKey, note: str | None) -> None:
        """Count a key."""
        self.counts[decision] = self.count(decision) + 1
        if decision == "conflict" and note is not None and len(self.conflicts) < MAX_LISTED_KEYS:
            self.conflicts.append((archived.key, note))
        elif decision in ("create", "replace") and note is not None:
            self.notes[note] = self.notes.get(note, 0) + 1

    def add_failure(self, key: bytes, error: RedisFuseError) -> None:
        """Count a key that could not be written."""
        self.failure_count += 1
        if len(self.failures) < MAX_LISTED_KEYS:
            self.failures.append((key, error))

    @property
    def is_clean(self) -> bool:
        """Whether no key was refused."""
        return not self.count("conflict") and not self.failure_count


def decide(archived: ArchivedKey, current: CurrentState, existing: ExistingKeys, now_ms: int) -> Decision:
    """Return what is to be done for a key. `now_ms` is the server's clock."""
    expires_at = archived.state.expires_at
    if expires_at is not None and expires_at <= now_ms:
        return "expired"
    if current.state.kind == "absent":
        return "create"
    if existing != "skip" and holds_state(current, archived.state, compare_expiry=True):
        return "unchanged"
    decisions: dict[ExistingKeys, Decision] = {"refuse": "conflict", "skip": "skipped", "replace": "replace"}
    return decisions[existing]


def describe_conflict(archived: ArchivedKey, current: CurrentState) -> str:
    """Return how an existing key differs from the archived one."""
    if holds_state(current, archived.state):
        return "it exists with another expiry"
    if current.key_type != archived.state.type:
        return f"it exists as a {current.key_type.decode('ascii', 'replace')}"
    return "it exists with another value"


@dataclass(frozen=True)
class LoadKeys(Operation):
    """Write archived keys, each a group of the journal of its own.

    `paths`: the path of each key in the journal. `portable`: write elements instead of DUMPs. `decisions` are those of
    the last `plan`.
    """

    keys: tuple[ArchivedKey, ...]
    paths: Mapping[bytes, bytes]
    existing: ExistingKeys
    portable: bool = False
    decisions: dict[bytes, tuple[Decision, str | None]] = field(default_factory=dict, compare=False)

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of every key.

        Keys that stay whatever they hold are read only in part.
        """
        return [_build_read(archived, self.existing) for archived in self.keys]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Write the keys that are absent or to be replaced."""
        self.decisions.clear()
        now_ms = state.fetch_time_ms()
        mutations: list[Mutation] = []
        for index, archived in enumerate(self.keys):
            target = KeyRef(archived.key)
            current = state[target]
            decision = decide(archived, current, self.existing, now_ms)
            note = describe_conflict(archived, current) if decision == "conflict" else None
            if decision in ("create", "replace"):
                desired, note = _note_portable(archived.state, portable=self.portable)
                op = "create" if decision == "create" else "write"
                intent = ChangeIntent(self.paths[archived.key], op, archived.key, None, current.state, desired)
                commands = build_state_commands(target, current, desired, state.client, portable=self.portable)
                mutations.append(Mutation((intent,), commands, index))
            self.decisions[archived.key] = decision, note
        return mutations


def _build_read(archived: ArchivedKey, existing: ExistingKeys) -> ReadRequest:
    typical_bytes = min(archived.approximate_bytes, CHUNK_BYTES)
    if existing == "skip":
        return ReadRequest(KeyRef(archived.key), byte_range=(0, 0), read_objects=False)
    return ReadRequest(KeyRef(archived.key), typical_bytes=typical_bytes)


def _note_portable(state: State, *, portable: bool) -> tuple[State, str | None]:
    note = state.note if state.content is None or portable else None
    if state.kind == "object" and portable and state.content is not None:
        note = PORTABLE_NOTE if note is None else f"{PORTABLE_NOTE}; {note}"
    return (state if note == state.note else replace(state, note=note)), note


class KeyLoader:
    """Loads keys into one server.

    `codec` builds the paths for the journal. `allow`: the globs of keys that may be changed; empty: all.
    """

    def __init__(
        self,
        executor: TransactionExecutor,
        codec: PathCodec,
        *,
        existing: ExistingKeys = "refuse",
        allow: Collection[bytes] = (),
    ) -> None:
        self._executor = executor
        self._codec = codec
        self._existing: ExistingKeys = existing
        self._allowed_globs = tuple(allow)
        self._server_info = executor.client.server_info
        self._refuses_dumps: bool | None = None  # because of their version; None: no DUMP was sent yet
        self.report = LoadReport()

    def load(self, batch: Sequence[ArchivedKey]) -> None:
        """Load up to MAX_KEYS_PER_BATCH keys, each of which occurs once.

        Raises UnavailableError, ReadOnlyError or JournalError if it can't continue.
        """
        by_dump: list[ArchivedKey] = []
        by_elements: list[ArchivedKey] = []
        for archived in batch:
            if not self._is_allowed(archived.key):
                self.report.add_failure(archived.key, AccessError("--allow of the mount does not permit this key"))
                continue
            fitting = replace(archived, state=fit_to_server(archived.state, self._server_info))
            has_copy = fitting.state.portable_copy is not None
            (by_elements if self._refuses_dumps and has_copy else by_dump).append(fitting)
        if self._refuses_dumps is None:
            by_dump = self._try_dump(by_dump)
            if self._refuses_dumps:
                by_elements += [archived for archived in by_dump if archived.state.portable_copy is not None]
                by_dump = [archived for archived in by_dump if archived.state.portable_copy is None]
        self._load(by_dump, portable=False)
        self._load(by_elements, portable=True)

    def _try_dump(self, keys: list[ArchivedKey]) -> list[ArchivedKey]:
        """Load the first key that has a DUMP alone, and return the others.

        A server refuses either all DUMPs of another version or none, so one failed row of the journal is sufficient.
        """
        first = next((one for one in keys if one.state.kind == "object" and one.state.content is not None), None)
        if first is None:
            return keys
        self._refuses_dumps = False
        self._load([first], portable=False)
        return [archived for archived in keys if archived is not first]

    def _is_allowed(self, key: bytes) -> bool:
        return not self._allowed_globs or any(glob_matches(glob, key) for glob in self._allowed_globs)

    def _load(self, keys: Sequence[ArchivedKey], *, portable: bool) -> None:
        if not keys:
            return
        try:
            self._attempt(keys, portable=portable)
        except (UnavailableError, ReadOnlyError, JournalError):
            raise
        except RedisFuseError as error:
            if len(keys) > 1:  # one key made the whole transaction fail: try each alone
                for archived in keys:
                    self._load([archived], portable=portable)
            elif _is_dump_refused(error) and not portable and keys[0].state.portable_copy is not None:
                self._refuses_dumps = self._refuses_dumps or "payload version" in str(error)
                self._load(keys, portable=True)
            else:
                self.report.add_failure(keys[0].key, error)

    def _attempt(self, keys: Sequence[ArchivedKey], *, portable: bool) -> None:
        client = self._executor.client
        if client.is_partitioned:  # the keys of a slot share a transaction if they follow each other
            keys = sorted(keys, key=lambda archived: client.partition(archived.key))
        paths = {archived.key: self._codec.key_path(archived.key) for archived in keys}
        operation = LoadKeys(tuple(keys), paths, self._existing, portable)
        errors: dict[bytes, RedisFuseError] = {}
        try:
            self._executor.run(operation)
        except PartiallyAppliedError as partial:
            errors = {mutation.intents[0].key: error for mutation, error in partial.failures}
        refused: list[ArchivedKey] = []
        for archived in keys:
            error = errors.get(archived.key)
            if error is None:
                self.report.add(operation.decisions[archived.key][0], archived, operation.decisions[archived.key][1])
            elif _is_dump_refused(error) and not portable and archived.state.portable_copy is not None:
                self._refuses_dumps = self._refuses_dumps or "payload version" in str(error)
                refused.append(archived)
            else:
                self.report.add_failure(archived.key, error)
        if refused:
            self._load(refused, portable=True)


class LoadPreview:
    """Decides for keys as `KeyLoader` does, and changes nothing."""

    def __init__(self, client: RedisClient, *, existing: ExistingKeys) -> None:
        self._client = client
        self._existing: ExistingKeys = existing
        self._reader = UnwatchedReader(client, dump_limit=0)
        self.report = LoadReport()

    def load(self, batch: Sequence[ArchivedKey]) -> None:
        """Read up to MAX_KEYS_PER_BATCH keys, and count what would be done for them."""
        now_ms = fetch_server_time_ms(self._client)
        states = self._reader.read([archived.key for archived in batch])
        for archived in batch:
            fitting = replace(archived, state=fit_to_server(archived.state, self._client.server_info))
            current = states.get(archived.key, _ABSENT)
            decision = decide(fitting, current, self._existing, now_ms)
            conflict = describe_conflict(fitting, current) if decision == "conflict" else None
            note = conflict or _note_portable(fitting.state, portable=False)[1]
            self.report.add(decision, fitting, note)


_ABSENT = CurrentState(b"none", State("absent"))


def batch_keys(keys: Iterable[ArchivedKey]) -> Iterator[tuple[Sequence[ArchivedKey], float]]:
    """Yield the keys in batches that fit into a transaction.

    MAX_SORTED_KEYS at a time are in the order of their names. So a batch touches few pages of the journal's indexes of
    keys and paths; in the order of SCAN, it would touch one of each for every key. Each batch comes with its share of
    the keys that were sorted together. Of a key that is repeated among these, the last record counts.
    """
    for run in _split(keys, MAX_SORTED_BYTES, MAX_SORTED_KEYS):
        ordered = sorted({archived.key: archived for archived in run}.values(), key=lambda archived: archived.key)
        for batch in _split(ordered, MAX_BATCH_BYTES, MAX_KEYS_PER_BATCH):
            yield batch, len(batch) / len(ordered)


def _split(keys: Iterable[ArchivedKey], max_bytes: int, max_keys: int) -> Iterator[tuple[ArchivedKey, ...]]:
    return constrained_batches(keys, max_bytes, max_keys, lambda archived: archived.approximate_bytes, strict=False)


def fit_to_server(state: State, server_info: ServerInfo) -> State:
    """Return the state without expiries of fields if the server's fields have none."""
    if state.type != b"hash" or state.portable_copy is None or server_info.has_hash_field_ttl:
        return state
    header, records = portable.decode_copy(state.portable_copy.iter_chunks())
    if all(len(record) == 2 for record in records):
        return state
    _, records = portable.decode_copy(state.portable_copy.iter_chunks())
    lines = (portable.encode_record(record[:2]) for record in records)
    spool = open_spool_file()
    spool.write(portable.encode_header(header))
    return replace(state, content=None, portable_copy=Blob.from_chunks(lines, spool), note=_FIELD_EXPIRIES_NOTE)


def _is_dump_refused(error: RedisFuseError) -> bool:
    message = str(error)
    return isinstance(error, ServerReplyError) and ("DUMP payload" in message or "Bad data format" in message)

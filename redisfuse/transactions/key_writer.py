"""Edits: what a mount in write mode holds, and all that may be done to Redis, each a journaled change.

Every method returns when the change is in Redis and its prior state on this disk, or raises: then Redis is as before,
or (OutcomeUnknownError) the journal says that it has to be looked at.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import (
    AccessError,
    ConflictError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from redisfuse.journal.directory_rows import DirectoryComponents, encode_directory
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, DIRECTORY, Blob, ChangeIntent, State
from redisfuse.keyspace.listener import NullListener, WriteListener
from redisfuse.paths.grammar import KeyRef
from redisfuse.text import glob_matches
from redisfuse.transactions import command_builder
from redisfuse.transactions.executor import Mutation, MutationRefusedError, TransactionExecutor
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rename import RenamePair, build_rename_mutation
from redisfuse.transactions.state_reader import CurrentState, ReadRequest, open_spool_file

MAX_VALUE_BYTES = 512 * CHUNK_BYTES  # bytes; https://redis.io/docs/latest/develop/data-types/strings/#limits
MAX_GROUP_COMMIT_BYTES = 64 * 1024  # bytes of a value that may share a transaction with others
DEFAULT_DUMP_LIMIT_ELEMENTS = 100_000  # elements


class KeyWriter:
    """Thread-safe. `session_id` is the journal's, already begun; `client` is writable.

    `allow`: the Redis globs of the keys that may be changed; empty: all. `listener` is called before each change, and
    after it from the thread that made it, also when its outcome is unknown. `dump_limit`: elements of a collection that
    is DUMPed.
    """

    def __init__(
        self,
        client: RedisClient,
        journal: Journal,
        session_id: int,
        *,
        conflict_check: bool = True,
        allow: Collection[bytes] = (),
        dump_limit: int = DEFAULT_DUMP_LIMIT_ELEMENTS,
        listener: WriteListener | None = None,
    ) -> None:
        self.client = client
        self.journal = journal
        self.session_id = session_id
        self._conflict_check = conflict_check
        self._allowed_globs = tuple(allow)
        self._listener: WriteListener = listener or NullListener()
        self._server_name = journal.get_session(session_id).metadata.server.name
        self.executor = TransactionExecutor(client, journal, session_id, dump_limit=dump_limit, listener=self._listener)

    # -- contents -----------------------------------------------------------------------------------------------------

    def save(
        self, target: KeyRef, content: Blob, *, precondition: Precondition, path: bytes, op: str = "write"
    ) -> None:
        """Give a string or field a new whole content; it is created if the basis allows that. Its time to live stays.

        Raises ConflictError (the bytes are kept in the journal), TooLargeError, AccessError, and what `TransactionExecutor.run` does.
        """
        self._check_targets([target], content.size)
        state_type = b"string" if target.field is None else b"field"

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            there = states[target]
            new = State.from_value(
                content,
                state_type,
                expires_at=there.key_expires_at,
                field_expires_at=there.state.field_expires_at,
            )
            intent = ChangeIntent(path, op, target.key, target.field, there.state, new)
            self._check_precondition(precondition, there, intent)
            return [
                Mutation((intent,), tuple(command_builder.build_write(target, there, content, self.client.server_info)))
            ]

        only_length = precondition.size if self._conflict_check and precondition.kind in ("content", "length") else None
        looks = [ReadRequest(target, precondition.expected_size, read_objects=False, required_size=only_length)]
        light = (
            content.size <= MAX_GROUP_COMMIT_BYTES
            and precondition.expected_size is not None
            and precondition.expected_size <= MAX_GROUP_COMMIT_BYTES
        )
        self.executor.run(looks, plan, group_commit=light)

    def patch(
        self,
        target: KeyRef,
        offset: int,
        content: Blob,
        *,
        precondition: Precondition,
        path: bytes,
        op: str | None = None,
    ) -> None:
        """Write bytes at an offset of a string (at its end or beyond: append); only they are sent and journaled.

        Raises as `save` does, InvalidError for a field.
        """
        if target.field is not None:
            raise InvalidArgumentError("a hash field can only be written whole")
        self._check_targets([target], offset + content.size)
        if not content.size:
            return

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            there = states[target]
            prior = there.state
            total = max(prior.total_size, offset + content.size)
            if prior.kind == "absent":
                new = State.from_value(_pad_with_zeros(content, offset))
            else:
                new = State.from_slice(content, offset, total, expires_at=there.key_expires_at)
            name = op or ("append" if offset == prior.total_size else "write")
            intent = ChangeIntent(path, name, target.key, None, prior, new)
            self._check_precondition(precondition, there, intent)
            return [Mutation((intent,), tuple(command_builder.build_patch(target.key, offset, content, there)))]

        look = ReadRequest(target, content.size, byte_range=(offset, content.size), read_objects=False)
        self.executor.run([look], plan, group_commit=content.size <= MAX_GROUP_COMMIT_BYTES)

    def record_refused(self, target: KeyRef, states: Sequence[State], *, path: bytes, error: str) -> int:
        """Keep bytes in the journal that could not be saved, as refused changes; returns the first one's id."""
        prior = replace(ABSENT, note="what was there was not read")
        intents = [ChangeIntent(path, "write", target.key, target.field, prior, new) for new in states]
        return self.journal.record_intents(self.session_id, intents, outcome="refused", error=error)[0]

    def _check_precondition(self, precondition: Precondition, current: CurrentState, intent: ChangeIntent) -> None:
        """Raise RefusedError if this is not what the file was opened on. The type is checked in any case."""
        name = "the field" if intent.field is not None else "the key"
        if not current.is_type_compatible or current.state.kind == "object":
            held = current.key_type.decode("ascii", "replace")
            raise MutationRefusedError(ConflictError(f"the key now holds a {held}, which this would destroy"), [intent])
        if not self._conflict_check or precondition.holds_for(current.state):
            return
        if current.state.kind == "absent":
            what = f"{name} is gone since the file was opened (deleted, expired or evicted)"
        elif precondition.kind == "absent":
            what = f"{name} was created by somebody else meanwhile"
        else:
            what = f"{name} was changed by somebody else since the file was opened"
        raise MutationRefusedError(ConflictError(what), [intent])

    # -- whole keys and fields ----------------------------------------------------------------------------------------

    def remove(self, targets: Sequence[KeyRef], *, path: bytes, precondition: Precondition | None = None) -> None:
        """Remove keys of any type, or fields, as one operation. Those that are gone already are passed over.

        `basis`: what a single target must still hold. Raises ConflictError if it does not (no bytes are
        new, so nothing is kept), NotFoundError if none was there, AccessError, and what `TransactionExecutor.run` does.
        """
        self._check_targets(targets)

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            if precondition is not None and self._conflict_check:
                for there in states.values():
                    if there.state.kind != "absent" and not precondition.holds_for(there.state):
                        raise ConflictError("it was changed by somebody else meanwhile, so it is not removed")
            steps = [
                Mutation(
                    (ChangeIntent(path, "remove", target.key, target.field, there.state, ABSENT),),
                    tuple(command_builder.build_remove(target, self.client.server_info)),
                )
                for target, there in states.items()
                if there.state.kind != "absent"
            ]
            if not steps:
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            return steps

        self.executor.run([ReadRequest(target) for target in targets], plan)

    def remove_independently(self, paths: Mapping[KeyRef, bytes]) -> int:
        """Remove keys of any type, or fields, each as an operation of its own; returns how many were still there.

        `paths`: what each is called in the mount. Raises AccessError, and what `TransactionExecutor.run` does.
        """
        self._check_targets(list(paths))

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            return [
                Mutation(
                    (ChangeIntent(paths[target], "remove", target.key, target.field, there.state, ABSENT),),
                    tuple(command_builder.build_remove(target, self.client.server_info)),
                    group_index=number,
                )
                for number, (target, there) in enumerate(states.items())
                if there.state.kind != "absent"
            ]

        return len(self.executor.run([ReadRequest(target) for target in paths], plan))

    def rename(
        self,
        moves: Sequence[tuple[KeyRef, KeyRef]],
        *,
        path: bytes,
        new_path: bytes,
        allow_replace: bool = True,
    ) -> list[int]:
        """Move keys or fields to other names, as one operation (a directory's rename is many moves); returns the ids of
        the changes.

        What replaces a key or field takes over its expiry; else the own one stays. Raises NotFoundError (nothing was
        there), ExistsError (`replace` is false), AccessError (not allowed, or a string would replace a collection),
        InvalidError (a collection as a field), and what `TransactionExecutor.run` does.
        """
        wanted = [RenamePair(source, target) for source, target in moves if source != target]
        self._check_targets([target for move in wanted for target in (move.source, move.destination)])
        if len({target for move in wanted for target in (move.source, move.destination)}) != 2 * len(wanted):
            raise InvalidArgumentError("a name is moved twice, or onto one that is moved too")

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            there = [move for move in wanted if states[move.source].state.kind != "absent"]
            if not there:
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            if not allow_replace and any(states[move.destination].state.kind != "absent" for move in there):
                raise ExistsError("there is something of that name already")
            facts = self.client.server_info
            return [build_rename_mutation(move, states, facts, path=path, new_path=new_path) for move in there]

        if not wanted:
            return []
        return self.executor.run(
            [ReadRequest(target) for move in wanted for target in (move.source, move.destination)], plan
        )

    def expire(self, target: KeyRef, expires_at_ms: int | None, *, path: bytes) -> None:
        """Set when a key or field expires (absolute, Unix time in ms), or None: never.

        Raises NotFoundError, InvalidError (that time has passed), NotSupportedError (this server's fields can't).
        """
        self._check_targets([target])
        if expires_at_ms is not None and expires_at_ms <= time.time() * 1000:
            raise InvalidArgumentError("that time has passed; to delete it, delete it")

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            prior = states[target].state
            if prior.kind == "absent":
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            new = (
                replace(prior, expires_at=expires_at_ms)
                if target.field is None
                else replace(prior, field_expires_at=expires_at_ms)
            )
            if new == prior:
                return []
            intent = ChangeIntent(path, "expire", target.key, target.field, prior, new)
            return [
                Mutation((intent,), tuple(command_builder.build_expire(target, expires_at_ms, self.client.server_info)))
            ]

        self.executor.run([ReadRequest(target)], plan)

    # -- empty directories (in the journal only) ----------------------------------------------------------------------

    def list_directories(self) -> set[DirectoryComponents]:
        """The empty directories that are kept for this server's database."""
        return self.journal.list_directories(self._server_name)

    def make_directory(self, directory: DirectoryComponents, *, path: bytes) -> None:
        """Make an empty directory."""
        intent = ChangeIntent(path, "mkdir", encode_directory(directory), None, ABSENT, DIRECTORY)
        self.journal.update_directories(
            self._server_name, add=[directory], session_id=self.session_id, intents=[intent]
        )

    def remove_directory(self, directory: DirectoryComponents, *, path: bytes) -> None:
        """Remove an empty directory."""
        intent = ChangeIntent(path, "rmdir", encode_directory(directory), None, DIRECTORY, ABSENT)
        self.journal.update_directories(
            self._server_name, remove=[directory], session_id=self.session_id, intents=[intent]
        )

    def rename_directories(
        self,
        moves: Sequence[tuple[DirectoryComponents, DirectoryComponents]],
        *,
        path: bytes,
        new_path: bytes,
        group_id: int | None,
    ) -> None:
        """Give empty directories other names. `group`: a change of the same operation, if there is one."""
        intents: list[ChangeIntent] = []
        for old, new in moves:
            intents.append(
                ChangeIntent(path, "rename", encode_directory(old), None, DIRECTORY, ABSENT, new_path=new_path)
            )
            intents.append(
                ChangeIntent(path, "rename", encode_directory(new), None, ABSENT, DIRECTORY, new_path=new_path)
            )
        self.journal.update_directories(
            self._server_name,
            add=[new for _, new in moves],
            remove=[old for old, _ in moves],
            session_id=self.session_id,
            intents=intents,
            group_id=group_id,
        )

    # -- the rest -----------------------------------------------------------------------------------------------------

    def resolve_in_doubt(self) -> None:
        """Find out, if the server answers, about changes whose answers were lost."""
        try:
            self.executor.resolve_in_doubt()
        except UnavailableError:
            return

    def get_applied_state(self, change_id: int) -> State | None:
        """What a change of this mount made, if it was applied after all. Raises UnavailableError if nobody knows."""
        self.executor.resolve_in_doubt()
        found = self.journal.get_change(change_id)
        return found.new if found.outcome == "applied" else None

    def check_allowed(self, key: bytes) -> None:
        """Raises AccessError for a key that this mount may not change (--allow)."""
        if self._allowed_globs and not any(glob_matches(glob, key) for glob in self._allowed_globs):
            raise AccessError(f"{key!r} may not be changed: it matches no --allow of this mount")

    def _check_targets(self, targets: Sequence[KeyRef], size_bytes: int = 0) -> None:
        for target in targets:
            self.check_allowed(target.key)
        check_value_size(size_bytes)
        self._listener.keys_will_change({target.key for target in targets})


def check_value_size(size: int) -> None:
    """Raise TooLargeError if a string of `size` bytes is larger than Redis allows."""
    if size > MAX_VALUE_BYTES:
        raise TooLargeError(f"{size} bytes: a Redis string can't be larger than 512 MiB")


def _pad_with_zeros(content: Blob, offset: int) -> Blob:
    """What a write at an offset makes of nothing: NULs, then the content."""
    if not offset:
        return content
    gap = (bytes(min(CHUNK_BYTES, offset - start)) for start in range(0, offset, CHUNK_BYTES))
    return Blob.from_chunks(chain(gap, content.iter_chunks()), open_spool_file())

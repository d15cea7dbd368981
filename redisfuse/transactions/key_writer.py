"""The writes of a mount.

Each method is one operation of the user, journaled and checked for conflicts. A method returns when the change is in
Redis and its prior state is on this disk. If it raises, Redis is unchanged; or, with OutcomeUnknownError, the journal
says that the outcome must be looked up.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import AccessError, InvalidArgumentError, TooLargeError, UnavailableError
from redisfuse.journal.content import Blob
from redisfuse.journal.directory_rows import DirectoryComponents, encode_directory
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, DIRECTORY, Change, ChangeIntent, State
from redisfuse.keyspace.listener import NullListener, WriteListener
from redisfuse.paths.grammar import KeyRef
from redisfuse.text import glob_matches
from redisfuse.transactions import command_builder
from redisfuse.transactions.callers import Caller
from redisfuse.transactions.content_operations import PatchRange, SaveWhole
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.key_operations import RemoveEach, RemoveTogether, SetExpiry
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rename import Rename, RenamePair

MAX_VALUE_BYTES = 512 * CHUNK_BYTES  # bytes; https://redis.io/docs/latest/develop/data-types/strings/#limits
DEFAULT_DUMP_LIMIT_ELEMENTS = 100_000  # elements


class RenamedStates(NamedTuple):
    """The states of a rename."""

    source: State  # before it
    destination: State  # after it


class KeyWriter:
    """Writes to one database in one session of the journal, which has begun.

    Thread-safe; `client` is writable. `allow`: the Redis globs of the keys that may be changed; empty: all keys.
    `added_newline`: false: a newline that a program adds at the end of a value that had none is not saved.
    `dump_limit`: the number of elements above which a collection is not DUMPed. `listener` is called before each
    operation, and after it in the same thread, also if the outcome is unknown. `caller`: the process for
    which the calling thread works.
    """

    def __init__(
        self,
        client: RedisClient,
        journal: Journal,
        session_id: int,
        *,
        conflict_check: bool = True,
        added_newline: bool = True,
        allow: Collection[bytes] = (),
        dump_limit: int = DEFAULT_DUMP_LIMIT_ELEMENTS,
        listener: WriteListener | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.journal = journal
        self.session_id = session_id
        self.checks_conflicts = conflict_check
        self._added_newline = added_newline
        self._allowed_globs = tuple(allow)
        self._listener: WriteListener = listener or NullListener()
        self._server_name = journal.get_session(session_id).metadata.server.name
        self.executor = TransactionExecutor(
            client,
            journal,
            session_id,
            dump_limit=dump_limit,
            listener=self._listener,
            caller=caller,
        )

    # -- content of strings and fields --------------------------------------------------------------------------------

    def save(
        self,
        target: KeyRef,
        content: Blob,
        *,
        precondition: Precondition,
        path: bytes,
        op: str = "write",
        expiry: Expiry | None = None,
        supersedes: int | None = None,
        is_rewritten: bool = False,
    ) -> Blob:
        """Replace the whole content of a string or field, or create it.

        The expiry of an existing value stays; `expiry` is that of a created one. `supersedes`: the held change of the
        same content, whose row is replaced.

        `is_rewritten`: the program wrote all of it, so that an editor may have added a newline at its end. Returns the
        content that was saved, which may lack that newline. Raises ConflictError (the content is kept in the journal),
        TooLargeError, AccessError, and as `TransactionExecutor.run` does.
        """
        self._begin([target], content.size)
        operation = SaveWhole(
            target,
            content,
            self._relax(precondition),
            path,
            op,
            expiry,
            supersedes,
            drop_added_newline=is_rewritten and not self._added_newline,
        )
        self.executor.run(operation)
        return operation.saved.content

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
        """Write bytes at an offset of a string, at its end or beyond (append).

        Only they are sent and journaled. Raises as `save` does, and InvalidArgumentError for a field.
        """
        if target.field is not None:
            raise InvalidArgumentError("a hash field can only be written whole")
        self._begin([target], offset + content.size)
        if content.size:
            self.executor.run(PatchRange(target, offset, content, self._relax(precondition), path, op))

    def record_refused(self, target: KeyRef, states: Sequence[State], *, path: bytes, error: str) -> int:
        """Journal content that could not be saved, as refused changes.

        Returns the ID of the first change.
        """
        prior = replace(ABSENT, note="the prior state was not read")
        intents = [ChangeIntent(path, "write", target.key, target.field, prior, new) for new in states]
        return self.journal.record_intents(
            self.session_id, self.executor.attribute(intents), outcome="refused", error=error
        )[0]

    def record_held(
        self, target: KeyRef, content: Blob, *, path: bytes, expiry: Expiry | None, supersedes: int | None
    ) -> int:
        """Journal the content of a held file; return the change's ID.

        It is on this disk on return: if this process dies, recovery writes it. `supersedes`: its previous content.
        """
        value_ms = None if expiry is None else expiry.value_ms
        if target.field is None:
            new = State.from_value(content, expires_at=value_ms)
        else:
            new = State.from_value(content, b"field", field_expires_at=value_ms)
        intent = ChangeIntent(path, "create", target.key, target.field, ABSENT, new, supersedes=supersedes)
        return self.journal.record_intents(self.session_id, self.executor.attribute([intent]), outcome="held")[0]

    def discard_held(self, change_id: int) -> None:
        """Remove the journaled content of a temporary file that was removed."""
        self.journal.discard_held(change_id)

    # -- whole keys and fields ----------------------------------------------------------------------------------------

    def remove(
        self, targets: Sequence[KeyRef], *, path: bytes, precondition: Precondition | None = None
    ) -> Mapping[KeyRef, State]:
        """Remove keys of any type, or fields, as one operation; return what they held.

        Absent targets are skipped. Raises ConflictError if a target violates the precondition (no content is new, so
        nothing is kept); NotFoundError if all are absent; AccessError; and as `TransactionExecutor.run` does.
        """
        self._begin(targets)
        required = self._relax(precondition or Precondition.unconditional())
        operation = RemoveTogether(tuple(targets), path, required)
        self.executor.run(operation)
        return operation.removed

    def remove_independently(self, paths: Mapping[KeyRef, bytes]) -> int:
        """Remove keys of any type, or fields, each as an operation of its own.

        Returns how many were there.

        `paths`: the targets, each with its path in the mount. Raises AccessError, and as `TransactionExecutor.run`.
        """
        self._begin(list(paths))
        return len(self.executor.run(RemoveEach(paths)))

    def rename(
        self,
        moves: Sequence[tuple[KeyRef, KeyRef]],
        *,
        path: bytes,
        new_path: bytes,
        subpaths: Mapping[KeyRef, bytes] | None = None,
        allow_replace: bool = True,
    ) -> list[int]:
        """Rename keys or fields as one operation; return the IDs of the changes.

        A directory's rename has many moves; `subpaths` has the paths of their sources below it, each with a slash
        before it. The expiry of a key or field that is replaced stays; otherwise the own
        expiry moves along. Raises NotFoundError (no source is there), ExistsError (`allow_replace` is false),
        AccessError (not allowed, or a string would replace a collection), InvalidArgumentError (a collection as a
        field; a name that occurs twice), ConflictError (a field of a key that is not a hash), and as
        `TransactionExecutor.run` does.
        """
        subpaths = subpaths or {}
        pairs = tuple(
            RenamePair(source, destination, subpaths.get(source, b""))
            for source, destination in moves
            if source != destination
        )
        targets = [target for pair in pairs for target in (pair.source, pair.destination)]
        self._begin(targets)
        if len(set(targets)) != len(targets):
            raise InvalidArgumentError("a name occurs twice in one rename")
        if not pairs:
            return []
        return self.executor.run(Rename(pairs, path, new_path, allow_replace))

    def rename_over(
        self,
        source: KeyRef,
        destination: KeyRef,
        *,
        path: bytes,
        new_path: bytes,
        precondition: Precondition,
        removed_expiry: Expiry | None,
    ) -> RenamedStates:
        """Rename a key or field as a save.

        `removed_expiry`: the expiry of a destination that the program has just removed, for a source without one.
        Raises ConflictError if the destination violates the precondition (the content is kept in the journal), and as
        `rename` does.
        """
        self._begin([source, destination])
        pairs = (RenamePair(source, destination),)
        operation = Rename(pairs, path, new_path, precondition=self._relax(precondition), removed_expiry=removed_expiry)
        self.executor.run(operation)
        return RenamedStates(operation.moved[source], operation.written[destination])

    def expire(self, target: KeyRef, expires_at_ms: int | None, *, path: bytes) -> None:
        """Set when a key or field expires: absolute Unix time in ms, or None for never.

        Raises NotFoundError, AccessError, and as `check_expiry` and `TransactionExecutor.run` do.
        """
        self._begin([target])
        self.check_expiry(target, expires_at_ms)
        self.executor.run(SetExpiry(target, expires_at_ms, path))

    def check_expiry(self, target: KeyRef | None, expires_at_ms: int | None) -> None:
        """Raise an error for an expiry that a key or field can't have.

        None: the target is not known yet. InvalidArgumentError: that time has passed. NotSupportedError: a field, on a
        server whose fields have no expiry.
        """
        if expires_at_ms is not None and expires_at_ms <= time.time() * 1000:
            raise InvalidArgumentError("that time has passed; remove the key instead")
        if target is not None:
            command_builder.build_expire(target, expires_at_ms, self.executor.client.server_info)

    # -- empty directories, which exist only in the journal -----------------------------------------------------------

    def make_directory(self, directory: DirectoryComponents, *, path: bytes) -> None:
        """Make an empty directory."""
        intent = ChangeIntent(path, "mkdir", encode_directory(directory), None, ABSENT, DIRECTORY)
        self.journal.update_directories(
            self._server_name, add=[directory], session_id=self.session_id, intents=self.executor.attribute([intent])
        )

    def remove_directory(self, directory: DirectoryComponents, *, path: bytes) -> None:
        """Remove an empty directory."""
        intent = ChangeIntent(path, "rmdir", encode_directory(directory), None, DIRECTORY, ABSENT)
        self.journal.update_directories(
            self._server_name, remove=[directory], session_id=self.session_id, intents=self.executor.attribute([intent])
        )

    def rename_directories(
        self,
        moves: Sequence[tuple[DirectoryComponents, DirectoryComponents]],
        *,
        path: bytes,
        new_path: bytes,
        group_id: int | None,
    ) -> None:
        """Rename empty directories.

        `group_id`: the group of the same operation's changes of keys, if there are any.
        """
        intents: list[ChangeIntent] = []
        for old, new in moves:
            removal = ChangeIntent(path, "rename", encode_directory(old), None, DIRECTORY, ABSENT, new_path=new_path)
            creation = ChangeIntent(path, "rename", encode_directory(new), None, ABSENT, DIRECTORY, new_path=new_path)
            intents += [removal, creation]
        self.journal.update_directories(
            self._server_name,
            add=[new for _, new in moves],
            remove=[old for old, _ in moves],
            session_id=self.session_id,
            intents=self.executor.attribute(intents),
            group_id=group_id,
        )

    # -- outcomes and permission --------------------------------------------------------------------------------------

    def resolve_in_doubt(self) -> None:
        """Find out the outcomes of changes whose replies were lost.

        Does nothing while the server is unreachable.
        """
        try:
            self.executor.resolve_in_doubt()
        except UnavailableError:
            return

    def resolve_change(self, change_id: int) -> Change:
        """Return a change of this session after an attempt to find out its outcome.

        It is still pending if it may yet be applied. Raises UnavailableError.
        """
        change = self.journal.get_change(change_id)
        if change.outcome == "pending":
            self.executor.resolve_in_doubt({change.key})
            change = self.journal.get_change(change_id)
        return change

    def check_allowed(self, key: bytes) -> None:
        """Raise AccessError for a key that this mount may not change (--allow)."""
        if self._allowed_globs and not any(glob_matches(glob, key) for glob in self._allowed_globs):
            raise AccessError(f"{key!r} may not be changed: it matches no --allow of this mount")

    def _begin(self, targets: Sequence[KeyRef], size_bytes: int = 0) -> None:
        for target in targets:
            self.check_allowed(target.key)
        check_value_size(size_bytes)
        self._listener.keys_will_change({target.key for target in targets})

    def _relax(self, precondition: Precondition) -> Precondition:
        """Return the precondition, not enforced if this mount has no conflict check."""
        return precondition if self.checks_conflicts else precondition.without_enforcement()


def check_value_size(size: int) -> None:
    """Raise TooLargeError if a string of `size` bytes is larger than Redis allows."""
    if size > MAX_VALUE_BYTES:
        raise TooLargeError(f"{size} bytes: a Redis string can't be larger than 512 MiB")

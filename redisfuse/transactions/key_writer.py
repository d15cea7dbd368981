"""Edits: what a mount in write mode holds, and all that may be done to Redis, each a journaled change.

Every method returns when the change is in Redis and its prior state on this disk, or raises: then Redis is as before,
or (OutcomeUnknownError) the journal says that it has to be looked at.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import (
    AccessError,
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from redisfuse.journal.directory_rows import Directory, encode
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, DIRECTORY, Content, Intent, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions import command_builder
from redisfuse.transactions.executor import OnApplied, RefusedError, Step, Steps
from redisfuse.transactions.precondition import Basis
from redisfuse.transactions.rename import Move, move_step
from redisfuse.transactions.state_reader import Found, Look, spool

LARGEST = 512 * CHUNK_BYTES  # bytes; https://redis.io/docs/latest/develop/data-types/strings/#limits
LIGHT = 64 * 1024  # bytes of a value that may share a transaction with others
DUMP_LIMIT = 100_000  # elements


class Edits:
    """Thread-safe. `session` is the journal's, already begun; `server` is writable.

    `allow(key)` says which keys may be changed at all. `on_begin` is called before each change, `on_applied` after it,
    from the thread that made it, also when it is not known what became of it. `dump_limit`: elements of a collection
    that is DUMPed.
    """

    def __init__(
        self,
        server: Server,
        journal: Journal,
        session: int,
        *,
        conflict_check: bool = True,
        allow: Callable[[bytes], bool] = lambda _key: True,
        dump_limit: int = DUMP_LIMIT,
        on_begin: Callable[[Collection[bytes]], None] = lambda _keys: None,
        on_applied: OnApplied = lambda _keys: None,
    ) -> None:
        self.server = server
        self.journal = journal
        self.session = session
        self._conflict_check = conflict_check
        self._allow = allow
        self._on_begin = on_begin
        self._name = journal.session(session).info.server.name
        self.steps = Steps(server, journal, session, dump_limit=dump_limit, on_applied=on_applied)

    # -- contents -----------------------------------------------------------------------------------------------------

    def save(self, target: Target, content: Content, *, basis: Basis, path: bytes, op: str = "write") -> None:
        """Give a string or field a new whole content; it is created if the basis allows that. Its time to live stays.

        Raises ConflictError (the bytes are kept in the journal), TooLargeError, AccessError, and what `Steps.run` does.
        """
        self._check([target], content.size)
        state_type = b"string" if target.field is None else b"field"

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            there = found[target]
            new = State.of_value(
                content,
                state_type,
                expires_at=there.key_expires_at,
                field_expires_at=there.state.field_expires_at,
            )
            intent = Intent(path, op, target.key, target.field, there.state, new)
            self._check_basis(basis, there, intent)
            return [Step((intent,), tuple(command_builder.write(target, there, content, self.server.facts)))]

        only_length = basis.length if self._conflict_check and basis.kind in ("content", "length") else None
        looks = [Look(target, basis.expected, objects=False, only_length=only_length)]
        light = content.size <= LIGHT and basis.expected is not None and basis.expected <= LIGHT
        self.steps.run(looks, decide, light=light)

    def patch(
        self, target: Target, offset: int, content: Content, *, basis: Basis, path: bytes, op: str | None = None
    ) -> None:
        """Write bytes at an offset of a string (at its end or beyond: append); only they are sent and journaled.

        Raises as `save` does, InvalidError for a field.
        """
        if target.field is not None:
            raise InvalidError("a hash field can only be written whole")
        self._check([target], offset + content.size)
        if not content.size:
            return

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            there = found[target]
            prior = there.state
            total = max(prior.total, offset + content.size)
            if prior.kind == "absent":
                new = State.of_value(_padded(content, offset))
            else:
                new = State.of_slice(content, offset, total, expires_at=there.key_expires_at)
            name = op or ("append" if offset == prior.total else "write")
            intent = Intent(path, name, target.key, None, prior, new)
            self._check_basis(basis, there, intent)
            return [Step((intent,), tuple(command_builder.patch(target.key, offset, content, there)))]

        look = Look(target, content.size, part=(offset, content.size), objects=False)
        self.steps.run([look], decide, light=content.size <= LIGHT)

    def keep_refused(self, target: Target, states: Sequence[State], *, path: bytes, error: str) -> int:
        """Keep bytes in the journal that could not be saved, as refused changes; returns the first one's id."""
        prior = replace(ABSENT, note="what was there was not read")
        intents = [Intent(path, "write", target.key, target.field, prior, new) for new in states]
        return self.journal.intend(self.session, intents, state="refused", error=error)[0]

    def _check_basis(self, basis: Basis, there: Found, intent: Intent) -> None:
        """Raise RefusedError if this is not what the file was opened on. The type is checked in any case."""
        name = "the field" if intent.field is not None else "the key"
        if not there.usable or there.state.kind == "object":
            held = there.key_type.decode("ascii", "replace")
            raise RefusedError(ConflictError(f"the key now holds a {held}, which this would destroy"), [intent])
        if not self._conflict_check or basis.matches(there.state):
            return
        if there.state.kind == "absent":
            what = f"{name} is gone since the file was opened (deleted, expired or evicted)"
        elif basis.kind == "absent":
            what = f"{name} was created by somebody else meanwhile"
        else:
            what = f"{name} was changed by somebody else since the file was opened"
        raise RefusedError(ConflictError(what), [intent])

    # -- whole keys and fields ----------------------------------------------------------------------------------------

    def remove(self, targets: Sequence[Target], *, path: bytes, basis: Basis | None = None) -> None:
        """Remove keys of any type, or fields, as one operation. Those that are gone already are passed over.

        `basis`: what a single target must still hold. Raises ConflictError if it does not (no bytes are
        new, so nothing is kept), NotFoundError if none was there, AccessError, and what `Steps.run` does.
        """
        self._check(targets)

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            if basis is not None and self._conflict_check:
                for there in found.values():
                    if there.state.kind != "absent" and not basis.matches(there.state):
                        raise ConflictError("it was changed by somebody else meanwhile, so it is not removed")
            steps = [
                Step(
                    (Intent(path, "remove", target.key, target.field, there.state, ABSENT),),
                    tuple(command_builder.remove(target, self.server.facts)),
                )
                for target, there in found.items()
                if there.state.kind != "absent"
            ]
            if not steps:
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            return steps

        self.steps.run([Look(target) for target in targets], decide)

    def remove_each(self, paths: Mapping[Target, bytes]) -> int:
        """Remove keys of any type, or fields, each as an operation of its own; returns how many were still there.

        `paths`: what each is called in the mount. Raises AccessError, and what `Steps.run` does.
        """
        self._check(list(paths))

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            return [
                Step(
                    (Intent(paths[target], "remove", target.key, target.field, there.state, ABSENT),),
                    tuple(command_builder.remove(target, self.server.facts)),
                    operation=number,
                )
                for number, (target, there) in enumerate(found.items())
                if there.state.kind != "absent"
            ]

        return len(self.steps.run([Look(target) for target in paths], decide))

    def rename(
        self,
        moves: Sequence[tuple[Target, Target]],
        *,
        path: bytes,
        new_path: bytes,
        replace: bool = True,
    ) -> list[int]:
        """Move keys or fields to other names, as one operation (a directory's rename is many moves); returns the ids of
        the changes.

        What replaces a key or field takes over its expiry; else the own one stays. Raises NotFoundError (nothing was
        there), ExistsError (`replace` is false), AccessError (not allowed, or a string would replace a collection),
        InvalidError (a collection as a field), and what `Steps.run` does.
        """
        wanted = [Move(source, target) for source, target in moves if source != target]
        self._check([target for move in wanted for target in (move.source, move.target)])
        if len({target for move in wanted for target in (move.source, move.target)}) != 2 * len(wanted):
            raise InvalidError("a name is moved twice, or onto one that is moved too")

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            there = [move for move in wanted if found[move.source].state.kind != "absent"]
            if not there:
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            if not replace and any(found[move.target].state.kind != "absent" for move in there):
                raise ExistsError("there is something of that name already")
            facts = self.server.facts
            return [move_step(move, found, facts, path=path, new_path=new_path) for move in there]

        if not wanted:
            return []
        return self.steps.run([Look(target) for move in wanted for target in (move.source, move.target)], decide)

    def expire(self, target: Target, at_ms: int | None, *, path: bytes) -> None:
        """Set when a key or field expires (absolute, Unix time in ms), or None: never.

        Raises NotFoundError, InvalidError (that time has passed), NotSupportedError (this server's fields can't).
        """
        self._check([target])
        if at_ms is not None and at_ms <= time.time() * 1000:
            raise InvalidError("that time has passed; to delete it, delete it")

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            prior = found[target].state
            if prior.kind == "absent":
                raise NotFoundError("it is gone already (deleted, expired or evicted)")
            new = replace(prior, expires_at=at_ms) if target.field is None else replace(prior, field_expires_at=at_ms)
            if new == prior:
                return []
            intent = Intent(path, "expire", target.key, target.field, prior, new)
            return [Step((intent,), tuple(command_builder.expire(target, at_ms, self.server.facts)))]

        self.steps.run([Look(target)], decide)

    # -- empty directories (in the journal only) ----------------------------------------------------------------------

    def directories(self) -> set[Directory]:
        """The empty directories that are kept for this server's database."""
        return self.journal.directories(self._name)

    def make_directory(self, directory: Directory, *, path: bytes) -> None:
        """Make an empty directory."""
        intent = Intent(path, "mkdir", encode(directory), None, ABSENT, DIRECTORY)
        self.journal.alter_directories(self._name, add=[directory], session=self.session, intents=[intent])

    def remove_directory(self, directory: Directory, *, path: bytes) -> None:
        """Remove an empty directory."""
        intent = Intent(path, "rmdir", encode(directory), None, DIRECTORY, ABSENT)
        self.journal.alter_directories(self._name, remove=[directory], session=self.session, intents=[intent])

    def rename_directories(
        self, moves: Sequence[tuple[Directory, Directory]], *, path: bytes, new_path: bytes, group: int | None
    ) -> None:
        """Give empty directories other names. `group`: a change of the same operation, if there is one."""
        intents: list[Intent] = []
        for old, new in moves:
            intents.append(Intent(path, "rename", encode(old), None, DIRECTORY, ABSENT, new_path=new_path))
            intents.append(Intent(path, "rename", encode(new), None, ABSENT, DIRECTORY, new_path=new_path))
        self.journal.alter_directories(
            self._name,
            add=[new for _, new in moves],
            remove=[old for old, _ in moves],
            session=self.session,
            intents=intents,
            group=group,
        )

    # -- the rest -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Find out, if the server answers, about changes whose answers were lost."""
        try:
            self.steps.settle_leftovers()
        except UnavailableError:
            return

    def made(self, change: int) -> State | None:
        """What a change of this mount made, if it was applied after all. Raises UnavailableError if nobody knows."""
        self.steps.settle_leftovers()
        found = self.journal.change(change)
        return found.new if found.state == "applied" else None

    def check_allowed(self, key: bytes) -> None:
        """Raises AccessError for a key that this mount may not change (--allow)."""
        if not self._allow(key):
            raise AccessError(f"{key!r} may not be changed: it matches no --allow of this mount")

    def _check(self, targets: Sequence[Target], size: int = 0) -> None:
        for target in targets:
            self.check_allowed(target.key)
        if size > LARGEST:
            raise TooLargeError(f"{size} bytes: a Redis string can't be larger than 512 MiB")
        self._on_begin({target.key for target in targets})


def _padded(content: Content, offset: int) -> Content:
    """What a write at an offset makes of nothing: NULs, then the content."""
    if not offset:
        return content
    gap = (bytes(min(CHUNK_BYTES, offset - start)) for start in range(0, offset, CHUNK_BYTES))
    return Content.of_chunks(chain(gap, content.chunks()), spool())

"""Reading what a key or field holds now, under WATCH: a change's prior state, and the ground of its conflict check.

Many targets are read together: each is a generator that yields the commands it wants answered next, and the rounds of
all are sent as one pipeline. A small string or field that is what it was thought to be takes one round trip.

Nothing here can tear: the keys are watched before they are first read, so what was read while somebody wrote is never
acted upon (EXEC answers nil).
"""

import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Dialogue, Server
from redisfuse.errors import RedisFuseError, WrongTypeError
from redisfuse.journal.models import ABSENT, Content, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.multi_exec import Argument, value
from redisfuse.transactions.portable_copy import READERS, collect

Asked = list[tuple[Argument, ...]]
Rounds = Generator[Asked, list[Any], "Found"]

CLOCK_ERROR = 20  # ms; before Redis 7.0 an expiry is the sum of PTTL and TIME, asked one after the other
WATCHED = 1000  # keys in one WATCH
BATCH_COMMANDS = 500
BATCH_BYTES = 16 * CHUNK_BYTES  # of answers that are expected


@dataclass(frozen=True, slots=True)
class Look:
    """What to read, and what it is thought to be (a wrong guess costs round trips, nothing else)."""

    target: Target
    expected: int | None = None  # bytes; a key is then thought to be a string, or absent. None: nothing is known
    part: tuple[int, int] | None = None  # (offset, length): only this part of a string is wanted
    objects: bool = True  # False: of other types than string only the name of the type is wanted
    only_length: int | None = None  # a value of more than 1 MiB is read only if it is of this length


@dataclass(frozen=True, slots=True)
class Found:
    """What a target holds now. `key_type` is the server's word for its key, b"none" if there is no such key."""

    key_type: bytes
    state: State
    key_expires_at: int | None = None  # ms; also where the field is absent
    usable: bool = True  # False: a field is meant, but its key is no hash
    clock_error: int = 0  # ms by which the expiries may be wrong


def spool() -> BinaryIO:
    """An unnamed file that is gone with its last user."""
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="redisfuse-"))


class Capture:
    """Reads states through one dialogue, whose WATCH then guards them."""

    def __init__(self, server: Server, dialogue: Dialogue, *, dump_limit: int) -> None:
        self._server = server
        self._dialogue = dialogue
        self._dump_limit = dump_limit
        self._facts = server.facts

    def read(self, looks: Sequence[Look], *, before: Asked | None = None) -> dict[Target, Found]:
        """Watch the keys, then read every target. `before` is sent first, its answers must not be errors.

        Raises what the server answers, or UnavailableError.
        """
        keys = list(dict.fromkeys(look.target.key for look in looks))
        preface = list(before or [])
        preface += [("WATCH", *keys[start : start + WATCHED]) for start in range(0, len(keys), WATCHED)]
        found: dict[Target, Found] = {}
        waiting: list[tuple[Look, Rounds, Asked]] = []
        for look in looks:
            rounds = self._field(look) if look.target.field is not None else self._key(look)
            waiting.append((look, rounds, next(rounds)))
        while waiting:
            batch = _next_batch(waiting)
            asked = [command for _, _, commands in batch for command in commands]
            replies = self._dialogue.exchange(preface + asked)
            for reply in replies[: len(preface)]:
                value(reply)
            del replies[: len(preface)]
            preface = []
            again: list[tuple[Look, Rounds, Asked]] = []
            for look, rounds, commands in batch:
                answers = replies[: len(commands)]
                del replies[: len(commands)]
                try:
                    again.append((look, rounds, rounds.send(answers)))
                except StopIteration as end:
                    found[look.target] = self._with_clock_error(end.value)
            waiting = again + waiting[len(batch) :]
        return found

    # -- expiries -----------------------------------------------------------------------------------------------------

    def _expiry(self, key: bytes) -> Asked:
        if self._facts.has_pexpiretime:
            return [("PEXPIRETIME", key)]
        return [("PTTL", key), ("TIME",)]

    def _expires_at(self, replies: Sequence[Any]) -> int | None:
        left = value(replies[0])
        if not isinstance(left, int) or left < 0:
            return None
        if self._facts.has_pexpiretime:
            return left
        seconds, microseconds = value(replies[1])
        return int(seconds) * 1000 + int(microseconds) // 1000 + left

    def _with_clock_error(self, found: Found) -> Found:
        return found if self._facts.has_pexpiretime else replace(found, clock_error=CLOCK_ERROR)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _key(self, look: Look) -> Rounds:
        key = look.target.key
        expiry = self._expiry(key)
        if look.expected is None:
            replies = yield [("TYPE", key), *expiry]
            key_type = bytes(value(replies[0]))
            expires_at = self._expires_at(replies[1:])
            if key_type == b"string":
                replies = yield [("STRLEN", key), _first_range(look)]
        else:
            replies = yield [("TYPE", key), *expiry, ("STRLEN", key), _first_range(look)]
            key_type = bytes(value(replies[0]))
            expires_at = self._expires_at(replies[1:-2])
        if key_type == b"none":
            return Found(key_type, ABSENT)
        if key_type != b"string":
            state = yield from self._object(look, key_type, expires_at)
            return Found(key_type, state, expires_at)
        length, first = int(value(replies[-2])), bytes(value(replies[-1]))
        state = yield from self._string(look, length, first, expires_at)
        return Found(key_type, state, expires_at)

    def _string(
        self, look: Look, length: int, first: bytes, expires_at: int | None
    ) -> Generator[Asked, list[Any], State]:
        if look.part is not None:
            offset, wanted = look.part
            content = yield from self._range(look.target.key, offset, min(wanted, max(length - offset, 0)), first)
            return State.of_slice(content, offset, length, expires_at=expires_at)
        if length > CHUNK_BYTES and look.only_length not in (None, length):
            return State.of_slice(b"", 0, length, expires_at=expires_at)
        content = yield from self._range(look.target.key, 0, length, first)
        return State.of_value(content, expires_at=expires_at)

    def _range(self, key: bytes, offset: int, size: int, first: bytes) -> Generator[Asked, list[Any], Content]:
        """`size` bytes at `offset`, of which `first` were read already."""
        if size <= len(first):
            return Content.of(first[:size])
        file = spool()
        file.write(first)
        done = len(first)
        while done < size:
            (piece,) = yield [("GETRANGE", key, offset + done, offset + min(done + CHUNK_BYTES, size) - 1)]
            if not value(piece):
                raise WrongTypeError("the key became shorter while it was read")
            file.write(piece)
            done += len(piece)
        return Content.of_file(file, 0, size)

    # -- fields -------------------------------------------------------------------------------------------------------

    def _field(self, look: Look) -> Rounds:
        key, field = look.target.key, look.target.field
        assert field is not None
        own: Asked = [("HPEXPIRETIME", key, "FIELDS", 1, field)] if self._facts.has_hash_field_ttl else []
        known = look.expected is not None and look.expected <= CHUNK_BYTES
        asked = [("TYPE", key), ("HSTRLEN", key, field), *own, *self._expiry(key)]
        if known:
            asked.append(("HGET", key, field))
        replies = yield asked
        key_type = bytes(value(replies[0]))
        expires_at = self._expires_at(replies[2 + len(own) :])
        if key_type != b"hash":
            return Found(key_type, ABSENT, expires_at, usable=key_type == b"none")
        length = int(value(replies[1]))
        if known:
            data = replies[-1]
        elif length <= CHUNK_BYTES:
            (data,) = yield [("HGET", key, field)]
        else:
            data = None
        if isinstance(data, RedisFuseError):
            raise data
        if data is None and length == 0:
            return Found(key_type, ABSENT, expires_at)
        field_expires_at = _field_expiry(replies[2]) if own else None
        if data is not None:
            content = Content.of(bytes(data))
        elif look.only_length not in (None, length):
            state = State.of_slice(b"", 0, length, b"field", expires_at=expires_at, field_expires_at=field_expires_at)
            return Found(key_type, state, expires_at)
        else:
            file = spool()
            self._server.fetch_into(file, "HGET", key, field)
            content = Content.of_file(file)
        state = State.of_value(content, b"field", expires_at=expires_at, field_expires_at=field_expires_at)
        return Found(key_type, state, expires_at)

    # -- other types --------------------------------------------------------------------------------------------------

    def _object(self, look: Look, key_type: bytes, expires_at: int | None) -> Generator[Asked, list[Any], State]:
        if not look.objects:
            return State.of_object(key_type, None, None, expires_at=expires_at)
        key = look.target.key
        reader = READERS.get(key_type)
        logical = None
        count = 0
        notes = []
        if reader is not None:
            (answer,) = yield [(reader.count, key)]
            count = int(value(answer))
            logical, note = yield from collect(key_type, key, count, self._facts, spool)
            notes += [note] if note else []
        dump = None
        if count <= self._dump_limit:
            dump = yield from self._dump(key, logical)
        else:
            notes.append(f"not DUMPed: {count} elements are more than --dump-limit ({self._dump_limit})")
        return State.of_object(
            key_type,
            dump,
            logical,
            expires_at=expires_at,
            version=self._facts.label,
            note="; ".join(notes) or None,
        )

    def _dump(self, key: bytes, logical: Content | None) -> Generator[Asked, list[Any], Content | None]:
        if logical is not None and logical.size <= CHUNK_BYTES:
            (payload,) = yield [("DUMP", key)]
            payload = value(payload)
            return None if payload is None else Content.of(bytes(payload))
        file = spool()
        self._server.fetch_into(file, "DUMP", key)
        return Content.of_file(file)


def _first_range(look: Look) -> tuple[Argument, ...]:
    offset, length = look.part if look.part is not None else (0, CHUNK_BYTES)
    return ("GETRANGE", look.target.key, offset, offset + min(max(length, 1), CHUNK_BYTES) - 1)


def _field_expiry(reply: Any) -> int | None:
    times = value(reply)
    return int(times[0]) if isinstance(times, list) and times and int(times[0]) >= 0 else None


def _next_batch(waiting: Sequence[tuple[Look, Rounds, Asked]]) -> list[tuple[Look, Rounds, Asked]]:
    """The first of those waiting whose commands, and the answers they may bring, are few enough for one exchange."""
    batch: list[tuple[Look, Rounds, Asked]] = []
    commands = size = 0
    for entry in waiting:
        commands += len(entry[2])
        size += _answer_size(entry[0], entry[2])
        if batch and (commands > BATCH_COMMANDS or size > BATCH_BYTES):
            break
        batch.append(entry)
    return batch


def _answer_size(look: Look, asked: Asked) -> int:
    if look.expected is not None:
        return min(look.expected, CHUNK_BYTES)
    return sum(CHUNK_BYTES if command[0] in ("GETRANGE", "HGET", "DUMP") else 0 for command in asked)

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
from redisfuse.client.client import Channel, RedisClient
from redisfuse.errors import RedisFuseError, WrongTypeError
from redisfuse.journal.models import ABSENT, Blob, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.multi_exec import CommandArgument, unwrap_reply
from redisfuse.transactions.portable_copy import ELEMENT_READERS, read_portable_copy

PipelinedCommands = list[tuple[CommandArgument, ...]]
ReadRounds = Generator[PipelinedCommands, list[Any], "CurrentState"]

EXPIRY_TOLERANCE_MS = 20  # ms; before Redis 7.0 an expiry is the sum of PTTL and TIME, asked one after the other
MAX_KEYS_PER_WATCH = 1000  # keys in one WATCH
MAX_PIPELINED_COMMANDS = 500
MAX_PIPELINED_REPLY_BYTES = 16 * CHUNK_BYTES  # of answers that are expected


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What to read, and what it is thought to be (a wrong guess costs round trips, nothing else)."""

    target: KeyRef
    expected_size: int | None = None  # bytes; a key is then thought to be a string, or absent. None: nothing is known
    byte_range: tuple[int, int] | None = None  # (offset, length): only this part of a string is wanted
    read_objects: bool = True  # False: of other types than string only the name of the type is wanted
    required_size: int | None = None  # a value of more than 1 MiB is read only if it is of this length


@dataclass(frozen=True, slots=True)
class CurrentState:
    """What a target holds now. `key_type` is the server's word for its key, b"none" if there is no such key."""

    key_type: bytes
    state: State
    key_expires_at: int | None = None  # ms; also where the field is absent
    is_type_compatible: bool = True  # False: a field is meant, but its key is no hash
    expiry_tolerance_ms: int = 0  # ms by which the expiries may be wrong


def open_spool_file() -> BinaryIO:
    """An unnamed file that is gone with its last user."""
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="redisfuse-"))


class StateReader:
    """Reads states through one dialogue, whose WATCH then guards them."""

    def __init__(self, client: RedisClient, channel: Channel, *, dump_limit: int) -> None:
        self._client = client
        self._channel = channel
        self._dump_limit = dump_limit
        self._server_info = client.server_info

    def read(
        self, reads: Sequence[ReadRequest], *, preamble: PipelinedCommands | None = None
    ) -> dict[KeyRef, CurrentState]:
        """Watch the keys, then read every target. `before` is sent first, its answers must not be errors.

        Raises what the server answers, or UnavailableError.
        """
        keys = list(dict.fromkeys(look.target.key for look in reads))
        preface = list(preamble or [])
        preface += [
            ("WATCH", *keys[start : start + MAX_KEYS_PER_WATCH]) for start in range(0, len(keys), MAX_KEYS_PER_WATCH)
        ]
        found: dict[KeyRef, CurrentState] = {}
        waiting: list[tuple[ReadRequest, ReadRounds, PipelinedCommands]] = []
        for look in reads:
            rounds = self._read_field(look) if look.target.field is not None else self._read_key(look)
            waiting.append((look, rounds, next(rounds)))
        while waiting:
            batch = _select_batch(waiting)
            asked = [command for _, _, commands in batch for command in commands]
            replies = self._channel.execute(preface + asked)
            for reply in replies[: len(preface)]:
                unwrap_reply(reply)
            del replies[: len(preface)]
            preface = []
            again: list[tuple[ReadRequest, ReadRounds, PipelinedCommands]] = []
            for look, rounds, commands in batch:
                answers = replies[: len(commands)]
                del replies[: len(commands)]
                try:
                    again.append((look, rounds, rounds.send(answers)))
                except StopIteration as end:
                    found[look.target] = self._add_expiry_tolerance(end.value)
            waiting = again + waiting[len(batch) :]
        return found

    # -- expiries -----------------------------------------------------------------------------------------------------

    def _build_expiry_commands(self, key: bytes) -> PipelinedCommands:
        if self._server_info.has_pexpiretime:
            return [("PEXPIRETIME", key)]
        return [("PTTL", key), ("TIME",)]

    def _parse_expiry(self, replies: Sequence[Any]) -> int | None:
        left = unwrap_reply(replies[0])
        if not isinstance(left, int) or left < 0:
            return None
        if self._server_info.has_pexpiretime:
            return left
        seconds, microseconds = unwrap_reply(replies[1])
        return int(seconds) * 1000 + int(microseconds) // 1000 + left

    def _add_expiry_tolerance(self, current: CurrentState) -> CurrentState:
        return (
            current if self._server_info.has_pexpiretime else replace(current, expiry_tolerance_ms=EXPIRY_TOLERANCE_MS)
        )

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _read_key(self, request: ReadRequest) -> ReadRounds:
        key = request.target.key
        expiry = self._build_expiry_commands(key)
        if request.expected_size is None:
            replies = yield [("TYPE", key), *expiry]
            key_type = bytes(unwrap_reply(replies[0]))
            expires_at = self._parse_expiry(replies[1:])
            if key_type == b"string":
                replies = yield [("STRLEN", key), _build_first_getrange(request)]
        else:
            replies = yield [("TYPE", key), *expiry, ("STRLEN", key), _build_first_getrange(request)]
            key_type = bytes(unwrap_reply(replies[0]))
            expires_at = self._parse_expiry(replies[1:-2])
        if key_type == b"none":
            return CurrentState(key_type, ABSENT)
        if key_type != b"string":
            state = yield from self._read_object(request, key_type, expires_at)
            return CurrentState(key_type, state, expires_at)
        length, first = int(unwrap_reply(replies[-2])), bytes(unwrap_reply(replies[-1]))
        state = yield from self._read_string(request, length, first, expires_at)
        return CurrentState(key_type, state, expires_at)

    def _read_string(
        self, request: ReadRequest, length: int, prefix: bytes, expires_at: int | None
    ) -> Generator[PipelinedCommands, list[Any], State]:
        if request.byte_range is not None:
            offset, wanted = request.byte_range
            content = yield from self._read_byte_range(
                request.target.key, offset, min(wanted, max(length - offset, 0)), prefix
            )
            return State.from_slice(content, offset, length, expires_at=expires_at)
        if length > CHUNK_BYTES and request.required_size not in (None, length):
            return State.from_slice(b"", 0, length, expires_at=expires_at)
        content = yield from self._read_byte_range(request.target.key, 0, length, prefix)
        return State.from_value(content, expires_at=expires_at)

    def _read_byte_range(
        self, key: bytes, offset: int, size: int, prefix: bytes
    ) -> Generator[PipelinedCommands, list[Any], Blob]:
        """`size` bytes at `offset`, of which `first` were read already."""
        if size <= len(prefix):
            return Blob.from_bytes(prefix[:size])
        file = open_spool_file()
        file.write(prefix)
        done = len(prefix)
        while done < size:
            (piece,) = yield [("GETRANGE", key, offset + done, offset + min(done + CHUNK_BYTES, size) - 1)]
            if not unwrap_reply(piece):
                raise WrongTypeError("the key became shorter while it was read")
            file.write(piece)
            done += len(piece)
        return Blob.from_file(file, 0, size)

    # -- fields -------------------------------------------------------------------------------------------------------

    def _read_field(self, request: ReadRequest) -> ReadRounds:
        key, field = request.target.key, request.target.field
        assert field is not None
        own: PipelinedCommands = (
            [("HPEXPIRETIME", key, "FIELDS", 1, field)] if self._server_info.has_hash_field_ttl else []
        )
        known = request.expected_size is not None and request.expected_size <= CHUNK_BYTES
        asked = [("TYPE", key), ("HSTRLEN", key, field), *own, *self._build_expiry_commands(key)]
        if known:
            asked.append(("HGET", key, field))
        replies = yield asked
        key_type = bytes(unwrap_reply(replies[0]))
        expires_at = self._parse_expiry(replies[2 + len(own) :])
        if key_type != b"hash":
            return CurrentState(key_type, ABSENT, expires_at, is_type_compatible=key_type == b"none")
        length = int(unwrap_reply(replies[1]))
        if known:
            data = replies[-1]
        elif length <= CHUNK_BYTES:
            (data,) = yield [("HGET", key, field)]
        else:
            data = None
        if isinstance(data, RedisFuseError):
            raise data
        if data is None and length == 0:
            return CurrentState(key_type, ABSENT, expires_at)
        field_expires_at = _parse_field_expiry(replies[2]) if own else None
        if data is not None:
            content = Blob.from_bytes(bytes(data))
        elif request.required_size not in (None, length):
            state = State.from_slice(b"", 0, length, b"field", expires_at=expires_at, field_expires_at=field_expires_at)
            return CurrentState(key_type, state, expires_at)
        else:
            file = open_spool_file()
            self._client.download(file, "HGET", key, field)
            content = Blob.from_file(file)
        state = State.from_value(content, b"field", expires_at=expires_at, field_expires_at=field_expires_at)
        return CurrentState(key_type, state, expires_at)

    # -- other types --------------------------------------------------------------------------------------------------

    def _read_object(
        self, request: ReadRequest, key_type: bytes, expires_at: int | None
    ) -> Generator[PipelinedCommands, list[Any], State]:
        if not request.read_objects:
            return State.from_object(key_type, None, None, expires_at=expires_at)
        key = request.target.key
        reader = ELEMENT_READERS.get(key_type)
        logical = None
        count = 0
        notes = []
        if reader is not None:
            (answer,) = yield [(reader.count_command, key)]
            count = int(unwrap_reply(answer))
            logical, note = yield from read_portable_copy(key_type, key, count, self._server_info, open_spool_file)
            notes += [note] if note else []
        dump = None
        if count <= self._dump_limit:
            dump = yield from self._read_dump(key, logical)
        else:
            notes.append(f"not DUMPed: {count} elements are more than --dump-limit ({self._dump_limit})")
        return State.from_object(
            key_type,
            dump,
            logical,
            expires_at=expires_at,
            dump_version=self._server_info.label,
            note="; ".join(notes) or None,
        )

    def _read_dump(
        self, key: bytes, portable_copy: Blob | None
    ) -> Generator[PipelinedCommands, list[Any], Blob | None]:
        if portable_copy is not None and portable_copy.size <= CHUNK_BYTES:
            (payload,) = yield [("DUMP", key)]
            payload = unwrap_reply(payload)
            return None if payload is None else Blob.from_bytes(bytes(payload))
        file = open_spool_file()
        self._client.download(file, "DUMP", key)
        return Blob.from_file(file)


def _build_first_getrange(request: ReadRequest) -> tuple[CommandArgument, ...]:
    offset, length = request.byte_range if request.byte_range is not None else (0, CHUNK_BYTES)
    return ("GETRANGE", request.target.key, offset, offset + min(max(length, 1), CHUNK_BYTES) - 1)


def _parse_field_expiry(reply: Any) -> int | None:
    times = unwrap_reply(reply)
    return int(times[0]) if isinstance(times, list) and times and int(times[0]) >= 0 else None


def _select_batch(
    pending_reads: Sequence[tuple[ReadRequest, ReadRounds, PipelinedCommands]],
) -> list[tuple[ReadRequest, ReadRounds, PipelinedCommands]]:
    """The first of those waiting whose commands, and the answers they may bring, are few enough for one exchange."""
    batch: list[tuple[ReadRequest, ReadRounds, PipelinedCommands]] = []
    commands = size = 0
    for entry in pending_reads:
        commands += len(entry[2])
        size += _estimate_reply_bytes(entry[0], entry[2])
        if batch and (commands > MAX_PIPELINED_COMMANDS or size > MAX_PIPELINED_REPLY_BYTES):
            break
        batch.append(entry)
    return batch


def _estimate_reply_bytes(request: ReadRequest, commands: PipelinedCommands) -> int:
    if request.expected_size is not None:
        return min(request.expected_size, CHUNK_BYTES)
    return sum(CHUNK_BYTES if command[0] in ("GETRANGE", "HGET", "DUMP") else 0 for command in commands)

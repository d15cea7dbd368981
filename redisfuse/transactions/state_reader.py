"""Reads what a key or field holds, under WATCH.

That is the prior state of a change and the basis of its conflict check. Many targets are read together. Each is a
generator that yields the commands to run next, and each round of all generators is one pipeline. A small string or
field that has the expected size takes one round trip.

A read cannot be torn: the keys are watched before they are first read, so if another client writes during the read,
EXEC returns nil and the result is discarded.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redisfuse.client.channel import CommandArgument, CommandExecutor
from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError, WrongTypeError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ABSENT, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.portable_copy import read_portable_copy
from redisfuse.transactions.portable_types import PORTABLE_TYPES
from redisfuse.transactions.spool import open_spool_file
from redisfuse.transactions.write_command import PipelinedCommands, unwrap_reply

ReadRounds = Generator[PipelinedCommands, list[Any], "CurrentState"]

EXPIRY_TOLERANCE_MS = 20  # ms; before Redis 7.0 an expiry is the sum of PTTL and TIME, read one after the other
MAX_KEYS_PER_WATCH = 1000  # keys in one WATCH
MAX_PIPELINED_COMMANDS = 500
MAX_PIPELINED_REPLY_BYTES = 16 * CHUNK_BYTES  # expected bytes of replies


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A target to read, and what is expected there.

    A wrong expectation costs round trips, nothing else.
    """

    target: KeyRef
    expected_size: int | None = None  # bytes of an expected string or field, 0 if absent; None: no expectation
    byte_range: tuple[int, int] | None = None  # (offset, length): read only this part of a string
    read_objects: bool = True  # False: of types other than string read only the type's name
    required_size: int | None = None  # read a value of more than 1 MiB only if it has this size
    typical_bytes: int = CHUNK_BYTES  # of a reply with a value or DUMP: how many share a pipeline


@dataclass(frozen=True, slots=True)
class CurrentState:
    """The current state of a target.

    `key_type` is the type of its key as TYPE returns it, b"none" if the key is absent.
    """

    key_type: bytes
    state: State
    key_expires_at: int | None = None  # absolute ms; also set where the field is absent
    is_type_compatible: bool = True  # False: the target is a field, but its key is not a hash
    expiry_tolerance_ms: int = 0  # ms by which the expiries may be off


def fetch_server_time_ms(client: RedisClient) -> int:
    """Return the server's clock, Unix time in ms.

    Expiries follow it, not the local clock.
    """
    seconds, microseconds = client.execute("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


@dataclass(slots=True)
class _PendingRead:
    """A target that is not fully read, and the commands that it needs next."""

    request: ReadRequest
    rounds: ReadRounds
    commands: PipelinedCommands

    @property
    def approximate_reply_bytes(self) -> int:
        """The approximate number of bytes that the replies have."""
        if self.request.expected_size is not None:
            return min(self.request.expected_size, CHUNK_BYTES)
        value_count = sum(command[0] in ("GETRANGE", "HGET", "DUMP") for command in self.commands)
        return value_count * self.request.typical_bytes


class StateReader:
    """Reads states on one channel, whose WATCH then guards them.

    Without `watch`, nothing guards them: a value and its expiry may be from moments between which the key changed.
    """

    def __init__(self, client: RedisClient, channel: CommandExecutor, *, dump_limit: int, watch: bool = True) -> None:
        self._client = client
        self._channel = channel
        self._dump_limit = dump_limit
        self._watch = watch
        self._server_info = client.server_info

    def read(
        self, requests: Sequence[ReadRequest], *, preamble: PipelinedCommands | None = None
    ) -> dict[KeyRef, CurrentState]:
        """Watch the keys, with `watch`, then read every target.

        `preamble` is sent first, in the same round trip; its replies must not be errors. Raises the server's error
        replies, and UnavailableError.
        """
        keys = list(dict.fromkeys(request.target.key for request in requests)) if self._watch else []
        first_commands = list(preamble or [])
        first_commands += [
            ("WATCH", *keys[start : start + MAX_KEYS_PER_WATCH]) for start in range(0, len(keys), MAX_KEYS_PER_WATCH)
        ]
        states: dict[KeyRef, CurrentState] = {}
        pending: list[_PendingRead] = []
        for request in requests:
            rounds = self._read_field(request) if request.target.field is not None else self._read_key(request)
            pending.append(_PendingRead(request, rounds, next(rounds)))
        while pending:
            batch = _select_batch(pending)
            commands = [command for read in batch for command in read.commands]
            replies = self._channel.execute(first_commands + commands)
            for reply in replies[: len(first_commands)]:
                unwrap_reply(reply)
            del replies[: len(first_commands)]
            first_commands = []
            unfinished: list[_PendingRead] = []
            for read in batch:
                own_replies = replies[: len(read.commands)]
                del replies[: len(read.commands)]
                try:
                    read.commands = read.rounds.send(own_replies)
                    unfinished.append(read)
                except StopIteration as end:
                    states[read.request.target] = self._add_expiry_tolerance(end.value)
            pending = unfinished + pending[len(batch) :]
        return states

    # -- expiries -----------------------------------------------------------------------------------------------------

    def _build_expiry_commands(self, key: bytes) -> PipelinedCommands:
        if self._server_info.has_pexpiretime:
            return [("PEXPIRETIME", key)]
        return [("PTTL", key), ("TIME",)]

    def _parse_expiry(self, replies: Sequence[Any]) -> int | None:
        milliseconds = unwrap_reply(replies[0])
        if not isinstance(milliseconds, int) or milliseconds < 0:
            return None
        if self._server_info.has_pexpiretime:
            return milliseconds
        seconds, microseconds = unwrap_reply(replies[1])
        return int(seconds) * 1000 + int(microseconds) // 1000 + milliseconds

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
        length, prefix = int(unwrap_reply(replies[-2])), bytes(unwrap_reply(replies[-1]))
        state = yield from self._read_string(request, length, prefix, expires_at)
        return CurrentState(key_type, state, expires_at)

    def _read_string(
        self, request: ReadRequest, length: int, prefix: bytes, expires_at: int | None
    ) -> Generator[PipelinedCommands, list[Any], State]:
        if request.byte_range is not None:
            offset, size = request.byte_range
            content = yield from self._read_byte_range(
                request.target.key, offset, min(size, max(length - offset, 0)), prefix
            )
            return State.from_slice(content, offset, length, expires_at=expires_at)
        if length > CHUNK_BYTES and request.required_size not in (None, length):
            return State.from_slice(b"", 0, length, expires_at=expires_at)
        content = yield from self._read_byte_range(request.target.key, 0, length, prefix)
        return State.from_value(content, expires_at=expires_at)

    def _read_byte_range(
        self, key: bytes, offset: int, size: int, prefix: bytes
    ) -> Generator[PipelinedCommands, list[Any], Blob]:
        """Read `size` bytes at `offset`, of which `prefix` was read already."""
        if size <= len(prefix):
            return Blob.from_bytes(prefix[:size])
        file = open_spool_file()
        file.write(prefix)
        position = len(prefix)
        while position < size:
            (chunk,) = yield [("GETRANGE", key, offset + position, offset + min(position + CHUNK_BYTES, size) - 1)]
            if not unwrap_reply(chunk):
                raise WrongTypeError("the key became shorter while it was read")
            file.write(chunk)
            position += len(chunk)
        return Blob.from_file(file, 0, size)

    # -- fields -------------------------------------------------------------------------------------------------------

    def _read_field(self, request: ReadRequest) -> ReadRounds:
        key, field = request.target.key, request.target.field
        assert field is not None
        field_expiry: PipelinedCommands = (
            [("HPEXPIRETIME", key, "FIELDS", 1, field)] if self._server_info.has_hash_field_ttl else []
        )
        is_expected_small = request.expected_size is not None and request.expected_size <= CHUNK_BYTES
        commands = [("TYPE", key), ("HSTRLEN", key, field), *field_expiry, *self._build_expiry_commands(key)]
        if is_expected_small:
            commands.append(("HGET", key, field))
        replies = yield commands
        key_type = bytes(unwrap_reply(replies[0]))
        expires_at = self._parse_expiry(replies[2 + len(field_expiry) :])
        if key_type != b"hash":
            return CurrentState(key_type, ABSENT, expires_at, is_type_compatible=key_type == b"none")
        length = int(unwrap_reply(replies[1]))
        if is_expected_small:
            data = replies[-1]
        elif length <= CHUNK_BYTES:
            (data,) = yield [("HGET", key, field)]
        else:
            data = None
        if isinstance(data, RedisFuseError):
            raise data
        if data is None and length == 0:
            return CurrentState(key_type, ABSENT, expires_at)
        field_expires_at = _parse_field_expiry(replies[2]) if field_expiry else None
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
        portable_type = PORTABLE_TYPES.get(key_type)
        portable_copy = None
        count = 0
        notes = []
        if portable_type is not None:
            (reply,) = yield [(portable_type.count_command, key)]
            count = int(unwrap_reply(reply))
            portable_copy, note = yield from read_portable_copy(key_type, key, count, self._server_info)
            notes += [note] if note else []
        dump = None
        if count <= self._dump_limit:
            dump = yield from self._read_dump(key, portable_copy)
        else:
            notes.append(f"not DUMPed: {count} elements are more than --dump-limit ({self._dump_limit})")
        return State.from_object(
            key_type,
            dump,
            portable_copy,
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


def _select_batch(pending: Sequence[_PendingRead]) -> list[_PendingRead]:
    """Return the first reads whose commands and replies fit into one pipeline."""
    batch: list[_PendingRead] = []
    commands = size = 0
    for read in pending:
        commands += len(read.commands)
        size += read.approximate_reply_bytes
        if batch and (commands > MAX_PIPELINED_COMMANDS or size > MAX_PIPELINED_REPLY_BYTES):
            break
        batch.append(read)
    return batch

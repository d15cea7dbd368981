"""What flows into and out of the journal: contents, states, intents, changes and sessions. Pure; no SQL.

A *content* is bytes with their length and SHA-256, read in chunks. A *state* is what a target (a key or a hash field)
held at one moment. An *intent* is a change about to be made; a *change* is the journal's row of it. Sizes are bytes,
expiries absolute Unix times in milliseconds, times UTC.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

from redisfuse.batching import CHUNK_BYTES
from redisfuse.errors import JournalError

StateKind = Literal["absent", "value", "slice", "object", "directory"]
Outcome = Literal["pending", "applied", "failed", "unknown", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("pending", "applied", "failed", "unknown", "refused")


class Blob:
    """Bytes that may be too many for memory: `size`, `digest` (SHA-256, 32 bytes), and `iter_chunks()` as often as wanted.

    Two contents are equal when their digests are.
    """

    __slots__ = ("_source", "digest", "size")

    def __init__(self, size: int, digest: bytes, source: bytes | Callable[[], Iterator[bytes]]) -> None:
        self.size = size
        self.digest = digest
        self._source = source

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Blob:
        """The content that is these bytes."""
        data = bytes(data)
        return cls(len(data), hashlib.sha256(data).digest(), data)

    @classmethod
    def from_file(cls, file: BinaryIO, offset: int = 0, size: int | None = None) -> Blob:
        """The bytes of `file` from `offset`, `size` of them (default: to its end).

        Up to one chunk is copied into memory. Of more only the digest is taken now (one pass), and the file must
        stay open and unaltered while the content is in use; its position is moved by reading.
        Raises JournalError if the file is shorter than `offset + size`.
        """
        if size is None:
            size = file.seek(0, os.SEEK_END) - offset
        source = _FileRegion(file, offset, max(size, 0))
        if source.size <= CHUNK_BYTES:
            return cls.from_bytes(b"".join(source()))
        sha = hashlib.sha256()
        for chunk in source():
            sha.update(chunk)
        return cls(source.size, sha.digest(), source)

    @classmethod
    def from_chunks(cls, chunks: Iterator[bytes], spool: BinaryIO) -> Blob:
        """The concatenation of `iter_chunks`, collected in `spool` (an empty file opened for reading and writing)."""
        for chunk in chunks:
            spool.write(chunk)
        spool.flush()
        return cls.from_file(spool)

    def iter_chunks(self) -> Iterator[bytes]:
        """The bytes from the first to the last, at most 1 MiB at a time, none of the pieces empty."""
        if isinstance(self._source, bytes):
            view = self._source
            if len(view) <= CHUNK_BYTES:
                if view:
                    yield view
                return
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]
        else:
            yield from self._source()

    def read(self) -> bytes:
        """All the bytes at once: for small contents."""
        return self._source if isinstance(self._source, bytes) else b"".join(self.iter_chunks())

    def read_prefix(self, max_bytes: int) -> bytes:
        """The first `limit` bytes, reading no further than needed. (Unchecked: a digest is only known at the end.)"""
        found = bytearray()
        for chunk in self.iter_chunks():
            found += chunk[: max_bytes - len(found)]
            if len(found) >= max_bytes:
                break
        return bytes(found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Blob):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Content of {self.size} bytes, {self.digest.hex()[:12]}>"


@dataclass(frozen=True, slots=True)
class _FileRegion:
    """A region of an open file, read in chunks."""

    file: BinaryIO
    offset: int
    size: int

    def __call__(self) -> Iterator[bytes]:
        position, left = self.offset, self.size
        while left:
            self.file.seek(position)
            chunk = self.file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise JournalError(f"a file that was to be journaled became shorter ({left} bytes are missing)")
            yield chunk
            position += len(chunk)
            left -= len(chunk)


@dataclass(frozen=True, slots=True)
class State:
    """What a target held, or holds.

    kind: `absent`; `value`, a whole string or field; `slice`, part of a big string; `object`, any other type;
    `directory`, an empty directory (it is in no server, only in the journal).
    """

    kind: StateKind
    type: bytes = b"none"  # the server's word (b"string", b"hash" …); of a hash field b"field"
    content: Blob | None = None  # value, slice: the bytes. object: its DUMP payload, None when over --dump-limit
    portable_copy: Blob | None = None  # object: the portable copy of its elements (journal/portable.py)
    offset: int = 0  # slice: where its first byte is in the string
    total_size: int = 0  # slice: length of the whole string in this state
    expires_at: int | None = None  # the key's expiry, absolute ms; None: it has none
    field_expires_at: int | None = None  # the field's own expiry, absolute ms; None: it has none
    dump_version: str | None = None  # object: who made the DUMP, such as "redis 7.0.15"
    note: str | None = None  # what this state could not carry, in words for the user

    @classmethod
    def from_value(
        cls,
        content: Blob | bytes,
        type: bytes = b"string",
        *,
        expires_at: int | None = None,
        field_expires_at: int | None = None,
    ) -> State:
        """A whole string, or (type b"field") a whole hash field."""
        if isinstance(content, bytes):
            content = Blob.from_bytes(content)
        return cls("value", type, content, expires_at=expires_at, field_expires_at=field_expires_at)

    @classmethod
    def from_slice(
        cls,
        content: Blob | bytes,
        offset: int,
        total_size: int,
        type: bytes = b"string",
        *,
        expires_at: int | None = None,
        field_expires_at: int | None = None,
    ) -> State:
        """The bytes at `offset` of a string that is `total_size` bytes long; what lies outside is not recorded."""
        if isinstance(content, bytes):
            content = Blob.from_bytes(content)
        return cls(
            "slice",
            type,
            content,
            offset=offset,
            total_size=total_size,
            expires_at=expires_at,
            field_expires_at=field_expires_at,
        )

    @classmethod
    def from_object(
        cls,
        type: bytes,
        dump: Blob | bytes | None,
        portable_copy: Blob | None,
        *,
        expires_at: int | None = None,
        dump_version: str | None = None,
        note: str | None = None,
    ) -> State:
        """A key of any type but string: its DUMP payload, its portable copy, or both."""
        if isinstance(dump, bytes):
            dump = Blob.from_bytes(dump)
        return cls("object", type, dump, portable_copy, expires_at=expires_at, dump_version=dump_version, note=note)

    @property
    def size(self) -> int | None:
        """Bytes of the string or field in this state; of an object its portable copy's; None where there is nothing."""
        if self.kind in ("absent", "directory"):
            return None
        if self.kind == "slice":
            return self.total_size
        content = self.portable_copy if self.kind == "object" and self.portable_copy is not None else self.content
        return None if content is None else content.size


ABSENT = State("absent")
DIRECTORY = State("directory", b"directory")


@dataclass(frozen=True, slots=True)
class ChangeIntent:
    """One key or field about to be changed, and the user's operation that it is part of."""

    path: bytes  # below the mount point, as the user named it, without a leading slash
    op: str  # create, write, append, truncate, remove, rename, expire, mkdir, rmdir, rollback, apply
    key: bytes
    field: bytes | None
    prior: State
    new: State
    reverts: int | None = None  # the change whose prior state this one writes back
    applies: int | None = None  # the refused change whose new state this one writes
    new_path: bytes | None = None  # rename: the path it gets


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the journal."""

    id: int
    session_id: int
    group_id: int  # id of the first change of the operation
    recorded_at: int  # when the intent was made, ms
    path: bytes
    op: str
    key: bytes
    field: bytes | None
    prior: State
    new: State
    outcome: Outcome
    error: str | None  # why it failed or was refused
    reverts: int | None
    applies: int | None
    new_path: bytes | None
    settled_at: int | None  # when its state was last set after the intent, ms
    server_name: str  # name of the server, as ServerIdentity.name


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which database of which server: enough to find it again, never a password."""

    scheme: str = "redis"
    host: str | None = None
    port: int | None = None
    unix_path: str | None = None
    db: int = 0
    username: str | None = None
    redacted_url: str = ""  # masked

    @property
    def name(self) -> str:
        """What is the same for two mounts of the same data: `host:port/db`, or `/path/to/socket/db`."""
        if self.unix_path is not None:
            return f"{self.unix_path}/{self.db}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or "localhost"
        return f"{host}:{self.port or 6379}/{self.db}"


@dataclass(frozen=True, slots=True)
class SessionMetadata:
    """Who changes what from where: one mount, or one command that changes something."""

    server: ServerIdentity
    run_id: str = ""
    server_version: str = ""  # such as "7.0.15"
    vendor: str = ""  # "redis" or "valkey"
    mountpoint: str | None = None  # None: a command, not a mount
    user: str = field(default_factory=lambda: _get_user_name())
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    process_identity: str | None = field(default_factory=lambda: read_process_identity(os.getpid()))
    options: Mapping[str, object] = field(default_factory=dict)  # written as JSON; never a secret


@dataclass(frozen=True)
class JournalSession:
    """One row of the journal's sessions."""

    id: int
    metadata: SessionMetadata
    started_at: int  # ms
    ended_at: int | None  # ms; None: it still runs, or died

    @cached_property
    def has_died(self) -> bool:
        """True if it never ended and its process is gone. (Of another host's sessions nothing is known.)"""
        if self.ended_at is not None or self.metadata.host != socket.gethostname():
            return False
        mark = read_process_identity(self.metadata.pid)
        if mark is None:
            return not _process_exists(self.metadata.pid)
        return self.metadata.process_identity is not None and mark != self.metadata.process_identity


def read_process_identity(pid: int) -> str | None:
    """A text that no other process will ever have: the boot and the process's start in it (proc(5), field 22).

    None where there is no /proc or no such process; empty for a dead one that nobody has taken notice of (a zombie).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat.rpartition(b")")[2].split()
    return "" if state in (b"Z", b"X") else f"{boot}.{fields[18].decode()}"


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _get_user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return str(os.getuid())

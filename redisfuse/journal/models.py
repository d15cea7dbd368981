"""The journal's data: states, intents, changes and sessions. Pure.

A *state* is the type, content and expiry of a target (a key or a hash field) at one moment. An *intent* is a change
that is about to be made; a *change* is its row in the journal. Sizes are in bytes; times and expiries are absolute Unix
times in milliseconds.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from redisfuse.journal.content import Blob
from redisfuse.journal.processes import CallingProcess

StateKind = Literal["absent", "value", "slice", "object", "directory"]
Outcome = Literal["pending", "applied", "failed", "unknown", "refused", "held"]


@dataclass(frozen=True, slots=True)
class State:
    """The type, content and expiry of a target at one moment.

    kind: `absent`; `value`, a whole string or field; `slice`, a range of a large string; `object`, a key of any other
    type; `directory`, an empty directory (which no server has, only the journal).
    """

    kind: StateKind
    type: bytes = b"none"  # as TYPE returns it (b"string", b"hash" …); b"field" for a hash field
    content: Blob | None = None  # value, slice: the bytes. object: the DUMP payload, None if over --dump-limit
    portable_copy: Blob | None = None  # object: a copy of its elements (journal/portable.py)
    offset: int = 0  # slice: the position of its first byte in the string
    total_size: int = 0  # slice: length of the whole string in this state
    expires_at: int | None = None  # the key's, absolute ms; None: no expiry
    field_expires_at: int | None = None  # the field's own, absolute ms; None: no expiry
    dump_version: str | None = None  # object: the server of the DUMP, such as "redis 7.0.15"
    note: str | None = None  # for the user: what this record of the state lacks

    @classmethod
    def from_value(
        cls,
        content: Blob | bytes,
        type: bytes = b"string",
        *,
        expires_at: int | None = None,
        field_expires_at: int | None = None,
    ) -> State:
        """Create the state of a whole string or (type b"field") a whole hash field."""
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
        """Create the state of a range of a string of `total_size` bytes.

        The rest of the string is not recorded.
        """
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
        """Create the state of a key that is not a string.

        It has a DUMP payload, a portable copy, or both.
        """
        if isinstance(dump, bytes):
            dump = Blob.from_bytes(dump)
        return cls("object", type, dump, portable_copy, expires_at=expires_at, dump_version=dump_version, note=note)

    @property
    def size(self) -> int | None:
        """The bytes of the string, field or portable copy; None if absent.

        An object without a portable copy has the size of its DUMP payload. Of a slice, it is the whole string's size.
        """
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
    """A change of one key or field that is about to be made."""

    path: bytes  # below the mount point, as the user named it, without a leading slash
    op: str  # create, write, append, truncate, remove, rename, expire, mkdir, rmdir, rollback, apply
    key: bytes
    field: bytes | None
    prior: State
    new: State
    reverts: int | None = None  # the change whose prior state this one writes back
    reverts_through: int | None = None  # with it, all changes of the target up to this one are taken back
    reverts_part: int | None = None  # the change of whose text this one takes back some places
    applies: int | None = None  # the refused change whose new state this one writes
    new_path: bytes | None = None  # rename: the new path
    supersedes: int | None = None  # the held change of the same content, whose row this one replaces
    process: CallingProcess | None = None  # the process that makes the change; None: unknown


@dataclass(frozen=True, slots=True)
class Change:
    """One row of `changes`."""

    id: int
    session_id: int
    group_id: int  # id of the first change of the same operation
    recorded_at: int  # ms
    path: bytes
    op: str
    key: bytes
    field: bytes | None
    prior: State
    new: State
    outcome: Outcome
    error: str | None  # the reason why it failed or was refused
    reverts: int | None
    applies: int | None
    new_path: bytes | None
    settled_at: int | None  # when the outcome was last recorded, ms; None: never
    server_name: str  # ServerIdentity.name
    connection_id: str | None = None  # the connection that was to execute it; None: unknown
    operation_id: int = 0  # id of the first change of the process's operation, of which the group is a part
    pid: int | None = None  # the process that made it; None: unknown
    command: str | None = None  # the name of that process
    reverts_through: int | None = None  # with `reverts`: the last of the changes that this one took back
    reverts_part: int | None = None  # the change of whose text this one took back some places

    @property
    def own_path(self) -> bytes:
        """The path of its key: of the row of a rename's new name, the new one."""
        return self.path if self.new_path is None or self.new.kind == "absent" else self.new_path


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A database of a server: enough to connect to it again, but never a password."""

    scheme: str = "redis"
    host: str | None = None
    port: int | None = None
    unix_path: str | None = None
    db: int = 0
    username: str | None = None
    redacted_url: str = ""  # its password is masked

    @property
    def name(self) -> str:
        """The name of the data: `host:port/db` or `/path/to/socket/db`.

        It is equal for two mounts of the same data.
        """
        if self.unix_path is not None:
            return f"{self.unix_path}/{self.db}"
        if self.scheme == "cluster":
            return f"{self.host}/{self.db}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or "localhost"
        return f"{host}:{self.port or 6379}/{self.db}"


@dataclass(frozen=True, slots=True)
class ServerFingerprint:
    """The evidence by which a server is recognized after a restart."""

    replication_id: str = ""  # master_replid, which a restart may keep and a promoted replica continues
    key_count: int | None = None  # of the database; None: the user may not ask
    sampled_keys: Mapping[bytes, bytes] = field(default_factory=dict)  # some keys, and digests of their contents


@dataclass(frozen=True, slots=True)
class SessionMetadata:
    """The server, user, host and process of a session.

    A session is one mount for writing, or one command that changes keys.
    """

    server: ServerIdentity
    run_id: str = ""
    server_version: str = ""  # such as "7.0.15"
    vendor: str = ""  # "redis" or "valkey"
    mountpoint: str | None = None  # None: a command, not a mount
    user: str = field(default_factory=lambda: _get_user_name())
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    process_identity: str | None = field(default_factory=lambda: read_process_identity(os.getpid()))
    options: Mapping[str, object] = field(default_factory=dict)  # recorded as JSON; never a secret
    fingerprint: ServerFingerprint | None = None  # only of a session that begins: Journal.get_fingerprint reads it


@dataclass(frozen=True)
class JournalSession:
    """One row of `sessions`."""

    id: int
    metadata: SessionMetadata
    started_at: int  # ms
    ended_at: int | None  # ms; None: it is running, or its process died

    @cached_property
    def has_died(self) -> bool:
        """Whether the session has no end, but its process has.

        Always false for a session of another host.
        """
        if self.ended_at is not None or self.metadata.host != socket.gethostname():
            return False
        identity = read_process_identity(self.metadata.pid)
        if identity is None:
            return not _process_exists(self.metadata.pid)
        return self.metadata.process_identity is not None and identity != self.metadata.process_identity


def read_process_identity(pid: int) -> str | None:
    """Return a text that identifies a process forever.

    It is the boot id and the start time (proc(5), field 22). None if there is no /proc or no such process; empty for a
    zombie (a dead process that its parent has not waited for).
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat.rpartition(b")")[2].split()
    return "" if state in (b"Z", b"X") else f"{boot_id}.{fields[18].decode()}"


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
    except (KeyError, OSError):  # the uid has no name
        return str(os.getuid())

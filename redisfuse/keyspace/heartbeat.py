"""The periodic report of the server.

It has the server's counts of keys, and the state of a replica's link to its master.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.client import RedisCommand
from redisfuse.errors import RedisFuseError, UnavailableError

_MAX_DIGITS = 19  # of a number in INFO


class CommandExecutor(Protocol):
    """Executes commands in one round trip."""

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies, errors among them as values."""


@dataclass(frozen=True, slots=True)
class MasterLink:
    """The link of a replica to its master.

    While it is down, the replica serves old values.
    """

    master: str  # HOST:PORT
    is_up: bool
    is_syncing: bool  # a full resync is in progress
    down_seconds: int  # since when it is down; 0 if unknown

    @property
    def text(self) -> str:
        """The state for messages."""
        if self.is_up:
            return f"the link to the master {self.master} is up"
        duration = f" since {self.down_seconds} s" if self.down_seconds else ""
        activity = ", a full resync is in progress" if self.is_syncing else ""
        return f"the link to the master {self.master} is down{duration}{activity}: what is shown may be old"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One report. None: the ACL denies it."""

    key_count: int | None  # keys in the database
    expiring_count: int | None  # those of them that have a time to live
    swapdb_count: int | None  # SWAPDB calls since the statistics were reset
    master_link: MasterLink | None  # also None if the server is no replica


class HeartbeatQuery:
    """Fetches reports about one database.

    With INFO, or only DBSIZE if the ACL denies it. Used by one thread.
    """

    def __init__(self, db: int) -> None:
        self._db = db
        self._may_use_info = True

    def fetch(self, executor: CommandExecutor, server_info: ServerInfo) -> Heartbeat:
        """Fetch a report, in one round trip. Raises UnavailableError."""
        if self._may_use_info:
            replies = executor.execute(_info_commands(server_info))
            errors = [reply for reply in replies if isinstance(reply, RedisFuseError)]
            if not errors:
                return self._parse(b"\n".join(map(_to_bytes, replies)))
            self._may_use_info = any(isinstance(error, UnavailableError) for error in errors)
        size = executor.execute([(b"DBSIZE",)])[0]
        return Heartbeat(size if isinstance(size, int) else None, None, None, None)

    def _parse(self, info: bytes) -> Heartbeat:
        lines = _split_lines(info)
        keys = _parse_numbers(lines.get(b"db%d" % self._db, b""))
        swaps = _parse_numbers(lines.get(b"cmdstat_swapdb", b""))
        return Heartbeat(keys.get(b"keys", 0), keys.get(b"expires", 0), swaps.get(b"calls", 0), _parse_link(lines))


def parse_master_link(reply: Any) -> MasterLink | None:
    """Parse a reply to `INFO replication`.

    Returns None if the server is no replica, or the ACL denies INFO.
    """
    return None if isinstance(reply, RedisFuseError) else _parse_link(_split_lines(_to_bytes(reply)))


def _split_lines(info: bytes) -> dict[bytes, bytes]:
    return {name: value for name, colon, value in (line.partition(b":") for line in info.splitlines()) if colon}


def _info_commands(server_info: ServerInfo) -> list[RedisCommand]:
    sections = (b"keyspace", b"commandstats", b"replication")
    if server_info.version_at_least((7, 0)):  # which takes several sections
        return [(b"INFO", *sections)]
    return [(b"INFO", section) for section in sections]


def _to_bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _parse_numbers(text: bytes) -> dict[bytes, int]:
    """Return the `name=number` pairs of a line."""
    pairs = (part.partition(b"=") for part in text.split(b","))
    return {name: _parse_number(value) for name, _, value in pairs}


def _parse_number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else 0


def _parse_link(lines: dict[bytes, bytes]) -> MasterLink | None:
    if lines.get(b"role") != b"slave":
        return None
    host, port = lines.get(b"master_host", b""), lines.get(b"master_port", b"")
    return MasterLink(
        master=(host + b":" + port).decode("utf-8", "replace"),
        is_up=lines.get(b"master_link_status") == b"up",
        is_syncing=lines.get(b"master_sync_in_progress") == b"1",
        down_seconds=_parse_number(lines.get(b"master_link_down_since_seconds", b"")),
    )

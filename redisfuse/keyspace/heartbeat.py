"""The periodic report of the server.

It has the server's counts of keys, and the state of a replica's link to its master.
"""

from __future__ import annotations

from dataclasses import dataclass

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import CommandExecutor
from redisfuse.client.client import RedisCommand
from redisfuse.client.info import parse_numbers, split_info
from redisfuse.client.replication import MasterLink, parse_link
from redisfuse.errors import RedisFuseError, UnavailableError


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One report. None: the ACL denies it."""

    key_count: int | None  # keys in the database
    expiring_count: int | None  # those of them that have a time to live
    swapdb_count: int | None  # SWAPDB calls since the statistics were reset
    master_link: MasterLink | None  # also None if the server is not a replica
    is_master: bool = False


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
                return self._parse({name: value for reply in replies for name, value in split_info(reply).items()})
            self._may_use_info = any(isinstance(error, UnavailableError) for error in errors)
        size = executor.execute([(b"DBSIZE",)])[0]
        return Heartbeat(size if isinstance(size, int) else None, None, None, None)

    def _parse(self, lines: dict[bytes, bytes]) -> Heartbeat:
        keys = parse_numbers(lines.get(b"db%d" % self._db, b""))
        swaps = parse_numbers(lines.get(b"cmdstat_swapdb", b""))
        return Heartbeat(
            key_count=keys.get(b"keys", 0),
            expiring_count=keys.get(b"expires", 0),
            swapdb_count=swaps.get(b"calls", 0),
            master_link=parse_link(lines),
            is_master=lines.get(b"role") == b"master",
        )


def _info_commands(server_info: ServerInfo) -> list[RedisCommand]:
    sections = (b"keyspace", b"commandstats", b"replication")
    if server_info.version_at_least((7, 0)):  # which takes several sections
        return [(b"INFO", *sections)]
    return [(b"INFO", section) for section in sections]

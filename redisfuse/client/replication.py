"""The link of a replica to its master, and the age of what the replica serves.

A replica whose link is down serves the values that it has, and nothing in its replies shows that. `--max-lag` refuses
values that may be older than a limit.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

from redisfuse.client.channel import Channel
from redisfuse.client.info import parse_number, split_info
from redisfuse.errors import RedisFuseError, UnavailableError

MAX_REPORT_AGE_SECONDS = 2.5
"""An older report on the link is not used: the next read begins with another query."""


@dataclass(frozen=True, slots=True)
class MasterLink:
    """The link of a replica to its master.

    While it is down, the replica serves old values.
    """

    master: str  # HOST:PORT
    is_up: bool
    is_syncing: bool  # a full resync is in progress
    down_seconds: int  # since when it is down; 0 if unknown
    silent_seconds: int = 0  # while it is up: since the master's last message

    @property
    def text(self) -> str:
        """The state for messages."""
        if self.is_up:
            return f"the link to the master {self.master} is up"
        duration = f" since {self.down_seconds} s" if self.down_seconds else ""
        activity = ", a full resync is in progress" if self.is_syncing else ""
        return f"the link to the master {self.master} is down{duration}{activity}: what is shown may be old"


def parse_master_link(reply: Any) -> MasterLink | None:
    """Parse a reply to `INFO replication`.

    Returns None if the server is not a replica, or the ACL denies INFO.
    """
    return None if isinstance(reply, RedisFuseError) else parse_link(split_info(reply))


def parse_link(lines: dict[bytes, bytes]) -> MasterLink | None:
    """Parse the lines of INFO. Returns None if the server is not a replica."""
    if lines.get(b"role") != b"slave":
        return None
    host, port = lines.get(b"master_host", b""), lines.get(b"master_port", b"")
    return MasterLink(
        master=(host + b":" + port).decode("utf-8", "replace"),
        is_up=lines.get(b"master_link_status") == b"up",
        is_syncing=lines.get(b"master_sync_in_progress") == b"1",
        down_seconds=parse_number(lines.get(b"master_link_down_since_seconds", b"")),
        silent_seconds=parse_number(lines.get(b"master_last_io_seconds_ago", b"")),
    )


class OutdatedReplicaError(UnavailableError):
    """The values of a replica are older than `--max-lag` allows."""


class LagGuard:
    """Refuses reads of a replica that may be older than `max_lag` seconds; 0: none.

    Thread-safe; its lock is a leaf.
    """

    def __init__(self, max_lag: float) -> None:
        self.max_lag = max_lag
        self._lock = threading.Lock()
        self._link: MasterLink | None = None
        self._reported_at = 0.0
        self._current_at: float | None = None  # the last moment at which the replica had all that the master had sent

    def record(self, link: MasterLink | None) -> None:
        """Take over a report; None: the server reports no link."""
        now = time.monotonic()
        with self._lock:
            if link is None:
                self._current_at = None
            elif link.is_up:
                self._current_at = now - link.silent_seconds
            elif self._current_at is None or (self._link is not None and self._link.master != link.master):
                self._current_at = now - link.down_seconds
            self._link, self._reported_at = link, now

    @property
    def is_due(self) -> bool:
        """Whether the last report is too old to be used."""
        return time.monotonic() - self._reported_at > MAX_REPORT_AGE_SECONDS

    @property
    def lag_seconds(self) -> float | None:
        """How old the values may be; None if that is unknown."""
        current_at = self._current_at
        return None if current_at is None else max(0.0, time.monotonic() - current_at)

    @property
    def is_exceeded(self) -> bool:
        """Whether the values may be older than allowed."""
        lag = self.lag_seconds
        return self.max_lag > 0 and (lag is None or lag > self.max_lag)

    def require_current(self) -> None:
        """Raise OutdatedReplicaError if the values may be older than allowed."""
        if self.is_exceeded:
            raise OutdatedReplicaError(self.explain())

    def explain(self) -> str:
        """Return why reads are refused."""
        lag, link = self.lag_seconds, self._link
        if lag is None or link is None:
            return f"the age of the replica's values is unknown (--max-lag {self.max_lag:g})"
        state = "is silent" if link.is_up else "is down"
        return (
            f"the replica's values may be {lag:.0f} s old, as its link to the master {link.master} {state} "
            f"(--max-lag {self.max_lag:g})"
        )

    def check(self, channel: Channel) -> None:
        """Raise OutdatedReplicaError as `require_current`.

        Queries the replica first if that is due.
        """
        if self.max_lag <= 0:
            return
        if self.is_due:
            self.record(parse_master_link(channel.execute([(b"INFO", b"replication")])[0]))
        self.require_current()

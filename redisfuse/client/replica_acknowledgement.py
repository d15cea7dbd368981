"""Waits until replicas have what their master has (`--wait-replicas`)."""

import time

from redisfuse.client.channel import Channel
from redisfuse.client.info import parse_number, split_info
from redisfuse.errors import AccessError, RedisFuseError, UnconfirmedWriteError

_MAX_STATE_WAIT_SECONDS = 1.5  # replicas report their offsets every second
_POLL_SECONDS = 0.1


def require_wait_permission(channel: Channel) -> None:
    """Raise AccessError if the user may not use WAIT."""
    reply = channel.execute([(b"WAIT", 0, 1)])[0]
    if isinstance(reply, AccessError):
        raise AccessError(f"--wait-replicas needs the ACL rule +wait: {reply}")


def wait_for_write(channel: Channel, count: int, timeout: float) -> None:
    """Wait until `count` replicas have the writes of this channel.

    Raises UnconfirmedWriteError after `timeout` seconds, UnavailableError.
    """
    channel.send([(b"WAIT", count, max(1, int(timeout * 1000)))])
    reply = channel.receive(timeout + 1)
    if isinstance(reply, RedisFuseError):
        raise UnconfirmedWriteError(f"the server refused WAIT: {reply}")
    _require(reply if isinstance(reply, int) else 0, count, timeout)


def wait_for_state(channel: Channel, count: int, timeout: float) -> None:
    """Wait until `count` replicas have all that the server has now.

    Raises UnconfirmedWriteError after at most 1.5 s, UnavailableError.
    """
    timeout = min(timeout, _MAX_STATE_WAIT_SECONDS)
    deadline = time.monotonic() + timeout
    offset = None
    while True:
        reply = channel.execute([(b"INFO", b"replication")])[0]
        if isinstance(reply, RedisFuseError):
            raise UnconfirmedWriteError(f"the offsets of the replicas are unknown: {reply}")
        lines = split_info(reply)
        if offset is None:
            offset = parse_number(lines.get(b"master_repl_offset", b""))
        confirmed = sum(_is_replica_at(value, offset) for name, value in lines.items() if name.startswith(b"slave"))
        if confirmed >= count or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    _require(confirmed, count, timeout)


def _is_replica_at(line: bytes, offset: int) -> bool:
    """Return whether a line of INFO is that of a replica with this offset.

    Its value is `ip=...,port=...,state=online,offset=...,lag=...`.
    """
    values = dict(part.partition(b"=")[::2] for part in line.split(b","))
    return values.get(b"state") == b"online" and parse_number(values.get(b"offset", b"")) >= offset


def _require(confirmed: int, count: int, timeout: float) -> None:
    if confirmed < count:
        raise UnconfirmedWriteError(
            f"{confirmed} of the {count} replicas of --wait-replicas confirmed the write within {timeout:.1f} s"
        )

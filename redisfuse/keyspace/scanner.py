"""One incremental SCAN of the whole database."""

from __future__ import annotations

from collections.abc import Iterator

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.client.scan_guard import ScanGuard
from redisfuse.errors import RedisFuseError

_GLOB_METACHARACTERS = b"*?[]\\^"  # bytes with a special meaning in a Redis glob


MAX_UNCOUNTED_KEYS = 1 << 40
"""Assumed where the ACL denies DBSIZE and only some of the keys are returned."""


class ScanObserver:
    """An observer of a scan that ignores everything, to be overridden."""

    def before_scan_command(self) -> None:
        """Note that a SCAN is about to be sent."""

    def set_total(self, total: int) -> None:
        """Receive DBSIZE, once; not called if the ACL denies DBSIZE."""


def build_match_pattern(prefix: bytes) -> bytes:
    """Return the MATCH pattern of the keys that begin with exactly these bytes."""
    return (
        b"".join(b"\\" + bytes((byte,)) if byte in _GLOB_METACHARACTERS else bytes((byte,)) for byte in prefix) + b"*"
    )


def scan_keys(
    client: RedisClient, *, prefix: bytes = b"", type: bytes | None = None, observer: ScanObserver | None = None
) -> Iterator[list[bytes]]:
    """Yield the keys in batches of about `limits.scan_count`.

    With `type` only those of this type, as TYPE replies it; servers before Redis 6 can't select by type.

    A key may be yielded twice; one that is created or deleted during the scan may be yielded or not. The next SCAN is
    sent before a batch is yielded, so that the server works while the caller processes the batch. Raises
    UnavailableError, also for a scan that has far more replies than DBSIZE explains, and AccessError.
    """
    observer = observer or ScanObserver()
    count = client.limits.scan_count
    options: list[bytes | str | int] = [b"COUNT", count]
    if prefix:
        options += [b"MATCH", build_match_pattern(prefix)]
    if type is not None:
        options += [b"TYPE", type]
    guard = ScanGuard("SCAN", client.limits.timeout)
    with client.dedicated_channel() as channel:
        observer.before_scan_command()
        first: list[RedisCommand] = [(b"DBSIZE",), (b"SCAN", b"0", *options)]
        channel.send(first)
        total = channel.receive()
        if isinstance(total, int):
            observer.set_total(total)
            guard.expect_elements(total, count)
        cursor = b"0"
        key_count = 0
        while True:
            reply = channel.receive()
            if isinstance(reply, RedisFuseError):
                raise reply
            sent, (cursor, keys) = cursor, reply
            key_count += len(keys)
            if guard.is_exhausted:  # the database may have grown
                total = channel.execute([(b"DBSIZE",)])[0]
                is_filtered = bool(prefix) or type is not None
                expected = total if isinstance(total, int) else MAX_UNCOUNTED_KEYS if is_filtered else key_count
                guard.expect_elements(expected, count)
            guard.check(sent, cursor)
            if cursor != b"0":
                observer.before_scan_command()
                channel.send([(b"SCAN", cursor, *options)])
            yield keys
            if cursor == b"0":
                return

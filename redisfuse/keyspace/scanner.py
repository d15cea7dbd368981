"""One incremental SCAN of the whole database, as pieces of keys."""

from collections.abc import Callable, Iterator

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import RedisFuseError, ServerReplyError

_GLOB_METACHARACTERS = b"*?[]\\^"  # what a glob of Redis reads as more than itself


def build_match_pattern(prefix: bytes) -> bytes:
    """The MATCH pattern of the keys that begin with exactly these bytes."""
    return (
        b"".join(b"\\" + bytes((byte,)) if byte in _GLOB_METACHARACTERS else bytes((byte,)) for byte in prefix) + b"*"
    )


def scan_keys(
    client: RedisClient,
    *,
    prefix: bytes = b"",
    before_scan: Callable[[], None] = lambda: None,
    on_total: Callable[[int], None] = lambda _total: None,
) -> Iterator[list[bytes]]:
    """The keys, in pieces of about `limits.scan_count`; a key may come twice, and one that is made or removed meanwhile
    may come or not.

    The next SCAN is sent before a piece is given out, so that the server works while the piece is digested;
    `before_each` is called before every SCAN is sent, `on_total` once with DBSIZE.
    Raises UnavailableError, AccessError.
    """
    options: list[bytes | str | int] = [b"COUNT", client.limits.scan_count]
    if prefix:
        options += [b"MATCH", build_match_pattern(prefix)]
    with client.dedicated_channel() as dialogue:
        before_scan()
        first: list[RedisCommand] = [(b"DBSIZE",), (b"SCAN", b"0", *options)]
        dialogue.send(first)
        total = dialogue.receive()
        if isinstance(total, int):  # else a user who may not ask, who then sees no progress
            on_total(total)
        while True:
            answer = dialogue.receive()
            if isinstance(answer, RedisFuseError):
                raise answer
            if not (isinstance(answer, list) and len(answer) == 2 and isinstance(answer[1], list)):
                raise ServerReplyError("the server's answer to SCAN makes no sense")
            cursor, keys = answer
            if cursor != b"0":
                before_scan()
                dialogue.send([(b"SCAN", cursor, *options)])
            yield keys
            if cursor == b"0":
                return

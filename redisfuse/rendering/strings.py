"""A string: its bytes. Read by GETRANGE in pieces of at most 1 MiB; a change of its length on the way is an error."""

from collections.abc import Iterator, Sequence

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError


def fetch_length(client: RedisClient, key: bytes) -> int:
    """Its length in bytes. Raises NotFoundError, WrongTypeError."""
    found, there = client.execute_many([(b"STRLEN", key), (b"EXISTS", key)])
    for reply in (found, there):
        if isinstance(reply, RedisFuseError):
            raise reply
    if not there:
        raise NotFoundError(f"key {key!r} does not exist")
    assert isinstance(found, int)
    return found


def fetch_ranges(
    client: RedisClient, key: bytes, expected_length: int, byte_ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
    """The bytes from each start to each end (exclusive, at most 1 MiB apart, within `whole`), in one exchange.

    `whole` is the length that the string had. Raises ConflictError if it has another now (0 if the key is gone, so that
    no zeros are made up); WrongTypeError.
    """
    commands = [(b"GETRANGE", key, start, end - 1) for start, end in byte_ranges]
    replies = client.execute_many([*commands, (b"STRLEN", key)])
    for reply in replies:
        if isinstance(reply, RedisFuseError):
            raise reply
    *pieces, now = replies
    if now != expected_length or any(
        len(piece) != end - start for piece, (start, end) in zip(pieces, byte_ranges, strict=True)
    ):
        raise ConflictError(
            f"string {key!r} was changed while it was read: it had {expected_length} bytes and has {now} now"
        )
    return pieces


def iter_chunks(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """All its bytes. Raises NotFoundError and as `fetch_ranges` does."""
    whole = fetch_length(client, key)
    for start in range(0, whole, CHUNK_BYTES):
        yield from fetch_ranges(client, key, whole, [(start, min(start + CHUNK_BYTES, whole))])

"""Strings: their bytes, by GETRANGE in chunks of at most 1 MiB.

A change of the length on the way is an error.
"""

from collections.abc import Iterator, Sequence

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError


def fetch_length(client: RedisClient, key: bytes) -> int:
    """Return the length in bytes. Raises NotFoundError, WrongTypeError."""
    length, exists = client.execute_many([(b"STRLEN", key), (b"EXISTS", key)])
    for reply in (length, exists):
        if isinstance(reply, RedisFuseError):
            raise reply
    if not exists:
        raise NotFoundError(f"key {key!r} does not exist")
    assert isinstance(length, int)
    return length


def fetch_ranges(
    client: RedisClient, key: bytes, expected_length: int, byte_ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
    """Return the bytes of each (start, end), in one round trip.

    Ends are exclusive, within `expected_length` and at most 1 MiB from their starts. Raises WrongTypeError;
    ConflictError if the string has another length now (0 if the key was deleted, so that no zeros are invented).
    """
    commands = [(b"GETRANGE", key, start, end - 1) for start, end in byte_ranges]
    replies = client.execute_many([*commands, (b"STRLEN", key)])
    for reply in replies:
        if isinstance(reply, RedisFuseError):
            raise reply
    *chunks, length = replies
    if length != expected_length or any(
        len(chunk) != end - start for chunk, (start, end) in zip(chunks, byte_ranges, strict=True)
    ):
        raise ConflictError(
            f"string {key!r} was changed while it was read: it had {expected_length} bytes and has {length} now"
        )
    return chunks


def iter_chunks(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """Yield all bytes, in chunks. Raises NotFoundError, and as `fetch_ranges` does."""
    length = fetch_length(client, key)
    for start in range(0, length, CHUNK_BYTES):
        yield from fetch_ranges(client, key, length, [(start, min(start + CHUNK_BYTES, length))])

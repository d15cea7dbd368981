"""A string: its bytes. Read by GETRANGE in pieces of at most 1 MiB; a change of its length on the way is an error."""

from collections.abc import Iterator, Sequence

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError


def length(server: Server, key: bytes) -> int:
    """Its length in bytes. Raises NotFoundError, WrongTypeError."""
    found, there = server.ask_many([(b"STRLEN", key), (b"EXISTS", key)])
    for reply in (found, there):
        if isinstance(reply, RedisFuseError):
            raise reply
    if not there:
        raise NotFoundError(f"key {key!r} does not exist")
    assert isinstance(found, int)
    return found


def ranges(server: Server, key: bytes, whole: int, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from each start to each end (exclusive, at most 1 MiB apart, within `whole`), in one exchange.

    `whole` is the length that the string had. Raises ConflictError if it has another now (0 if the key is gone, so that
    no zeros are made up); WrongTypeError.
    """
    commands = [(b"GETRANGE", key, start, end - 1) for start, end in wanted]
    replies = server.ask_many([*commands, (b"STRLEN", key)])
    for reply in replies:
        if isinstance(reply, RedisFuseError):
            raise reply
    *pieces, now = replies
    if now != whole or any(len(piece) != end - start for piece, (start, end) in zip(pieces, wanted, strict=True)):
        raise ConflictError(f"string {key!r} was changed while it was read: it had {whole} bytes and has {now} now")
    return pieces


def pieces(server: Server, key: bytes) -> Iterator[bytes]:
    """All its bytes. Raises NotFoundError and as `ranges` does."""
    whole = length(server, key)
    for start in range(0, whole, CHUNK_BYTES):
        yield from ranges(server, key, whole, [(start, min(start + CHUNK_BYTES, whole))])

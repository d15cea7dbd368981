"""`NAME%dump`: the payload of DUMP, byte for byte, if the key is small enough: DUMP blocks the server while it runs."""

from redisfuse.client.client import Server
from redisfuse.errors import NotFoundError, TooLargeError
from redisfuse.rendering.iterate import size_of
from redisfuse.rendering.registry import KINDS
from redisfuse.rendering.renderer import length_command

MOST_BYTES = 32 << 20  # of a string, or (estimated) of all elements: about 0.1 s of blocking


def dump(server: Server, key: bytes, limit: int, most_bytes: int = MOST_BYTES) -> bytes:
    """The payload. TooLargeError above `limit` elements or `most_bytes` bytes, where that can be known beforehand.

    The bytes of a collection are estimated from its first elements; nothing is known of a module's type. Raises
    NotFoundError; WrongTypeError if the key changes its type meanwhile.
    """
    type = server.ask(b"TYPE", key)
    if type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    command = length_command(type)
    length = server.ask(command, key) if command else 0
    if type in KINDS:
        if length > limit:
            raise TooLargeError(f"{key!r} has {length} elements; --dump-limit is {limit}, since DUMP blocks the server")
        sample = next(KINDS[type].walk(server, key), [])
        length = size_of(sample) * length // max(1, len(sample))
    if length > most_bytes:
        raise TooLargeError(
            f"{key!r} has about {length} bytes; the limit is {most_bytes}, since DUMP blocks the server"
        )
    payload = server.ask(b"DUMP", key)
    if payload is None:
        raise NotFoundError(f"key {key!r} does not exist any more")
    assert isinstance(payload, bytes)
    return payload

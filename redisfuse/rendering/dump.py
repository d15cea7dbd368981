"""`NAME%dump`: the payload of DUMP, byte for byte, if the key is small enough.

DUMP blocks the server.
"""

from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError, TooLargeError
from redisfuse.rendering.iterate import count_bytes, key_vanished_error
from redisfuse.rendering.registry import RENDERERS
from redisfuse.rendering.renderer import length_command

MAX_DUMP_BYTES = 32 << 20  # of a string, or (estimated) of all elements: about 0.1 s of blocking


def fetch_dump(client: RedisClient, key: bytes, max_elements: int, max_bytes: int = MAX_DUMP_BYTES) -> bytes:
    """Return the payload.

    Raises TooLargeError above `max_elements` elements or `max_bytes` bytes. The bytes of a collection are estimated
    from its first elements; the size of a module's type can't be estimated and isn't limited. Raises NotFoundError;
    WrongTypeError if the key changes its type meanwhile.
    """
    type = client.execute(b"TYPE", key)
    if type == b"none":
        raise NotFoundError(f"key {key!r} does not exist")
    command = length_command(type)
    length = client.execute(command, key) if command else 0
    if type in RENDERERS:
        if length > max_elements:
            raise TooLargeError(
                f"{key!r} has {length} elements; --dump-limit is {max_elements}, since DUMP blocks the server"
            )
        sample = next(RENDERERS[type].iter_batches(client, key), [])
        length = count_bytes(sample) * length // max(1, len(sample))
    if length > max_bytes:
        raise TooLargeError(f"{key!r} has about {length} bytes; the limit is {max_bytes}, since DUMP blocks the server")
    payload = client.execute(b"DUMP", key)
    if payload is None:
        raise key_vanished_error(key)
    assert isinstance(payload, bytes)
    return payload

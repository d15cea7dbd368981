"""A document of the JSON module: as `JSON.GET` gives it.

There is no command for a part of a document's text or for its length, so it is fetched whole, in one reply, straight
into a temporary file without a name (in memory while it is at most 1 MiB): the process's memory does not grow with
it.
"""

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import ServerReplyError
from redisfuse.rendering.iterate import require_key_type

JSON_TYPE = b"ReJSON-RL"


def fetch_json(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """The document's text, in pieces. Raises NotFoundError, WrongTypeError."""
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
        try:
            client.download(cast(BinaryIO, file), b"JSON.GET", key)
        except ServerReplyError:  # what the module says of a key that is no document any more
            require_key_type(client, key, JSON_TYPE)
            raise
        file.seek(0)
        while piece := file.read(CHUNK_BYTES):
            yield piece

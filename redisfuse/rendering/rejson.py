"""Documents of the JSON module: their text, as `JSON.GET` returns it.

No command returns a part of a document's text or its length. So the text is fetched whole, in one reply, straight into
an unnamed temporary file (in memory up to 1 MiB): the memory of the process doesn't grow with it.
"""

from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from redisfuse.client.client import RedisClient
from redisfuse.client.reply_bounds import MAX_ELEMENT_BYTES
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ServerReplyError
from redisfuse.rendering.iterate import require_key_type

JSON_TYPE = b"ReJSON-RL"


def fetch_json(client: RedisClient, key: bytes) -> Iterator[bytes]:
    """Yield the document's text, in chunks. Raises NotFoundError, WrongTypeError."""
    with SpooledTemporaryFile(max_size=CHUNK_BYTES) as file:
        try:
            client.download(cast(BinaryIO, file), b"JSON.GET", key, max_bytes=MAX_ELEMENT_BYTES)
        except ServerReplyError:  # the module's reply for a key that no longer is a document
            require_key_type(client, key, JSON_TYPE)
            raise
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk

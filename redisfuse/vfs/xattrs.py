"""Extended attributes: what Redis knows of a key, as `user.redis.*` of its file."""

from __future__ import annotations

import time
from collections.abc import Sequence

from redisfuse.client.client import RedisClient
from redisfuse.errors import InvalidArgumentError, NoAttributeError
from redisfuse.keyspace.extended import ExtendedMetadata, remaining_ms
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.nodes import DirectoryNode, KeyNode, OpenFileNode, TreeNode
from redisfuse.vfs.resolver import PathResolver

XATTR_PREFIX = b"user.redis."
PREFIX_XATTR = b"user.redis.prefix"
LISTED_AS_XATTR = b"user.redis.listed-as"  # of a directory: whether its hashes are listed as "fields" or "files"
KEY_XATTR = b"user.redis.key"
FIELD_XATTR = b"user.redis.field"
TYPE_XATTR = b"user.redis.type"
TTL_XATTR = b"user.redis.ttl"
ENCODING_XATTR = b"user.redis.encoding"
LENGTH_XATTR = b"user.redis.length"
DECODED_XATTR = b"user.redis.decoded"  # how the value of a string or field is encoded; fetches and decodes it
DERIVED_XATTRS = frozenset(
    (
        *(KEY_XATTR, FIELD_XATTR, TYPE_XATTR, ENCODING_XATTR, LENGTH_XATTR, DECODED_XATTR),
        *(PREFIX_XATTR, LISTED_AS_XATTR),
    )
)
"""The attributes that follow from the name and content of a file or directory."""

_KEY_NAMES = (KEY_XATTR, TYPE_XATTR, TTL_XATTR, ENCODING_XATTR, LENGTH_XATTR)
_FIELD_NAMES = (*_KEY_NAMES, FIELD_XATTR)


def list_names_of_key(node: KeyNode) -> tuple[bytes, ...]:
    """Return the names of the attributes of a key, a field or a view."""
    names = _KEY_NAMES if node.target.field is None else _FIELD_NAMES
    return (*names, DECODED_XATTR) if node.view == "text" and not node.is_collection else names


class XattrReader:
    """Reads the attributes of files and directories. Values are bytes.

    Thread-safe; it has no lock.
    """

    def __init__(
        self,
        client: RedisClient,
        grammar: PathCodec,
        metadata: MetadataStore,
        resolver: PathResolver,
        content_loader: ContentLoader,
    ) -> None:
        self._client = client
        self._grammar = grammar
        self._metadata = metadata
        self._resolver = resolver
        self._content_loader = content_loader

    def list_names(self, node: TreeNode) -> Sequence[bytes]:
        """Return the names of a node's attributes, without a query.

        That of the encoding, which costs the value, is listed for `NAME%text` only.
        """
        if isinstance(node, DirectoryNode):
            return (PREFIX_XATTR, LISTED_AS_XATTR)
        if isinstance(node, OpenFileNode) and node.file.is_new:
            return () if node.file.expiry is None else (TTL_XATTR,)
        if isinstance(node, OpenFileNode):
            target = node.file.target
            return () if target is None else _KEY_NAMES if target.field is None else _FIELD_NAMES
        return list_names_of_key(node) if isinstance(node, KeyNode) else ()

    def get(self, node: TreeNode, name: bytes) -> bytes:
        """Return one attribute; cached like all metadata.

        Raises NoAttributeError, NotFoundError, AccessError.
        """
        if name == LISTED_AS_XATTR and isinstance(node, DirectoryNode):
            return self._resolver.create_reader().determine_layout(node.directory).encode()
        value = self._get(node, name)
        if value is None:
            raise NoAttributeError("no such attribute")
        return value

    def _get(self, node: TreeNode, name: bytes) -> bytes | None:
        if isinstance(node, DirectoryNode):
            return self._grammar.key_prefix(node.directory) if name == PREFIX_XATTR else None
        if isinstance(node, OpenFileNode):
            return self._get_of_open_file(node, name)
        return self._get_of_key(node, name) if isinstance(node, KeyNode) else None

    def _get_of_open_file(self, node: OpenFileNode, name: bytes) -> bytes | None:
        if node.file.target is None:
            return None
        stored = self._resolver.resolve_stored(node.file.target)
        expiry = node.file.expiry
        if name == TTL_XATTR and expiry is not None and (expiry.is_explicit or stored is None):
            expires_at_ms = expiry.value_ms
            ttl = -1 if expires_at_ms is None else max(0, expires_at_ms - time.time_ns() // 1_000_000)
            return b"%d" % ttl
        return None if stored is None else self._get_of_key(stored, name)

    def _get_of_key(self, node: KeyNode, name: bytes) -> bytes | None:
        target = node.target
        if name == KEY_XATTR:
            return target.key
        if name == FIELD_XATTR:
            return target.field
        if name == DECODED_XATTR:
            encoding = self._content_loader.describe_encoding(node)
            return None if encoding is None else encoding.encode()
        if name == LENGTH_XATTR and target.field is not None:
            return b"%d" % node.length
        if name not in (TYPE_XATTR, TTL_XATTR, ENCODING_XATTR, LENGTH_XATTR):
            return None
        extended = self._metadata.get_extended(target.key)
        if name == TTL_XATTR:
            return b"%d" % self._get_ttl_ms(target, extended)
        return {TYPE_XATTR: extended.type, ENCODING_XATTR: extended.encoding}.get(name, b"%d" % extended.length)

    def _get_ttl_ms(self, target: KeyRef, extended: ExtendedMetadata) -> int:
        """Return the TTL of a key, in ms; -1 for none.

        That of a hash field is its own, or else its key's.
        """
        if target.field is not None and self._client.server_info.has_hash_field_ttl:
            expires_at = self._metadata.get_field_expiry(target.key, target.field)
            if expires_at is not None:
                return remaining_ms(expires_at)
        return extended.ttl_ms


def parse_ttl(value: bytes) -> int:
    """Return the milliseconds of a written `user.redis.ttl`; -1 for none.

    Raises InvalidArgumentError.
    """
    try:
        milliseconds = int(value)
    except ValueError:
        milliseconds = -2
    if milliseconds < -1:
        raise InvalidArgumentError("a TTL is milliseconds from now, or -1 for none")
    return milliseconds

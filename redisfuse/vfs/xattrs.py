"""Extended attributes: what Redis knows of a key, as `user.redis.*` of its file."""

from __future__ import annotations

import time
from collections.abc import Sequence

from redisfuse.client.client import RedisClient
from redisfuse.errors import InvalidArgumentError, NoAttributeError
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.paths.grammar import KeyRef, PathCodec
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
DERIVED_XATTRS = frozenset((KEY_XATTR, FIELD_XATTR, TYPE_XATTR, ENCODING_XATTR, LENGTH_XATTR))
"""The attributes that follow from a file's name and content."""


class XattrReader:
    """Reads the attributes of files and directories. Values are bytes.

    Thread-safe; it has no lock.
    """

    def __init__(
        self, client: RedisClient, grammar: PathCodec, metadata: MetadataStore, resolver: PathResolver
    ) -> None:
        self._client = client
        self._grammar = grammar
        self._metadata = metadata
        self._resolver = resolver

    def list_names(self, node: TreeNode) -> Sequence[bytes]:
        """Return the names of a node's attributes, without a query."""
        if isinstance(node, DirectoryNode):
            return (PREFIX_XATTR, LISTED_AS_XATTR)
        if isinstance(node, OpenFileNode) and node.file.is_new:
            return () if node.file.expiry is None else (TTL_XATTR,)
        target = (
            node.file.target if isinstance(node, OpenFileNode) else node.target if isinstance(node, KeyNode) else None
        )
        if target is None:
            return ()
        names = (KEY_XATTR, TYPE_XATTR, TTL_XATTR, ENCODING_XATTR, LENGTH_XATTR)
        return names if target.field is None else (*names, FIELD_XATTR)

    def get(self, node: TreeNode, name: bytes) -> bytes:
        """Return one attribute, as it is on the server now.

        Raises NoAttributeError, NotFoundError, AccessError.
        """
        if name == LISTED_AS_XATTR and isinstance(node, DirectoryNode):
            return self._resolver.create_reader().determine_layout(node.directory).encode()
        value = self._fetch_all(node).get(name)
        if value is None:
            raise NoAttributeError("no such attribute")
        return value

    def _fetch_all(self, node: TreeNode) -> dict[bytes, bytes]:
        if isinstance(node, DirectoryNode):
            return {PREFIX_XATTR: self._grammar.key_prefix(node.directory)}
        if isinstance(node, OpenFileNode) and node.file.target is not None:
            stored = self._resolver.resolve_stored(node.file.target)
            values = {} if stored is None else self._fetch_all(stored)
            expiry = node.file.expiry
            if expiry is not None and (expiry.is_explicit or not values):
                expires_at_ms = expiry.value_ms
                ttl = -1 if expires_at_ms is None else max(0, expires_at_ms - time.time_ns() // 1_000_000)
                values[TTL_XATTR] = b"%d" % ttl
            return values
        if not isinstance(node, KeyNode):
            return {}
        target = node.target
        extended = self._metadata.fetch_extended(target.key)
        values = {KEY_XATTR: target.key, TYPE_XATTR: extended.type, ENCODING_XATTR: extended.encoding}
        ttl, length = extended.ttl_ms, extended.length
        if target.field is not None:
            values[FIELD_XATTR] = target.field
            ttl, length = self._fetch_field_ttl(target, ttl), node.length
        return values | {TTL_XATTR: b"%d" % ttl, LENGTH_XATTR: b"%d" % length}

    def _fetch_field_ttl(self, target: KeyRef, key_ttl: int) -> int:
        """Return a hash field's TTL in ms: its own if it has one, else its key's.

        -1 for none.
        """
        if not self._client.server_info.has_hash_field_ttl:
            return key_ttl
        assert target.field is not None
        [ttl] = self._client.execute(b"HPTTL", target.key, b"FIELDS", 1, target.field) or [-1]
        return int(ttl) if int(ttl) >= 0 else key_ttl


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

"""Requests for extended attributes, served from the tree."""

from __future__ import annotations

import os
from collections.abc import Sequence

from redisfuse.errors import ExistsError, NoAttributeError, NotSupportedError
from redisfuse.mount.control import MountControl
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.nodes import MemoryNode
from redisfuse.vfs.xattrs import DERIVED_XATTRS, TTL_XATTR, XATTR_PREFIX, parse_ttl

STATUS_XATTR = b"user.redisfuse.status"  # on the root, never listed; `redisfuse status` reads it


class XattrRequests:
    """Extended attributes by path. Stateless and thread-safe."""

    def __init__(self, filesystem: Filesystem, mount: MountControl) -> None:
        self._filesystem = filesystem
        self._mount = mount

    def _find_memory_fs(self, path: bytes) -> MemoryFS | None:
        """Return the memory filesystem if the path is in it."""
        overlay = self._filesystem.overlay
        return overlay.memory_fs if overlay is not None and overlay.memory_fs.exists(path) else None

    def get(self, path: bytes, name: bytes) -> bytes:
        """Return an attribute. Raises NoAttributeError, NotFoundError, AccessError."""
        if name.startswith(XATTR_PREFIX):
            return self._filesystem.xattrs.get(self._filesystem.resolver.resolve(path), name)
        if name == STATUS_XATTR and not path:
            return self._mount.encode_status()
        if (memory_fs := self._find_memory_fs(path)) is not None:
            return memory_fs.getxattr(path, name)
        raise NoAttributeError("no such attribute")

    def list_names(self, path: bytes) -> Sequence[bytes]:
        """Return the names of the attributes. Raises NotFoundError."""
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode) and (memory_fs := self._find_memory_fs(path)) is not None:
            return memory_fs.listxattr(path)
        return self._filesystem.xattrs.list_names(node)

    def set(self, namespace: NamespaceOperations, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute; for a key, its time to live only.

        Raises NotSupportedError, ExistsError.
        """
        if (memory_fs := self._find_memory_fs(path)) is not None:
            memory_fs.setxattr(path, name, value, flags)
            return
        if name in DERIVED_XATTRS:
            return  # succeed without effect, as chmod does: programs that copy a file's attributes fail otherwise
        if name != TTL_XATTR:
            raise NotSupportedError("only user.redis.ttl can be set")
        if flags & os.XATTR_CREATE:
            raise ExistsError("user.redis.ttl always exists")
        namespace.set_expiry(path, parse_ttl(value))

    def remove(self, namespace: NamespaceOperations, path: bytes, name: bytes) -> None:
        """Remove an attribute; for a key, its time to live only.

        Raises NoAttributeError.
        """
        if (memory_fs := self._find_memory_fs(path)) is not None:
            memory_fs.removexattr(path, name)
        elif name == TTL_XATTR:
            namespace.set_expiry(path, -1)
        else:
            raise NoAttributeError("no such attribute")

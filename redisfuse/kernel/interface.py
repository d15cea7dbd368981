"""What passes between the session and the filesystem: operations by node id, replies with their own time-outs.

Threading: the session calls the operations from many threads at once, also for one node. Every call may raise a
`RedisFuseError` or an `OSError`, whose errno the program sees; anything else becomes EIO with a traceback in the log.
Names are bytes exactly as the kernel sent them. A `RequestContext` and a buffer are valid only until the call returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from redisfuse.kernel.wire import (
    ROOT_NODE_ID,
    AttributesReply,
    DirectoryBuffer,
    EntryReply,
    FileAttributes,
    OpenFlag,
    OpenReply,
    StatfsReply,
)

Buffer = bytes | bytearray | memoryview


class RequestContext(Protocol):
    """The request that a call serves. One object per thread, reused for its next request."""

    @property
    def unique(self) -> int:
        """The kernel's number of the request."""

    @property
    def node_id(self) -> int:
        """The node that the request is about; for operations on names, the directory."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int:
        """The thread that made the request; 0 if it is outside of our namespace or the kernel itself."""

    def is_interrupted(self) -> bool:
        """Return whether the program was interrupted (then raise EINTR, unless the work is done)."""

    def prepare_to_block(self) -> None:
        """Let another thread read requests meanwhile: before a lock, the server or the journal. Harmless twice."""


class SetAttributes(NamedTuple):
    """The fields of a SETATTR; None where the request leaves one as it is. Times are nanoseconds, or -1 for now."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


TIME_NOW = -1


class ConnectionInfo(NamedTuple):
    """What INIT negotiated: the protocol's minor version, the flags of both sides, and sizes in bytes."""

    minor: int
    offered: int
    flags: int
    max_readahead: int
    max_write: int

    @property
    def has_inc_epoch(self) -> bool:
        """Whether the kernel has INC_EPOCH (7.44, Linux 6.16)."""
        return self.minor >= 44


class FuseOperations(Protocol):
    """A filesystem by node id. `context.node_id` is the node, or the directory of `name`."""

    blocking_operations: Collection[str]  # methods before which another thread is promoted to read requests

    def init(self, connection: ConnectionInfo) -> None:
        """Start threads and sockets: mounted, before any other call. What it raises, `FuseSession.run` raises."""

    def destroy(self) -> None:
        """Called after the last call, if `init` was called, also when that raised."""

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        """Return the entry, or the seconds for which the kernel may cache that there is none."""

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """Take (node id, lookups) away from the lookup counts. Must not block."""

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply: ...
    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply: ...
    def mknod(self, context: RequestContext, name: bytes, mode: int, device: int) -> EntryReply: ...
    def mkdir(self, context: RequestContext, name: bytes, mode: int) -> EntryReply: ...
    def unlink(self, context: RequestContext, name: bytes) -> None: ...
    def rmdir(self, context: RequestContext, name: bytes) -> None: ...
    def rename(self, context: RequestContext, name: bytes, new_parent_id: int, new_name: bytes, flags: int) -> None: ...
    def open(self, context: RequestContext, flags: int) -> OpenReply | None:
        """Open a file; `flags` may hold O_TRUNC. None (ENOSYS): the kernel opens no file through us any more.

        Only for read-only mounts: READ then comes with handle 0, and neither FLUSH nor RELEASE comes.
        """

    def create(self, context: RequestContext, name: bytes, flags: int, mode: int) -> tuple[EntryReply, OpenReply]: ...
    def read(self, context: RequestContext, handle: int, offset: int, size: int) -> Buffer: ...
    def write(self, context: RequestContext, handle: int, offset: int, data: memoryview, flags: int) -> int:
        """Write and return how many bytes; `data` is a view of the request; `flags` are the file's open(2) flags."""

    def flush(self, context: RequestContext, handle: int) -> None:
        """Each close(2) of each duplicate; not in read-only mounts, nor for handles with `OpenFlag.NOFLUSH`."""

    def fsync(self, context: RequestContext, handle: int, datasync: bool) -> None: ...
    def release(self, context: RequestContext, handle: int) -> None:
        """After the last close(2), which does not wait for it."""

    def opendir(self, context: RequestContext, flags: int) -> OpenReply: ...
    def readdir(self, context: RequestContext, handle: int, offset: int, buffer: DirectoryBuffer) -> None:
        """Add the entries from `offset` (0 at first), `.` and `..` included, until one does not fit."""

    def releasedir(self, context: RequestContext, handle: int) -> None: ...
    def fsyncdir(self, context: RequestContext, handle: int, datasync: bool) -> None: ...
    def statfs(self, context: RequestContext) -> StatfsReply: ...
    def getxattr(self, context: RequestContext, name: bytes) -> bytes: ...
    def listxattr(self, context: RequestContext) -> Sequence[bytes]: ...
    def setxattr(self, context: RequestContext, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, context: RequestContext, name: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class FuseSessionOptions:
    """How to mount and serve."""

    mountpoint: Path
    read_only: bool = True
    fsname: str = "redisfuse"  # the source in /proc/mounts: no secret may be in it
    allow_other: bool = False
    nonempty: bool = False
    extra: tuple[str, ...] = ()  # further -o options, each "name" or "name=value", as libfuse's mount takes them
    explicit_invalidation: bool = False  # the kernel drops pages on INVAL_INODE alone, not when the mtime moves
    readdirplus: bool = True  # attributes come with names
    threads: int = 64  # most operations at once
    read_ahead: int | None = None  # KiB; tried after mounting, needs root
    stop_timeout: float = 10.0  # seconds that a running operation may take to end when the mount ends


__all__ = [
    "ROOT_NODE_ID",
    "TIME_NOW",
    "AttributesReply",
    "Buffer",
    "ConnectionInfo",
    "DirectoryBuffer",
    "EntryReply",
    "FileAttributes",
    "FuseOperations",
    "FuseSessionOptions",
    "OpenFlag",
    "OpenReply",
    "RequestContext",
    "SetAttributes",
    "StatfsReply",
]

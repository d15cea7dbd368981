"""The interface of a filesystem: operations by node id, replies with time-outs.

Threads: the session calls the operations from many threads at once, also for one node. Every operation may raise a
`RedisFuseError` or an `OSError`, whose errno the program gets; any other exception becomes EIO, with a traceback in the
log. Names are bytes exactly as the kernel sent them. A `RequestContext` and a buffer are valid until the call returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from redisfuse.fuse.wire import DirectoryBuffer

ROOT_NODE_ID = 1
TIME_NOW = -1
Buffer = bytes | bytearray | memoryview


class FileAttributes(NamedTuple):
    """The attributes of one inode.

    `mode` includes the type bits; `size` is in bytes; times are in nanoseconds since the epoch.
    """

    inode: int
    mode: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    allocated_bytes: int | None = None  # for st_blocks; None: `size`


class EntryReply(NamedTuple):
    """The inode of a name.

    The kernel may cache the name for `entry_valid` and the attributes for `attr_valid` seconds. Each entry that is sent
    adds 1 to the lookup count of the node; FORGET subtracts it. (node_id, generation) must be unique while the mount
    exists.
    """

    node_id: int
    generation: int
    attributes: FileAttributes
    entry_valid: float
    attr_valid: float


class AttributesReply(NamedTuple):
    """Attributes, and the seconds for which the kernel may cache them."""

    attributes: FileAttributes
    attr_valid: float


class OpenReply(NamedTuple):
    """An open handle, and `OpenFlag` bits."""

    handle: int
    flags: int = 0


class StatfsReply(NamedTuple):
    """The fields of statvfs(3)."""

    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    block_size: int = 4096
    name_max: int = 255


class OpenFlag:
    """FOPEN flags of the reply to OPEN, CREATE and OPENDIR."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5  # Linux 5.16: no FLUSH comes for this handle


class RequestContext(Protocol):
    """The request that a thread serves; the object is reused for its next one."""

    @property
    def unique(self) -> int:
        """The kernel's number of the request."""

    @property
    def node_id(self) -> int:
        """The node of the request; for operations on names, the directory."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int:
        """The calling thread; 0 for the kernel, and outside of our pid namespace."""

    def is_interrupted(self) -> bool:
        """Return whether the program was interrupted: raise EINTR unless done already."""

    def prepare_to_block(self) -> None:
        """Let another thread read requests.

        Called before the operation blocks for a lock, a write or the journal; a second call has no effect. Waits for
        replies to reads are reported to `FuseSession.prepare_to_wait` by the client of the server.
        """


class SetAttributes(NamedTuple):
    """The fields of a SETATTR; None for those to leave unchanged.

    Times are in nanoseconds since the epoch, or TIME_NOW.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class ConnectionInfo(NamedTuple):
    """The negotiated minor version of the protocol, and the accepted flags."""

    minor: int
    flags: int

    @property
    def has_inc_epoch(self) -> bool:
        """Whether the kernel has an epoch to increment (7.44, Linux 6.16)."""
        return self.minor >= 44


class FuseOperations(Protocol):
    """A filesystem by node id; for operations on names, that of the directory."""

    @property
    def blocking_operations(self) -> Collection[str]:
        """The methods before which another thread is promoted to read requests."""

    def init(self, connection: ConnectionInfo) -> None:
        """Start threads; called first, once mounted. `run` raises its exceptions."""

    def destroy(self) -> None:
        """Stop the threads; called last if `init` was called, even if that raised."""

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        """Return the entry; for an absent name, the seconds to cache its absence."""

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """Subtract (node id, lookups) from the lookup counts. Must not block."""

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply: ...
    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply: ...
    def access(self, context: RequestContext, mask: int) -> None:
        """Raise AccessError unless `mask` is granted; if the kernel checks nothing."""

    def mknod(self, context: RequestContext, name: bytes, mode: int, device: int) -> EntryReply: ...
    def mkdir(self, context: RequestContext, name: bytes, mode: int) -> EntryReply: ...
    def unlink(self, context: RequestContext, name: bytes) -> None: ...
    def rmdir(self, context: RequestContext, name: bytes) -> None: ...
    def rename(self, context: RequestContext, name: bytes, new_parent_id: int, new_name: bytes, flags: int) -> None: ...
    def open(self, context: RequestContext, flags: int) -> OpenReply | None:
        """Open a file; `flags` may contain O_TRUNC.

        None, in read-only mounts only, is answered ENOSYS: from then on the kernel sends no OPEN, FLUSH or RELEASE,
        and READ with handle 0.
        """

    def create(self, context: RequestContext, name: bytes, flags: int, mode: int) -> tuple[EntryReply, OpenReply]: ...
    def read(self, context: RequestContext, handle: int, offset: int, size: int) -> Buffer: ...
    def write(
        self, context: RequestContext, handle: int, offset: int, data: memoryview, flags: int, is_mapped: bool
    ) -> int:
        """Write, and return the number of bytes written.

        `data` is a view of the request. `flags` are those of open(2). `is_mapped`: the bytes were written through a
        shared mapping, of this handle or of another one of the file.
        """

    def flush(self, context: RequestContext, handle: int) -> None:
        """Serve each close(2), except in read-only mounts and with `OpenFlag.NOFLUSH`."""

    def fsync(self, context: RequestContext, handle: int, datasync: bool) -> None: ...
    def release(self, context: RequestContext, handle: int) -> None:
        """Release a handle after its last close(2), which does not wait for this."""

    def opendir(self, context: RequestContext, flags: int) -> OpenReply: ...
    def readdir(self, context: RequestContext, handle: int, offset: int, buffer: DirectoryBuffer) -> None:
        """Add entries from `offset` on (0 at first), `.` and `..` too, while they fit."""

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

    mountpoint: Path  # absolute, and checked by the caller
    read_only: bool = True
    fsname: str = "redisfuse"  # the source in /proc/mounts; contains no secret
    allow_other: bool = False
    nonempty: bool = False
    extra: tuple[str, ...] = ()  # further -o options of libfuse, each "name" or "name=value"
    explicit_invalidation: bool = False  # the kernel drops pages at INVAL_INODE only, not when the mtime changes
    threads: int = 64  # maximum of operations at once
    stop_timeout: float = 10.0  # seconds in which operations must end after an unmount

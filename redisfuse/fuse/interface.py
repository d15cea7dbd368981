"""What passes between the session and the filesystem: operations by node id, replies with their own time-outs.

Threading: the session calls the operations from many threads at once, also for one node. Every call may raise a
`RedisFuseError` or an `OSError`, whose errno the program sees; anything else becomes EIO with a traceback in the log.
Names are bytes exactly as the kernel sent them. A `RequestContext` and a buffer are valid only until the call returns.
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
    """The attributes of one inode. `mode` includes the type bits; `size` is in bytes; times are nanoseconds."""

    inode: int
    mode: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int


class EntryReply(NamedTuple):
    """A name's inode. `entry_valid` and `attr_valid`: seconds for which the kernel may cache the name, the attributes.

    Each one that is sent adds 1 to the lookup count of the node; FORGET takes it away. Node id 0: no such name, which
    the kernel may cache for `entry_valid` seconds. (node_id, generation) must be unique while the mount exists.
    """

    node_id: int
    generation: int
    attributes: FileAttributes
    entry_valid: float
    attr_valid: float


class AttributesReply(NamedTuple):
    """Attributes, and for how many seconds the kernel may cache them."""

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
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5  # Linux 5.16: no FLUSH comes for this handle


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
    """The fields of a SETATTR; None where the request leaves one as it is. Times are nanoseconds, or TIME_NOW."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class ConnectionInfo(NamedTuple):
    """What INIT negotiated: the protocol's minor version, the flags of both sides, sizes in bytes."""

    minor: int
    offered: int
    flags: int
    max_readahead: int
    max_write: int
    has_expire_only: bool  # Linux 6.2
    has_inc_epoch: bool  # 7.44, Linux 6.16


class FuseOperations(Protocol):
    """A filesystem by node id. `context.node_id` is the node, or the directory of `name`."""

    @property
    def blocking_operations(self) -> Collection[str]:
        """The methods before which another thread is promoted to read requests."""

    def init(self, connection: ConnectionInfo) -> None:
        """Start threads and sockets: mounted, before any other call. What it raises, `FuseSession.run` raises."""

    def destroy(self) -> None:
        """End what `init` started: called last if `init` was called, also when that raised."""

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        """Return the entry, or the seconds for which the kernel may cache that there is none."""

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """Take (node id, lookups) away from the lookup counts. Must not block."""

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply: ...
    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply: ...
    def access(self, context: RequestContext, mask: int) -> None:
        """Raise AccessError unless access(2) with this mask is allowed: where the kernel checks no permissions."""

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

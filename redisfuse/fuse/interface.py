"""The protocols between the kernel's side (a `Binding`) and the tree's side (`FuseOperations`). No FUSE library here.

Threading: a binding calls `FuseOperations` from many threads at once, also for one file; every call may raise a
`RedisFuseError` or an `OSError`, whose errno the program sees; anything else becomes EIO with a traceback in the log.
Paths and names are bytes exactly as the kernel gave them; `b"/"` is the root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from redisfuse.fuse.page_cache import PageCacheState


class FileAttributes(NamedTuple):
    """The attributes of one file or directory. `mode` includes the type bits; `size` is in bytes."""

    inode: int
    mode: int
    nlink: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    allocated_bytes: int | None = None  # for st_blocks; None: `size`


class Dirent(NamedTuple):
    """One name of a directory (never `.` or `..`: the binding adds those).

    `mode`'s type bits become d_type. With `attr`, a binding that can (libfuse 3) tells the kernel the attributes
    together with the name, and no getattr follows. `inode` 0 means not known, where there is no `attr`.
    """

    name: bytes
    mode: int
    attr: FileAttributes | None = None
    inode: int = 0


class OpenReply(NamedTuple):
    """How a file was opened.

    `direct_io`: reads come with the program's own offsets and sizes, past the page cache and past `size`.
    `keep_cache`: the kernel may keep pages of this file over several opens, until a change is told to the notifier.
    (The binding sees to it that this never shows anybody what another open file saw: see `known`.)
    `size`: how many bytes this handle reads to, if that is known. If the kernel was last told another length, it would
    cut the content or fill it with zeros: such a file is read past the page cache instead.
    `shares_pages`: whether all open handles read the same bytes now, so that pages can be shared, and mapped, whatever
    changed before; None if that is not known.
    `content_hash`: stands for the bytes that are read: pages that were kept of others are of no use.
    """

    handle: int
    direct_io: bool = False
    keep_cache: bool = False
    nonseekable: bool = False
    size: int | None = None
    shares_pages: bool | None = None
    content_hash: int | None = None


# UTIME_NOW and UTIME_OMIT of utimensat(2), as they stand in a time's nanoseconds.
UTIME_NOW = "now"
UTIME_OMIT = None
UtimensTime = int | str | None  # nanoseconds since the epoch, NOW, or OMIT


class FuseOperations(Protocol):
    """What `operations` offers to a binding.

    Where a call takes both, `path` is None only if `handle` is given. Handles are small positive numbers of the callee.
    """

    def getattr(self, path: bytes | None, handle: int | None) -> FileAttributes: ...
    def opendir(self, path: bytes) -> int: ...
    def readdir(self, handle: int, offset: int) -> Iterable[Dirent]:
        """The entries after the first `offset` ones. Called again for each piece, from any offset given before."""

    def releasedir(self, handle: int) -> None: ...
    def open(self, path: bytes, flags: int) -> OpenReply:
        """`flags` holds O_TRUNC where the program asked for it (no separate truncate comes, on either binding).

        Permission bits were not checked before, except in a mount with `allow_other`.
        """

    def create(self, path: bytes, flags: int, mode: int) -> OpenReply: ...
    def read(self, handle: int, size: int, offset: int) -> bytes | bytearray | memoryview: ...
    def read_node(self, node: bytes, size: int, offset: int, kernel_size: int | None, is_size_stable: bool) -> bytes:
        """As `read`, where files are not opened (`FuseSessionOptions.no_open`): all who read one node read the same.

        `node`: a path, or what `detach_node` made of one. `kernel_size`: the size that the kernel got last, if known;
        `sure`: it was told no other lately. Where the content is longer, `Binding.outdated` makes the kernel ask again
        before it believes to be at the end.
        """

    def getattr_node(self, node: bytes, *, for_read: bool) -> FileAttributes:
        """As `getattr`, where files are not opened, of a retired node; or (`reading`) for a program that reads it.

        What has no length beforehand is then read on, and the bytes go to `Binding.store`.
        """

    def detach_node(self, node: bytes, stale_node: bytes) -> None:
        """Continue under `stale_node` what was read as `node`, which is another file from now on. Must not block.

        No read of the node is under way meanwhile.
        """

    def forget(self, node_ids: Iterable[int]) -> None:
        """The kernel has forgotten these nodes (as `Binding.node` numbers them), or one of several look-ups of them.

        `Binding.has_node` tells which. Must not wait.
        """

    def has_been_read(self, node: bytes) -> bool:
        """Whether a node that was not retired may have been read: if not, it need not be."""

    def list_read_nodes(self) -> Sequence[bytes]:
        """The nodes that were read lately and were not retired."""

    def write(self, handle: int, data: bytes, offset: int, *, append: bool) -> int:
        """How many bytes were taken. `append`: they go to the end, wherever the kernel believes that to be."""

    def truncate(self, path: bytes | None, length: int, handle: int | None) -> None: ...
    def flush(self, handle: int) -> None:
        """Each close(2) of each duplicate; not called in a read-only mount."""

    def fsync(self, handle: int, datasync: bool) -> None: ...
    def release(self, handle: int) -> None:
        """After the last close; nobody waits for it, and its errors reach nobody but the log."""

    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def unlink_open(self, path: bytes, hidden_path: bytes) -> None:
        """`path` is removed or about to be replaced while some program has it open.

        (libfuse asks for a rename to `.fuse_hidden…`.) From now on `path` must be ENOENT to getattr, and
        `hidden`, until its own `unlink` comes after the last close, must answer getattr, truncate, chmod, chown and
        utimens like the file that it was. It is never listed. If the cause is a rename over an open file,
        `rename(…, path, …)` follows at once in the same thread.
        """

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        """`flags`: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2 (libfuse 3; with libfuse 2 the kernel refuses both)."""

    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def mknod(self, path: bytes, mode: int, device: int) -> None: ...
    def chmod(self, path: bytes | None, mode: int, handle: int | None) -> None: ...
    def chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> None:
        """-1 leaves an id as it is."""

    def utimens(self, path: bytes | None, atime: UtimensTime, mtime: UtimensTime, handle: int | None) -> None: ...
    def statfs(self, path: bytes) -> Mapping[str, int]:
        """Fields of statvfs(3), such as f_bsize."""

    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def listxattr(self, path: bytes) -> Sequence[bytes]: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...

    def init(self) -> None:
        """Mounted, in the process that serves it, before any other call: threads and sockets begin here.

        If it raises, the mount ends and `Binding.run` raises the same.
        """

    def destroy(self) -> None:
        """After the last call; called once if `init` was, also when that raised."""


@dataclass(frozen=True, slots=True)
class FuseSessionOptions:
    """How to mount. Time-outs are seconds that the kernel may believe what it was told."""

    mountpoint: Path
    read_only: bool = True
    fsname: str = "redisfuse"  # the source in /proc/mounts: no secret may be in it
    entry_timeout: float = 1.0
    attr_timeout: float = 1.0
    negative_timeout: float = 0.0
    cache_listings: bool = False  # as `listings` of Binding.set_timeouts
    no_open: bool = False  # read files without being asked to open them, where that can be done (see retired.py)
    allow_other: bool = False
    nonempty: bool = False
    extra: tuple[str, ...] = ()  # further -o options, each "name" or "name=value", as the library takes them
    threads: int = 64  # most callbacks at once, where the library can bound them (libfuse 3.12 and later)
    read_ahead: int | None = None  # KiB; tried after mounting, needs root
    stop_timeout: float = 10.0  # seconds that a running call may take to end when the mount is told to end

    @property
    def can_skip_open(self) -> bool:
        """Whether `no_open` is asked for, and no file will be opened for writing."""
        return self.no_open and self.read_only


class KernelNotifier(Protocol):
    """What is told the descriptor of the kernel's connection, while there is one: the notifier."""

    @property
    def is_supported(self) -> bool:
        """Whether it can tell the kernel of changes; known once attached."""

    def attach(self, descriptor: int, mountpoint: Path, page_cache: PageCacheState) -> None: ...
    def detach(self) -> None: ...


class Binding(Protocol):
    """One library that can mount. One mount at a time in a process."""

    @property
    def name(self) -> str: ...

    @property
    def library(self) -> str:
        """Such as "libfuse 2.9.9"."""

    @property
    def has_readdirplus(self) -> bool:
        """Whether attributes given with entries reach the kernel."""

    @property
    def can_set_timeouts(self) -> bool:
        """Whether set_timeouts works; known once mounted. If not, don't mount with long ones."""

    @property
    def uses_no_open(self) -> bool:
        """Whether files are read without being opened (`FuseSessionOptions.no_open`); known once mounted."""

    @property
    def busy_at_unmount(self) -> bool:
        """Whether programs had something open at the unmount; known once `FuseOperations.destroy` is called."""

    def run(
        self, operations: FuseOperations, options: FuseSessionOptions, notifier: KernelNotifier | None = None
    ) -> None:
        """Mount and serve until unmounted, `stop()`, SIGINT, SIGTERM or SIGHUP; then nothing is mounted any more.

        Stays in the foreground. Raises MountError (one line), or what `calls.started` raised.
        """

    def stop(self) -> None:
        """End the mount from any thread, also from a callback; returns at once."""

    def set_timeouts(self, entry: float, attr: float, negative: float, *, listings: bool = False) -> None:
        """Change what the kernel is told from now on (what it was told before stays: see the notifier).

        `listings`: the kernel may keep whole listings until told otherwise (libfuse 3.5; others ignore it).
        """

    def is_interrupted(self) -> bool:
        """Inside a callback: whether the program that waits for this answer was interrupted (then raise EINTR)."""

    def prepare_to_block(self) -> None:
        """In `getattr`, `open`, `read`, `write`, `flush`, `release`: it is about to wait; let others serve meanwhile.

        It must be called before anything that can take long (a server, the journal, a lock held meanwhile); for the
        other calls it is done by the binding. Calling it again is harmless.
        """

    def disable_attr_cache(self) -> None:
        """In `getattr` and `getattr_node`: the kernel must ask again each time, whatever the time-outs are."""

    def current_node_id(self) -> int:
        """In `getattr_node` and `read_node`: the kernel's number of the node."""

    def kernel_size(self, path: bytes, node_id: int) -> int | None:
        """In `read_node`: how long the kernel believes that the node at a path is, if it is still that node."""

    def is_inode_cached(self, node_id: int) -> bool:
        """In `forget`: whether the kernel still knows a node."""

    def notify_store(self, offset: int, data: bytes) -> None:
        """In `getattr_node`: give the kernel bytes of the file, which from then on it takes for at least so long."""

    def invalidate_size(self) -> None:
        """In `read_node`: the kernel must ask for the length again before it believes that the file ends."""

    def get_caller(self) -> tuple[int, int, int]:
        """Inside a callback: uid, gid and pid of the program that asks."""


__all__ = [
    "UTIME_NOW",
    "UTIME_OMIT",
    "Binding",
    "Dirent",
    "FileAttributes",
    "FuseOperations",
    "FuseSessionOptions",
    "KernelNotifier",
    "OpenReply",
    "UtimensTime",
]

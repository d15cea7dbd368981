"""A small filesystem in memory that implements `FuseOperations`, for real kernel mounts.

Run as a process of its own:  python -m tests.support.kernel_tree BINDING MOUNTPOINT CONTROL [JSON]
The JSON object has fields of FuseSessionOptions, and `valid` (seconds that the kernel may cache anything), `no_open`,
`keep_cache`, `fail_start`, and `tree` (directory name -> number of files in it, to begin with).
CONTROL is a Unix socket on which one JSON request a line is answered by one JSON line:
  {"do": "put", "path": ..., "data": ...}   make or change a file, without notifying the kernel
  {"do": "replace", "path": ..., "data": ...}  give the name a new inode, without notifying the kernel
  {"do": "drop", "path": ...}               remove a name, without notifying the kernel
  {"do": "mkdir", "path": ...}              make a directory, without notifying the kernel
  {"do": "notify", "what": "inode" | "attributes" | "entry" | "expire" | "epoch" | "everything", "path": ...}
  {"do": "store", "path": ..., "data": ...} put bytes into the kernel's page cache
  {"do": "expire_absent", "count": ...}     queue notifications for as many names that don't exist
  {"do": "valid", "seconds": ...}           set the time-outs of later replies
  {"do": "drain"} / {"do": "unhang"} / {"do": "stop"}
  {"do": "counts"}                          calls since the last such request, and the size of the table
The lookup of some names has an effect: `raise-...` raises the error of that name; `hang` blocks until {"do": "unhang"};
`hang-leading` does so as a wait for a server does; `wait...` blocks until the program is interrupted. The first
word of a file has an effect, too: READ of `overlong` returns too many bytes; `direct` has size 0 and is opened with
direct I/O.
"""

# ruff: noqa: ARG002 - the methods are those of FuseOperations, needed or not

from __future__ import annotations

import collections
import errno
import itertools
import json
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from redisfuse import errors
from redisfuse.fuse.device import select_device
from redisfuse.fuse.interface import (
    ROOT_NODE_ID,
    TIME_NOW,
    AttributesReply,
    Buffer,
    ConnectionInfo,
    EntryReply,
    FileAttributes,
    FuseSessionOptions,
    OpenFlag,
    OpenReply,
    RequestContext,
    SetAttributes,
    StatfsReply,
)
from redisfuse.fuse.session import FuseSession
from redisfuse.fuse.wire import DirectoryBuffer

FAILURES_BY_NAME: dict[bytes, BaseException] = {
    b"raise-notfound": errors.NotFoundError("no such key"),
    b"raise-access": errors.AccessError("NOPERM"),
    b"raise-stale": errors.ConflictError("changed"),
    b"raise-unavailable": errors.UnavailableError("server down"),
    b"raise-oserror": OSError(errno.ENOSPC, "full"),
    b"raise-oserror-bare": OSError("no errno at all"),
    b"raise-oserror-negative": OSError(-5, "negative"),
    b"raise-valueerror": ValueError("a bug"),
    b"raise-baseexception": BaseException("worse"),
    b"raise-systemexit": SystemExit(3),
    b"raise-keyboard": KeyboardInterrupt(),
    b"raise-enosys": OSError(errno.ENOSYS, "must not switch an operation off"),
}


class Inode:
    """One file or directory. It exists while a name or the kernel (`lookups`) refers to it."""

    __slots__ = ("children", "data", "lookups", "mode", "mtime_ns", "nlink", "node_id", "parent", "xattrs")

    def __init__(self, node_id: int, mode: int, parent: Inode | None) -> None:
        self.node_id = node_id
        self.mode = mode
        self.parent = parent if parent is not None else self
        self.lookups = 0
        self.nlink = 2 if stat.S_ISDIR(mode) else 1
        self.data = bytearray()
        self.mtime_ns = 1_700_000_000_000_000_000
        self.children: dict[bytes, Inode] = {}
        self.xattrs: dict[bytes, bytes] = {}


class InMemoryOperations:
    """Inodes by node id. `lock` serialises changes; methods that only read take no lock."""

    blocking_operations: frozenset[str] = frozenset()

    def __init__(self, valid: float = 0.0, no_open: bool = False, keep_cache: bool = False) -> None:
        self.lock = threading.RLock()
        self.uid, self.gid = os.getuid(), os.getgid()
        self.root = Inode(ROOT_NODE_ID, stat.S_IFDIR | 0o755, None)
        self.inodes = {ROOT_NODE_ID: self.root}
        self.handles: dict[int, Inode | list[tuple[bytes, Inode]]] = {}
        self.numbers = itertools.count(ROOT_NODE_ID + 1)
        self.counts: collections.Counter[str] = collections.Counter()
        self.callers: list[tuple[int, int, int]] = []
        self.changes: list[SetAttributes] = []
        self.hang_released = threading.Event()
        self.reply, self.reply_sender = socket.socketpair()  # of a server
        self.prepare_to_wait: Callable[[int], None] = lambda _descriptor: None
        self.valid, self.no_open, self.fail_start = valid, no_open, False
        self.open_flags = OpenFlag.KEEP_CACHE if keep_cache else 0

    # -- for the tests -------------------------------------------------------------------------------------------------

    def find(self, path: str) -> Inode:
        """Return the inode at a path. Raises KeyError."""
        inode = self.root
        for name in path.encode("latin-1").strip(b"/").split(b"/"):
            inode = inode.children[name] if name else inode
        return inode

    def find_parent(self, path: str) -> tuple[Inode, bytes]:
        directory, _, name = path.rpartition("/")
        return self.find(directory), name.encode("latin-1")

    def add(self, parent: Inode, name: bytes, mode: int, data: bytes = b"") -> Inode:
        with self.lock:
            if name in parent.children:
                raise errors.ExistsError(repr(name))
            inode = Inode(next(self.numbers), mode, parent)
            inode.data[:] = data
            parent.children[name] = self.inodes[inode.node_id] = inode
            parent.nlink += stat.S_ISDIR(mode)
            parent.mtime_ns += 1_000_000
            return inode

    def remove(self, parent: Inode, name: bytes) -> Inode:
        with self.lock:
            inode = parent.children.pop(name)
            inode.nlink = 0
            parent.nlink -= stat.S_ISDIR(inode.mode)
            parent.mtime_ns += 1_000_000
            self._free(inode)
            return inode

    def _free(self, inode: Inode) -> None:
        if not inode.nlink and inode.lookups <= 0:
            self.inodes.pop(inode.node_id, None)

    def _inode(self, context: RequestContext) -> Inode:
        inode = self.inodes.get(context.node_id)
        if inode is None:
            raise errors.ConflictError(f"node {context.node_id} is unknown")
        return inode

    def _attributes(self, inode: Inode) -> FileAttributes:
        time_ns, size = inode.mtime_ns, 0 if inode.data.startswith(b"direct") else len(inode.data)
        return FileAttributes(inode.node_id, inode.mode, inode.nlink, size, time_ns, time_ns, self.uid, self.gid)

    def _entry(self, inode: Inode) -> EntryReply:
        return EntryReply(inode.node_id, 0, self._attributes(inode), self.valid, self.valid)

    def _looked_up(self, inode: Inode) -> EntryReply:
        with self.lock:
            inode.lookups += 1
        return self._entry(inode)

    def _open(self, inode: Inode, flags: int) -> OpenReply:
        handle = next(self.numbers)
        self.handles[handle] = inode
        open_flags = self.open_flags
        if flags & os.O_ACCMODE == os.O_RDONLY:
            open_flags |= OpenFlag.NOFLUSH
        if inode.data.startswith(b"direct"):
            open_flags |= OpenFlag.DIRECT_IO
        return OpenReply(handle, open_flags)

    # -- FuseOperations ------------------------------------------------------------------------------------------------

    def init(self, connection: ConnectionInfo) -> None:
        if self.fail_start:
            raise errors.UnavailableError("nothing to serve")

    def destroy(self) -> None:
        self.hang_released.set()

    def lookup(self, context: RequestContext, name: bytes) -> EntryReply | float:
        self.counts["lookup"] += 1
        inode = self._inode(context).children.get(name)
        if inode is not None:
            return self._looked_up(inode)
        if name in FAILURES_BY_NAME:
            raise FAILURES_BY_NAME[name]
        if name == b"caller":
            self.callers.append((context.uid, context.gid, context.pid))
        elif name == b"hang":
            self.counts["hanging"] += 1
            context.prepare_to_block()
            self.hang_released.wait(60)
        elif name == b"hang-leading":
            self.counts["hanging"] += 1
            self.prepare_to_wait(self.reply.fileno())
            self.reply.recv(1)
        elif name.startswith(b"wait"):
            self.counts["waiting"] += 1
            context.prepare_to_block()
            while not context.is_interrupted():
                time.sleep(0.01)
            self.counts["interrupted"] += 1
            raise errors.InterruptedWaitError("interrupted")
        return self.valid

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        with self.lock:
            for node_id, lookups in forgets:
                self.counts["forgotten"] += lookups
                inode = self.inodes.get(node_id)
                if inode is not None:
                    inode.lookups -= lookups
                    self._free(inode)

    def getattr(self, context: RequestContext, handle: int | None) -> AttributesReply:
        self.counts["getattr"] += 1
        return AttributesReply(self._attributes(self._inode(context)), self.valid)

    def setattr(self, context: RequestContext, changes: SetAttributes, handle: int | None) -> AttributesReply:
        self.counts["setattr"] += 1
        self.changes.append(changes)
        inode = self._inode(context)
        with self.lock:
            if changes.mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
            if changes.size is not None:
                self._resize(inode, changes.size)
            if changes.mtime_ns is not None:
                now = 2_000_000_000_000_000_000
                inode.mtime_ns = now if changes.mtime_ns == TIME_NOW else changes.mtime_ns
        return AttributesReply(self._attributes(inode), self.valid)

    def _resize(self, inode: Inode, size: int) -> None:
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        inode.mtime_ns += 1_000_000

    def access(self, context: RequestContext, mask: int) -> None:
        self.counts["access"] += 1

    def mknod(self, context: RequestContext, name: bytes, mode: int, device: int) -> EntryReply:
        if not stat.S_ISREG(mode):
            raise errors.NotPermittedError("no devices here")
        return self._looked_up(self.add(self._inode(context), name, mode))

    def mkdir(self, context: RequestContext, name: bytes, mode: int) -> EntryReply:
        return self._looked_up(self.add(self._inode(context), name, stat.S_IFDIR | mode))

    def unlink(self, context: RequestContext, name: bytes) -> None:
        self.counts["unlink"] += 1
        self.remove(self._inode(context), name)

    def rmdir(self, context: RequestContext, name: bytes) -> None:
        with self.lock:
            directory = self._inode(context)
            if directory.children[name].children:
                raise errors.NotEmptyError(repr(name))
            self.remove(directory, name)

    def rename(self, context: RequestContext, name: bytes, new_parent_id: int, new_name: bytes, flags: int) -> None:
        self.counts["rename"] += 1
        with self.lock:
            old_parent, new_parent = self._inode(context), self.inodes[new_parent_id]
            inode, target = old_parent.children[name], new_parent.children.get(new_name)
            if flags & 1 and target is not None:
                raise errors.ExistsError(repr(new_name))
            if flags & 2:
                assert target is not None
                old_parent.children[name], new_parent.children[new_name] = target, inode
                return
            if target is not None:
                self.remove(new_parent, new_name)
            del old_parent.children[name]
            new_parent.children[new_name] = inode
            inode.parent = new_parent

    def open(self, context: RequestContext, flags: int) -> OpenReply | None:
        self.counts["open"] += 1
        if self.no_open:
            return None
        inode = self._inode(context)
        if flags & os.O_TRUNC:
            self.counts["open-truncating"] += 1
            with self.lock:
                self._resize(inode, 0)
        return self._open(inode, flags)

    def create(self, context: RequestContext, name: bytes, flags: int, mode: int) -> tuple[EntryReply, OpenReply]:
        self.counts["create-exclusive" if flags & os.O_EXCL else "create"] += 1
        inode = self.add(self._inode(context), name, mode)
        return self._looked_up(inode), self._open(inode, flags)

    def read(self, context: RequestContext, handle: int, offset: int, size: int) -> Buffer:
        self.counts["read"] += 1
        data = self._inode(context).data
        return bytes(size + 1) if data.startswith(b"overlong") else data[offset : offset + size]

    def write(
        self, context: RequestContext, handle: int, offset: int, data: memoryview, flags: int, is_mapped: bool
    ) -> int:
        self.counts["write"] += 1
        inode = self._inode(context)
        with self.lock:
            if len(inode.data) < offset:
                inode.data.extend(bytes(offset - len(inode.data)))
            inode.data[offset : offset + len(data)] = data
            inode.mtime_ns += 1_000_000
        return len(data)

    def flush(self, context: RequestContext, handle: int) -> None:
        self.counts["flush"] += 1

    def fsync(self, context: RequestContext, handle: int, datasync: bool) -> None:
        self.counts["fsync"] += 1

    def release(self, context: RequestContext, handle: int) -> None:
        self.counts["release"] += 1
        del self.handles[handle]

    def opendir(self, context: RequestContext, flags: int) -> OpenReply:
        self.counts["opendir"] += 1
        directory = self._inode(context)
        if not stat.S_ISDIR(directory.mode):
            raise errors.NotDirectoryError(str(directory.node_id))
        handle = next(self.numbers)
        with self.lock:
            children = list(directory.children.items())
        self.handles[handle] = [(b".", directory), (b"..", directory.parent), *children]
        return OpenReply(handle)

    def readdir(self, context: RequestContext, handle: int, offset: int, buffer: DirectoryBuffer) -> None:
        self.counts["readdir"] += 1
        entries = self.handles[handle]
        assert isinstance(entries, list)
        with_attributes = buffer.wants_attributes
        with self.lock:
            for index in range(offset, len(entries)):
                self.counts["entries"] += 1
                name, inode = entries[index]
                if with_attributes and index >= 2:
                    attributes = self._attributes(inode)
                    if not buffer.add_entry(name, inode.node_id, attributes, self.valid, index + 1):
                        break
                    inode.lookups += 1
                elif not buffer.add_name(name, inode.mode, inode.node_id, index + 1):
                    break

    def releasedir(self, context: RequestContext, handle: int) -> None:
        self.counts["releasedir"] += 1
        del self.handles[handle]

    def fsyncdir(self, context: RequestContext, handle: int, datasync: bool) -> None:
        self.counts["fsyncdir"] += 1

    def statfs(self, context: RequestContext) -> StatfsReply:
        return StatfsReply(1000, 400, 400, len(self.inodes), 0)

    def getxattr(self, context: RequestContext, name: bytes) -> bytes:
        self.counts["getxattr"] += 1
        value = self._inode(context).xattrs.get(name)
        if value is None:
            raise errors.NoAttributeError(repr(name))
        return value

    def listxattr(self, context: RequestContext) -> Sequence[bytes]:
        return list(self._inode(context).xattrs)

    def setxattr(self, context: RequestContext, name: bytes, value: bytes, flags: int) -> None:
        self._inode(context).xattrs[name] = value

    def removexattr(self, context: RequestContext, name: bytes) -> None:
        if self._inode(context).xattrs.pop(name, None) is None:
            raise errors.NoAttributeError(repr(name))


def populate(operations: InMemoryOperations, tree: dict[str, int]) -> None:
    """Create the directories of `tree`, each with its number of small files."""
    for name, count in tree.items():
        directory = operations.add(operations.root, name.encode(), stat.S_IFDIR | 0o755)
        for index in range(count):
            operations.add(directory, b"f%06d" % index, stat.S_IFREG | 0o644, b"content of %d\n" % index)


class ControlServer:
    """Serves the control socket of one session."""

    def __init__(self, operations: InMemoryOperations, session: FuseSession, library: str) -> None:
        self._operations, self._session, self._library = operations, session, library
        self._expiring: set[tuple[int, bytes]] = set()
        session.notifier.cached_tree = self

    def keeps_dentry(self, parent_id: int, name: bytes) -> bool:
        return (parent_id, name) in self._expiring

    def postpones_attributes(self, _node_id: int) -> bool:
        return False

    def write_everything(self) -> None:
        self._operations.counts["everything"] += 1
        for inode in list(self._operations.inodes.values()):
            for name, child in list(inode.children.items()):
                if stat.S_ISDIR(child.mode):
                    self._expiring.add((inode.node_id, name))
                self._session.notifier.invalidate_entry(inode.node_id, name)
            self._session.notifier.invalidate_inode(inode.node_id)

    def handle(self, request: dict[str, Any]) -> Any:
        operations, notifier = self._operations, self._session.notifier
        what, path, data = request["do"], request.get("path", "/"), request.get("data", "").encode("latin-1")
        if what == "put":
            parent, name = operations.find_parent(path)
            inode = parent.children.get(name)
            if inode is None:
                operations.add(parent, name, stat.S_IFREG | 0o644, data)
            else:
                inode.data[:] = data
                inode.mtime_ns += 1_000_000_000
        elif what == "replace":
            parent, name = operations.find_parent(path)
            operations.remove(parent, name)
            operations.add(parent, name, stat.S_IFREG | 0o644, data)
        elif what == "drop":
            operations.remove(*operations.find_parent(path))
        elif what == "mkdir":
            operations.add(*operations.find_parent(path), stat.S_IFDIR | 0o755)
        elif what == "store":
            notifier.store_now(operations.find(path).node_id, 0, data)
        elif what == "notify":
            self._notify(request["what"], path)
        elif what == "expire_absent":
            for number in range(request["count"]):
                notifier.invalidate_entry(ROOT_NODE_ID, b"absent-%d" % number)
        elif what == "valid":
            operations.valid = request["seconds"]
        elif what == "drain":
            return notifier.drain(5.0)
        elif what == "unhang":
            operations.hang_released.set()
            operations.reply_sender.send(b"+")
        elif what == "stop":
            self._session.stop()
        elif what == "counts":
            return self._take_counts()
        return None

    def _notify(self, what: str, path: str) -> None:
        operations, notifier = self._operations, self._session.notifier
        if what == "epoch":
            notifier.increment_epoch()
        elif what == "everything":
            notifier.invalidate_everything()
        elif what in ("inode", "attributes"):
            node_id = operations.find(path).node_id
            (notifier.invalidate_inode if what == "inode" else notifier.invalidate_attributes)(node_id)
        else:
            parent, name = operations.find_parent(path)
            if what == "expire":
                self._expiring.add((parent.node_id, name))
            notifier.invalidate_entry(parent.node_id, name)

    def _take_counts(self) -> dict[str, Any]:
        operations = self._operations
        counts, operations.counts = operations.counts, collections.Counter()
        callers, operations.callers = operations.callers, []
        changes, operations.changes = operations.changes, []
        return {
            "calls": counts,
            "callers": callers,
            "changes": [change._asdict() for change in changes],
            "has_inc_epoch": self._session.notifier.has_inc_epoch,
            "library": self._library,
            "inodes": len(operations.inodes),
            "handles": len(operations.handles),
            "queued": self._session.notifier.queue_length,
            "tasks": len(os.listdir("/proc/self/task")),
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
        }

    def start(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        threading.Thread(target=self._accept_connections, args=(listener,), daemon=True).start()

    def _accept_connections(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    stream.write(json.dumps(self.handle(json.loads(line))).encode() + b"\n")
                    stream.flush()


def main(binding_name: str, mountpoint: str, control: str, settings: str = "{}") -> int:
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("redisfuse.fuse").setLevel(logging.DEBUG)  # with refused notifications
    options = json.loads(settings)
    own = {name: options.pop(name) for name in ("valid", "no_open", "keep_cache") if name in options}
    operations = InMemoryOperations(**own)
    populate(operations, options.pop("tree", {}))
    operations.fail_start = options.pop("fail_start", False)
    operations.blocking_operations = frozenset(options.pop("blocking", ()))
    options["extra"] = tuple(options.get("extra", ()))
    options.setdefault("read_only", False)
    device = select_device(binding_name)
    session = FuseSession(device)
    operations.prepare_to_wait = session.prepare_to_wait
    ControlServer(operations, session, device.library).start(control)
    try:
        session.run(operations, FuseSessionOptions(mountpoint=Path(mountpoint), **options))
    except errors.RedisFuseError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    print("ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

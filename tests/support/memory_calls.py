"""A small filesystem in memory behind `fuse.interface.FuseOperations`, to try a binding on a real kernel mount.

Run as a process of its own:  python -m tests.support.memory_calls BINDING MOUNTPOINT CONTROL [JSON]
The JSON object has fields of MountOptions, and `notify` (use a Notifier; "old": as on an old kernel), `keep_cache`,
`fail_start`, and `tree` (directory name → number of files in it, to begin with).
CONTROL is a Unix socket on which one JSON request a line is answered by one JSON line:
  {"do": "put", "path": …, "data": …}     make or replace a file, without notifying the kernel
  {"do": "drop", "path": …}               remove a file or directory, without notifying the kernel
  {"do": "mkdir", "path": …}              make a directory, without notifying the kernel
  {"do": "invalidate", "paths": […], "ancestors": bool, "keep_dentry": bool}
  {"do": "invalidate_all"} / {"do": "drain"}
  {"do": "timeouts", "value": seconds}
  {"do": "counts"}                        how often each callback ran, and the notifier's counters
Paths are latin-1 text in JSON. Names decide: `raise-…` fails with the error of that name; `hang` hangs until
{"do": "unhang"}; `wait` waits until it is interrupted; `direct…` is opened with direct I/O and shows no size;
`direct-stream…` can't be sought in; `snap…` reads what it was when it was opened.
"""

# ruff: noqa: ARG002 - the methods are those of Calls, needed or not

from __future__ import annotations

import collections
import errno
import json
import logging
import math
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redisfuse import errors
from redisfuse.fuse.backends import select_binding
from redisfuse.fuse.interface import (
    UTIME_NOW,
    Binding,
    Dirent,
    FileAttributes,
    FuseSessionOptions,
    OpenReply,
    UtimensTime,
)
from redisfuse.fuse.notify import InvalidationQueue
from redisfuse.fuse.wire import INC_EPOCH
from redisfuse.paths.stale_names import is_stale, strip_stale_marker
from redisfuse.vfs.content_types import InlineContent
from redisfuse.vfs.inode_content import InodeContentCache, PinnedContent

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
    b"raise-enosys": OSError(errno.ENOSYS, "must not switch a callback off"),
}


class OldKernelQueue(InvalidationQueue):
    """As on Linux before 6.16, which refuses INC_EPOCH."""

    def _write_notification(self, notification: bytes) -> int:
        return errno.EINVAL if notification == INC_EPOCH else super()._write_notification(notification)


class MemoryNode:
    def __init__(self, inode: int, mode: int) -> None:
        self.inode = inode
        self.mode = mode
        self.data = bytearray()
        self.mtime_ns = 1_700_000_000_000_000_000
        self.xattrs: dict[bytes, bytes] = {}
        self.has_unknown_size = False


class MemoryOperations:
    """Nodes by path; one lock; handles hold their node, so that an unlinked file stays readable."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nodes: dict[bytes, MemoryNode] = {}
        self.children: dict[bytes, dict[bytes, None]] = {}
        self.handles: dict[int, MemoryNode | list[Dirent]] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.log: list[str] = []
        self.hang_released = threading.Event()
        self.next_number = 1
        self.keep_cache = False
        self.fail_start = False
        self.is_interrupted: Callable[[], bool] = lambda: False
        self.prepare_to_block: Callable[[], None] = lambda: None
        self.notifier: InvalidationQueue | None = None
        self.binding: Binding  # set by main, before the mount begins
        self.content_cache = InodeContentCache(self)
        self.add_node(b"/", stat.S_IFDIR | 0o755)

    # -- for the tests -----------------------------------------------------------------------------------------------

    def add_node(self, path: bytes, mode: int, data: bytes = b"") -> MemoryNode:
        with self.lock:
            self.next_number += 1
            node = MemoryNode(self.next_number, mode)
            node.data[:] = data
            node.has_unknown_size = os.path.basename(path).startswith(b"direct")
            self.nodes[path] = node
            if stat.S_ISDIR(mode):
                self.children.setdefault(path, {})
            if path != b"/":
                self.children[os.path.dirname(path)][os.path.basename(path)] = None
            return node

    def remove_node(self, path: bytes) -> None:
        with self.lock:
            del self.nodes[path]
            del self.children[os.path.dirname(path)][os.path.basename(path)]
            self.children.pop(path, None)

    def put_file(self, path: bytes, data: bytes) -> None:
        with self.lock:
            node = self.nodes.get(path)
            if node is None or stat.S_ISDIR(node.mode):
                self.add_node(path, stat.S_IFREG | 0o644, data)
            else:
                node.data[:] = data
                node.mtime_ns += 1_000_000_000

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _count(self, call: str, *details: Any) -> None:
        self.counts[call] += 1
        if details:
            self.log.append(f"{call} {' '.join(str(item) for item in details)}")

    def _find_node(self, path: bytes | None, handle: int | None = None) -> MemoryNode:
        with self.lock:
            if handle is not None:
                node = self.handles[handle]
                assert isinstance(node, MemoryNode)
                return node
            assert path is not None
            found = self.nodes.get(path)
        if found is None:
            name = os.path.basename(path)
            if name in FAILURES_BY_NAME:
                raise FAILURES_BY_NAME[name]
            if name == b"hang":
                self.counts["hanging"] += 1
                self.prepare_to_block()
                self.hang_released.wait(60)
            if name == b"wait":
                self.prepare_to_block()
                while not self.is_interrupted():
                    time.sleep(0.01)
                raise errors.InterruptedWaitError("interrupted")
            raise errors.NotFoundError(repr(path))
        return found

    def _build_attr(self, node: MemoryNode) -> FileAttributes:
        size = 0 if node.has_unknown_size else len(node.data)
        return FileAttributes(node.inode, node.mode, 1, size, node.mtime_ns, os.getuid(), os.getgid())

    def _reply_open(self, node: MemoryNode, path: bytes, flags: int) -> OpenReply:
        with self.lock:
            self.next_number += 1
            name = os.path.basename(path)
            snapshot = name.startswith(b"snap") and flags & os.O_ACCMODE == os.O_RDONLY
            if snapshot:
                seen = MemoryNode(node.inode, node.mode)
                seen.data[:] = node.data
                node = seen
            self.handles[self.next_number] = node
            size = len(node.data) if snapshot else None
            return OpenReply(
                self.next_number, name.startswith(b"direct"), self.keep_cache, name.startswith(b"direct-stream"), size
            )

    # -- Calls -------------------------------------------------------------------------------------------------------

    def getattr(self, path: bytes | None, handle: int | None) -> FileAttributes:
        self._count("getattr")
        node = self._find_node(path, handle)
        if node.has_unknown_size:
            self.binding.disable_attr_cache()
        return self._build_attr(node)

    def opendir(self, path: bytes) -> int:
        self._count("opendir")
        with self.lock:
            names = self.children.get(path)
            if names is None:
                raise errors.NotDirectoryError(repr(path))
            prefix = path.rstrip(b"/") + b"/"
            nodes = [(name, self.nodes[prefix + name]) for name in names]
            self.next_number += 1
            self.handles[self.next_number] = [Dirent(name, node.mode, self._build_attr(node)) for name, node in nodes]
            return self.next_number

    def readdir(self, handle: int, offset: int) -> Iterator[Dirent]:
        self._count("readdir")
        entries = self.handles[handle]
        assert isinstance(entries, list)
        for index in range(offset, len(entries)):
            self.counts["entries"] += 1
            yield entries[index]

    def releasedir(self, handle: int) -> None:
        self._count("releasedir")
        del self.handles[handle]

    def open(self, path: bytes, flags: int) -> OpenReply:
        self._count("open")
        node = self._find_node(path)
        if flags & os.O_TRUNC:
            self._count("open-truncating", os.fsdecode(path))
            with self.lock:
                node.data.clear()
        return self._reply_open(node, path, flags)

    def create(self, path: bytes, flags: int, mode: int) -> OpenReply:
        self._count("create", path.decode("latin-1"), "EXCL" if flags & os.O_EXCL else "-", oct(mode))
        return self._reply_open(self.add_node(path, mode | stat.S_IFREG), path, os.O_RDWR)

    def read(self, handle: int, size: int, offset: int) -> bytes | memoryview:
        self._count("read")
        with self.lock:
            node = self._find_node(None, handle)
            return bytes(node.data[offset : offset + size])

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:
        with self.lock:
            node = self._find_node(path)
            return PinnedContent(
                InlineContent(bytes(node.data)), path, node.mtime_ns, 0, is_streamed=node.has_unknown_size
            )

    def load_cached_content(self, path: bytes) -> PinnedContent | None:
        return None

    def content_version(self, key: bytes) -> int:
        return 0

    def is_recently_changed(self, key: bytes) -> bool:
        return False

    def invalidate_paths(self, paths: Collection[bytes]) -> None:
        """Nothing: the tests send their notifications themselves."""

    def max_age(self) -> float:
        return math.inf

    def read_node(self, node: bytes, size: int, offset: int, kernel_size: int | None, is_size_stable: bool) -> bytes:
        self._count("read_node", node.decode("latin-1"), offset)
        number = self.binding.current_node_id()
        found = self.content_cache.read_cached(node, number, size, offset, kernel_size, is_size_stable)
        return (
            self.content_cache.read(node, number, size, offset, kernel_size, is_size_stable, self.binding)
            if found is None
            else found
        )

    def getattr_node(self, node: bytes, *, for_read: bool) -> FileAttributes:
        self._count("getattr_node")
        seen = self.content_cache.get_pinned(node)
        if is_stale(node):
            self.binding.disable_attr_cache()
        if seen is None and for_read and self._find_node(strip_stale_marker(node)).has_unknown_size:
            seen = self.content_cache.get_or_load(node, self.binding.current_node_id())
        if seen is None:
            return self.getattr(strip_stale_marker(node), None)
        size = seen.content.size
        if seen.is_streamed:
            self.binding.disable_attr_cache()
            if for_read:
                self.content_cache.stream_more(seen, self.binding)
            size = seen.streamed_bytes
        return FileAttributes(7, stat.S_IFREG | 0o644, 1, size, seen.mtime_ns, os.getuid(), os.getgid())

    def detach_node(self, node: bytes, stale_node: bytes) -> None:
        self._count("retire", node.decode("latin-1"))
        self.content_cache.detach(node, stale_node)

    def forget(self, node_ids: Iterable[int]) -> None:
        node_ids = list(node_ids)
        self.counts["forgotten"] += len(node_ids)
        self.content_cache.drop_forgotten(node_ids, self.binding)

    def has_been_read(self, node: bytes) -> bool:
        return self.content_cache.was_read(node)

    def list_read_nodes(self) -> Sequence[bytes]:
        return self.content_cache.list_read_paths()

    def write(self, handle: int, data: bytes, offset: int, *, append: bool) -> int:
        self._count("write")
        with self.lock:
            node = self._find_node(None, handle)
            if len(node.data) < offset:
                node.data.extend(bytes(offset - len(node.data)))
            node.data[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, path: bytes | None, length: int, handle: int | None) -> None:
        self._count("truncate", path.decode("latin-1") if path and handle is None else "by-handle", length)
        with self.lock:
            node = self._find_node(path, handle)
            del node.data[length:]
            node.data.extend(bytes(length - len(node.data)))

    def flush(self, handle: int) -> None:
        self._count("flush")

    def fsync(self, handle: int, datasync: bool) -> None:
        self._count("fsync")

    def release(self, handle: int) -> None:
        self._count("release")
        del self.handles[handle]

    def mkdir(self, path: bytes, mode: int) -> None:
        self._count("mkdir")
        self.add_node(path, mode | stat.S_IFDIR)

    def rmdir(self, path: bytes) -> None:
        self._count("rmdir")
        if self.children[path]:
            raise errors.NotEmptyError(repr(path))
        self.remove_node(path)

    def unlink(self, path: bytes) -> None:
        self._count("unlink", path.decode("latin-1"))
        with self.lock:
            if path in self.nodes and os.path.basename(path) not in self.children[os.path.dirname(path)]:
                del self.nodes[path]  # hidden
            else:
                self.remove_node(path)

    def unlink_open(self, path: bytes, hidden_path: bytes) -> None:
        self._count("unlink_open", path.decode("latin-1"))
        with self.lock:
            node = self.nodes[path]
            self.remove_node(path)
            self.nodes[hidden_path] = node

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self._count("rename", old.decode("latin-1"), new.decode("latin-1"), flags)
        with self.lock:
            if flags & 1 and new in self.nodes:
                raise errors.ExistsError(repr(new))
            if flags & 2:
                self.nodes[old], self.nodes[new] = self.nodes[new], self.nodes[old]
                return
            node = self.nodes[old]
            self.remove_node(old)
            self.nodes[new] = node
            self.children[os.path.dirname(new)][os.path.basename(new)] = None

    def symlink(self, target: bytes, path: bytes) -> None:
        raise errors.NotPermittedError("no links here")

    def link(self, old: bytes, new: bytes) -> None:
        raise errors.NotSupportedError("no links here")

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        raise errors.NotPermittedError("no devices here")

    def chmod(self, path: bytes | None, mode: int, handle: int | None) -> None:
        self._count("chmod", oct(mode))
        self._find_node(path, handle)

    def chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> None:
        self._count("chown", uid, gid)
        self._find_node(path, handle)

    def utimens(self, path: bytes | None, atime: UtimensTime, mtime: UtimensTime, handle: int | None) -> None:
        self._count("utimens", atime, mtime)
        node = self._find_node(path, handle)
        if isinstance(mtime, int):
            node.mtime_ns = mtime
        elif mtime == UTIME_NOW:
            node.mtime_ns = 2_000_000_000_000_000_000

    def statfs(self, path: bytes) -> Mapping[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1000, "f_bfree": 400, "f_bavail": 400, "f_namemax": 255}

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        self._count("getxattr")
        value = self._find_node(path).xattrs.get(name)
        if value is None:
            raise errors.NoAttributeError(repr(name))
        return value

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        return list(self._find_node(path).xattrs)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._find_node(path).xattrs[name] = value

    def removexattr(self, path: bytes, name: bytes) -> None:
        if self._find_node(path).xattrs.pop(name, None) is None:
            raise errors.NoAttributeError(repr(name))

    def init(self) -> None:
        if self.fail_start:
            raise errors.UnavailableError("nothing to serve")
        if self.notifier is not None:
            self.notifier.start()

    def destroy(self) -> None:
        self.hang_released.set()


def populate(operations: MemoryOperations, tree: Mapping[str, int]) -> None:
    """`tree`: directory name → number of small files in it."""
    for name, count in tree.items():
        directory = b"/" + name.encode()
        operations.add_node(directory, stat.S_IFDIR | 0o755)
        for index in range(count):
            operations.add_node(directory + b"/f%06d" % index, stat.S_IFREG | 0o644, b"content of %d\n" % index)


def serve_control(path: str, operations: MemoryOperations, binding: Any, notifier: InvalidationQueue | None) -> None:
    def handle_request(request: dict[str, Any]) -> Any:
        what = request["do"]
        if what == "put":
            operations.put_file(request["path"].encode("latin-1"), request["data"].encode("latin-1"))
        elif what == "drop":
            operations.remove_node(request["path"].encode("latin-1"))
        elif what == "mkdir":
            operations.add_node(request["path"].encode("latin-1"), stat.S_IFDIR | 0o755)
        elif what == "timeouts":
            binding.set_timeouts(request["value"], request["value"], request["value"])
        elif what == "unhang":
            operations.hang_released.set()
        elif what == "invalidate" and notifier is not None:
            paths = [item.encode("latin-1") for item in request["paths"]]
            more = {name: request[name] for name in ("ancestors", "keep_dentry") if name in request}
            notifier.invalidate(paths, **more)
        elif what == "invalidate_all" and notifier is not None:
            notifier.invalidate_all()
        elif what == "drain" and notifier is not None:
            return notifier.drain(5.0)
        elif what == "counts":
            counters = notifier.counters._asdict() if notifier is not None else {}
            log, operations.log = operations.log, []
            counts, operations.counts = operations.counts, collections.Counter()
            return {
                "calls": counts,
                "log": log,
                "notifier": counters,
                "library": binding.library,
                "threads": len(binding.worker_pool),
                "can_set_timeouts": binding.can_set_timeouts,
                "tasks": len(os.listdir("/proc/self/task")),
                "handles": len(operations.handles),
                "rss": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
            }
        return None

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept_connections() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    stream.write(json.dumps(handle_request(json.loads(line))).encode() + b"\n")
                    stream.flush()

    threading.Thread(target=accept_connections, daemon=True).start()


def main(binding_name: str, mountpoint: str, control: str, settings: str = "{}") -> int:
    logging.basicConfig(level=logging.INFO)
    options = json.loads(settings)
    calls = MemoryOperations()
    populate(calls, options.pop("tree", {}))
    calls.fail_start = options.pop("fail_start", False)
    calls.keep_cache = options.pop("keep_cache", False)
    notify = options.pop("notify", False)
    notifier = calls.notifier = (OldKernelQueue() if notify == "old" else InvalidationQueue()) if notify else None
    options["extra"] = tuple(options.get("extra", ()))
    options.setdefault("read_only", False)
    binding = calls.binding = select_binding(binding_name)
    calls.is_interrupted = binding.is_interrupted
    calls.prepare_to_block = binding.prepare_to_block
    serve_control(control, calls, binding, notifier)
    try:
        binding.run(calls, FuseSessionOptions(mountpoint=Path(mountpoint), **options), notifier)
    except errors.RedisFuseError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    print("ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

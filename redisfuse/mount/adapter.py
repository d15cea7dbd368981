"""The filesystem's face to the binding: paths, flags and handles in, attributes and bytes out.

Every method may run in many threads at once. The lock here is held only to look into the table of handles.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from redisfuse.errors import (
    AccessError,
    BadHandleError,
    ExistsError,
    InvalidError,
    IsDirectoryError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    NotPermittedError,
    NotSupportedError,
    ReadOnlyError,
)
from redisfuse.fuse.interface import OMIT, Attr, Entry, Opened, Time
from redisfuse.paths.grammar import MARK
from redisfuse.paths.stale_names import is_retired, live
from redisfuse.vfs.content_types import SmallSnapshot, Snapshot
from redisfuse.vfs.filesystem import Filesystem, Stat
from redisfuse.vfs.growing_content import FollowingSnapshot, content_of
from redisfuse.vfs.handles import DirectoryHandle, FileHandle, Handle, ScratchHandle, SnapshotHandle
from redisfuse.vfs.inode_content import Beginning, SharedFiles
from redisfuse.vfs.memory_fs import Scratch
from redisfuse.vfs.namespace import Rearranger
from redisfuse.vfs.nodes import DIRECTORY_NODES, DirectoryNode, FileNode, Node, OpenNode, ScratchNode, UpdaterNode
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir_cache import Listings

HOT_BYTES = 64 * 1024  # a longer value is not fetched before it is read
_CHANGING = os.O_ACCMODE | os.O_TRUNC  # of open's flags, those that only a file opened for reading has not
RENAME_NOREPLACE = 1  # renameat2(2)
TTL_NAME = b"user.redis.ttl"
STATUS_NAME = b"user.redisfuse.status"  # on the root, never listed: what `redisfuse status` shows


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns every file, and the permission bits: 0400/0500, in write mode 0600/0700, widened by `-o umask=`."""

    uid: int
    gid: int
    umask: int
    write: bool

    def mode(self, found: Stat) -> int:
        """Type and permission bits."""
        if found.mode is not None:
            return (stat.S_IFDIR if found.directory else stat.S_IFREG) | found.mode
        bits = 0o777 if found.directory else 0o666 if found.readable else 0
        if not self.write or not found.editable:
            bits &= ~0o222
        return (stat.S_IFDIR if found.directory else stat.S_IFREG) | (bits & ~self.umask)


@dataclass(frozen=True, slots=True)
class Outside:
    """What operations need from the mount around them."""

    started: Callable[[], None]
    stopped: Callable[[], None]
    waiting: Callable[[], None]  # the current call may have to wait: as Binding.waiting
    without_open: Callable[[], bool]  # whether files are read without being opened: as Binding.without_open
    brief: Callable[[], None]  # what is told now is not to be believed for any time: as Binding.brief
    number: Callable[[], int]  # of the kernel's node that is read: as Binding.node
    believed_size: Callable[[bytes, int], int | None]  # how long it believes that one is: as Binding.believed_size
    has_node: Callable[[int], bool]  # whether the kernel still knows one: as Binding.has_node
    store: Callable[[int, bytes], None]  # give it bytes of one: as Binding.store
    outdated: Callable[[], None]  # the length that the kernel knows of it is too short: as Binding.outdated
    push: Callable[[Collection[bytes]], None]  # the kernel is to look again at these paths
    trust: Callable[[], float]  # for how many seconds anything may be believed
    coherent: Callable[[], bool]  # whether the kernel's pages are dropped as soon as a value changes
    caller: Callable[[], int]  # the thread that the current callback works for
    process_of: Callable[[int], int]  # the process of a thread; the thread itself if that is not known any more
    reading: Callable[[], bool | None]  # whether that reads, False: seeks to the end, None: not known
    removing: Callable[[], bool]  # whether that is surely about to remove a file, and not to replace it
    has_open: Callable[[int, bytes], bool]  # whether a process has a path of this mount open
    space: Callable[[], Mapping[str, int]]  # statvfs
    refresh: Callable[[], None]
    note: Callable[[bytes], None]  # the kernel will remember what it is told about a path
    note_keys: Callable[[Sequence[bytes]], None]  # and about the names of these keys, with their attributes
    status: Callable[[], bytes]  # JSON


class Name(NamedTuple):
    """One name of a listing."""

    name: bytes
    mode: int
    inode: int
    file: FileNode | None  # a string, whose attributes can be told with its name


@dataclass(slots=True)
class OpenHandle:
    """An open file, and where it is as far as this mount knows."""

    handle: Handle
    path: bytes
    gone: bool = False  # it was unlinked or replaced there, through this mount


class Operations:
    """Implements `binding.face.Calls`."""

    def __init__(self, tree: Filesystem, rearranger: Rearranger | None, ownership: Ownership, outside: Outside) -> None:
        self._tree = tree
        self._change = rearranger
        self._own = ownership
        self._plain_mode = ownership.mode(Stat(False, 0, 0, True))
        self._outside = outside
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._openings: dict[int, OpenHandle] = {}
        self._directories: dict[int, DirectoryHandle[Name]] = {}
        self.listings: Listings[Name] = Listings(tree.grammar.split)
        keyspace = tree.keyspace
        self.shared = SharedFiles(
            self._begin, self._at_hand, keyspace.change_count, keyspace.is_recent, outside.push, outside.trust
        )

    # -- the mount's life --------------------------------------------------------------------------------------------

    def started(self) -> None:
        self._outside.started()

    def stopped(self) -> None:
        self._outside.stopped()

    # -- attributes --------------------------------------------------------------------------------------------------

    def getattr(self, path: bytes | None, handle: int | None) -> Attr:
        if handle is not None:
            self._outside.waiting()
            if (found := self._handle_attr(handle, known=path is not None)) is not None:
                return found
        if path is None:
            raise BadHandleError("no such file is open")
        if (seen := self.shared.seen(path)) is not None:
            self._outside.note(path[1:])
            return self._seen_attr(path[1:], seen, reading=False)
        path = path[1:]
        self._outside.note(path)
        node: Node | None = self._tree.known(path) if self._change is None else None
        if node is None:
            self._outside.waiting()
            node = self._tree.find(path)
        if type(node) is FileNode:
            if self._is_hot(node):
                return self._prepared_attr(path, node)
            if node.is_plain:
                return self._plain_attr(path, node)
        if isinstance(node, UpdaterNode):
            self._outside.refresh()
        return self._told(path, self._tree.stat(node))

    def _is_hot(self, node: FileNode) -> bool:
        """Whether a value changes so often that it might be another one by the time that it is read.

        (Where each open is told, that is when it is asked for.)
        """
        if not self._tree.keyspace.is_busy(node.target.key) or not self._outside.without_open():
            return False
        return node.editable and node.length <= HOT_BYTES

    def _prepared_attr(self, path: bytes, node: FileNode) -> Attr:
        """Attributes, with what goes with them kept to be read."""
        self._outside.waiting()
        beginning = self.shared.prepare(b"/" + path, self._beginning(node, None))
        return self._attr(path, Stat(False, beginning.snapshot.size, beginning.mtime_ns, True))

    def getattr_node(self, node: bytes, *, reading: bool) -> Attr:
        path = live(node)[1:]
        self._outside.waiting()
        if path == node[1:]:
            self._outside.note(path)
        else:
            self._outside.brief()
        seen = self.shared.seen(node)
        if seen is None:
            found = self._tree.stat(self._tree.find(path))
            if not reading or found.measured or self._outside.reading() is False:
                return self._told(path, found)
            seen = self.shared.begin(node, self._outside.number())
        return self._seen_attr(path, seen, reading=reading)

    def _told(self, path: bytes, found: Stat) -> Attr:
        """As `_attr`; what has no length beforehand must be asked for again by who reads it, unless he opens it."""
        if not found.measured and self._outside.without_open():
            self._outside.brief()
        return self._attr(path, found)

    def _seen_attr(self, path: bytes, seen: Beginning, *, reading: bool) -> Attr:
        """What is told of a file that was read: what it was, and what was appended to that."""
        if seen.superseded or seen.streams or is_retired(seen.node):
            self._outside.brief()
        if seen.streams:
            if reading:
                self.shared.extend(seen, self._outside.store, to_the_end=not self._outside.reading())
            return self._attr(path, Stat(False, seen.so_far, seen.mtime_ns, True))
        mtime = seen.mtime_ns
        if isinstance(seen.snapshot, FollowingSnapshot) and is_retired(seen.node):
            self._outside.waiting()
            before = seen.snapshot.size
            seen.snapshot.grow()
            if seen.snapshot.size != before:
                mtime = seen.mtime_ns = time.time_ns()
        return self._attr(path, Stat(False, seen.snapshot.size, mtime, True))

    def _handle_attr(self, handle: int, *, known: bool) -> Attr | None:
        """What an edited, new or unlinked file is now, whatever its path leads to; and, where the path is no longer
        `known` (the kernel was made to forget it), what any other file was when it was opened."""
        found = self._openings.get(handle)
        if found is None:
            return None
        opened, path = found.handle, found.path
        if isinstance(opened, FileHandle) and opened.file.size is not None:
            return self._attr(path, self._tree.stat(OpenNode(opened.file)))
        if known:
            return None
        if not found.gone:
            with contextlib.suppress(NotFoundError):
                there = self._tree.stat(self._tree.find(path))
                if not there.directory:
                    return self._attr(path, there)
        # It is as long as what is being read.
        return self._attr(path, Stat(False, opened.size, self._tree.started_ns, isinstance(opened, FileHandle)))

    def _plain_attr(self, path: bytes, node: FileNode) -> Attr:
        """As `_attr` of its `stat`, quickly: most files are plain strings."""
        own, tree = self._own, self._tree
        return Attr(inode_of(path), self._plain_mode, 1, node.length, tree.age(node.target), own.uid, own.gid)

    def _attr(self, path: bytes, found: Stat) -> Attr:
        own = self._own
        nlink = 2 if found.directory else int(found.linked)
        return Attr(inode_of(path), own.mode(found), nlink, found.size, found.mtime_ns, own.uid, own.gid)

    # -- directories -------------------------------------------------------------------------------------------------

    def opendir(self, path: bytes) -> int:
        path = path[1:]
        node = self._tree.find(path)
        if not isinstance(node, DIRECTORY_NODES) and not (isinstance(node, ScratchNode) and node.directory):
            raise NotDirectoryError("not a directory")
        handle = DirectoryHandle(lambda: self._listing(path, node))
        with self._lock:
            number = next(self._numbers)
            self._directories[number] = handle
        return number

    def _listing(self, path: bytes, node: Node) -> Iterator[Name]:
        # Only what comes from Redis alone is kept; in write mode the scratch area and open files are listed too.
        if self._change is None and isinstance(node, DirectoryNode) and self._outside.coherent():
            return self.listings.of(node.directory, lambda: self._names(path, node))
        return self._names(path, node)

    def _names(self, path: bytes, node: Node) -> Iterator[Name]:
        base = path + b"/" if path else b""
        for name, found in self._tree.list(path, node):
            if type(found) is FileNode and found.is_plain and not name.endswith(MARK):
                yield Name(name, self._plain_mode, inode_of(base + name), found)
            else:
                # The others get their attributes when they are asked for: a collection's size is that of its rendering,
                # not worth making for a plain `ls`; and changes are pushed to a marked name only if it was asked for.
                directory = isinstance(found, DIRECTORY_NODES) or (isinstance(found, ScratchNode) and found.directory)
                yield Name(name, self._own.mode(Stat(directory, 0, 0, True)), inode_of(base + name), None)

    def readdir(self, handle: int, offset: int) -> Iterator[Entry]:
        found = self._directories.get(handle)
        if found is None:
            raise BadHandleError("no such directory is open")
        for portion in found.portions(offset):
            # What the kernel remembers must be noted before it is looked whether it is still right: what changes after
            # that is pushed.
            self._outside.note_keys([file.target.key for _, _, _, file in portion if file is not None])
            for name, mode, inode, file in portion:
                yield Entry(name, mode, None if file is None else self._listed_attr(inode, file), inode)

    def _listed_attr(self, inode: int, file: FileNode) -> Attr | None:
        """The attributes of a listed string, unless it was heard of since."""
        own, tree = self._own, self._tree
        key = file.target.key
        if tree.keyspace.change_count(key) != file.changes:
            return None
        if self.shared.is_changing(key) or self._is_hot(file):
            return None
        return Attr(inode, self._plain_mode, 1, file.length, tree.age(file.target), own.uid, own.gid)

    def releasedir(self, handle: int) -> None:
        self._directories.pop(handle, None)

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> Opened:
        path = path[1:]
        if self._change is None and not flags & _CHANGING and (present := self._tree.present(path)) is not None:
            return self._opened_snapshot(present, path)
        self._outside.waiting()
        node = self._tree.find(path)
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writing and self._change is None:
            raise ReadOnlyError("the mount is read-only: it was made without --write")
        if isinstance(node, ScratchNode) and not node.directory:
            return self._open_scratch(path, flags)
        if isinstance(node, OpenNode) or (self._overlay is not None and isinstance(node, FileNode) and node.editable):
            return self._open_file(path, node, flags, writing)
        if writing:
            raise AccessError("only strings and hash fields can be edited")
        if isinstance(node, UpdaterNode):
            self._outside.refresh()
            return self._opened_snapshot(SmallSnapshot(b""), path)
        if not isinstance(node, FileNode):
            raise IsDirectoryError("a directory")
        snapshot, streamed = self._tree.reader.open(node)
        return self._opened_snapshot(snapshot, path, streams=streamed)

    @property
    def _overlay(self) -> Overlay | None:
        return self._tree.overlay

    def _open_scratch(self, path: bytes, flags: int) -> Opened:
        assert self._overlay is not None
        file = self._overlay.scratch.open(path)
        if flags & os.O_TRUNC:
            file.truncate(0)
        return self._opened(ScratchHandle(file), path, None, alike=True)

    def _open_file(self, path: bytes, node: FileNode | OpenNode, flags: int, writing: bool) -> Opened:
        assert self._overlay is not None
        files = self._overlay.files
        if isinstance(node, OpenNode):
            file = files.reopened(node.file, writing=writing)
        else:
            if writing:
                files.edits.check_allowed(node.target.key)
            file = files.opened(node.target, path, writing=writing)
        try:
            snapshot = None
            if writing:
                file.begin_edit()
                if flags & os.O_TRUNC:
                    file.truncate(0)
            elif file.size is None and file.target is not None:
                snapshot = self._tree.reader.following(file.target)
        except BaseException:
            files.closed(file, writing=writing)
            raise
        opener = self._outside.caller() if writing else 0
        handle = FileHandle(files, file, snapshot, flags, writing=writing, opener=opener)
        return self._opened(handle, path, snapshot, alike=file.reads_alike(handle))

    def create(self, path: bytes, flags: int, mode: int) -> Opened:
        path = path[1:]
        if self._change is None or self._overlay is None:
            raise ReadOnlyError("the mount is read-only: it was made without --write")
        made = self._change.create(path, exclusive=bool(flags & os.O_EXCL), mode=mode)
        if isinstance(made, bytes):
            return self._open_scratch(made, flags)
        try:
            if not made.new:
                made.begin_edit()
                if flags & os.O_TRUNC:
                    made.truncate(0)
        except BaseException:
            self._overlay.files.closed(made, writing=True)
            raise
        opener = self._outside.caller()
        handle = FileHandle(self._overlay.files, made, None, flags, writing=True, opener=opener)
        return self._opened(handle, path, None, alike=made.reads_alike(handle))

    def _opened_snapshot(self, snapshot: Snapshot, path: bytes, *, streams: bool = False) -> Opened:
        """A handle that only reads."""
        number = self._number(SnapshotHandle(snapshot), path)
        if streams:
            return Opened(number, direct_io=True)
        return Opened(number, keep_cache=self._outside.coherent(), size=snapshot.size, content=_stand_in(snapshot))

    def _opened(self, handle: Handle, path: bytes, snapshot: Snapshot | None, *, alike: bool) -> Opened:
        """A handle in write mode; it reads `snapshot`, or (None) what is being edited."""
        size = None if snapshot is None else snapshot.size
        number, keep = self._number(handle, path), self._outside.coherent()
        return Opened(number, keep_cache=keep, size=size, alike=alike, content=_stand_in(snapshot))

    def _number(self, handle: Handle, path: bytes) -> int:
        with self._lock:
            number = next(self._numbers)
            self._openings[number] = OpenHandle(handle, path)
        return number

    def _handle(self, handle: int) -> Handle:
        return self._opening(handle).handle

    def _opening(self, handle: int) -> OpenHandle:
        found = self._openings.get(handle)
        if found is None:
            raise BadHandleError("no such file is open")
        return found

    def _moved(self, old: bytes, new: bytes | None) -> None:
        """What is open at or below a path is at or below another now; None: nowhere."""
        below = old + b"/"
        with self._lock:
            for opening in self._openings.values():
                if opening.gone or not (opening.path == old or opening.path.startswith(below)):
                    continue
                if new is None:
                    opening.gone = True
                else:
                    opening.path = new + opening.path[len(old) :]

    # -- bytes -------------------------------------------------------------------------------------------------------

    def read(self, handle: int, size: int, offset: int) -> bytes:
        opened = self._handle(handle)
        if type(opened) is SnapshotHandle and (data := opened.present(offset, size)) is not None:
            return data
        self._outside.waiting()
        return opened.read(offset, size)

    # Where files are not opened.

    def read_node(self, node: bytes, size: int, offset: int, told: int | None, sure: bool) -> bytes:
        shared, number = self.shared, self._outside.number()
        data = shared.present(node, number, size, offset, told, sure)
        if data is not None:
            return data
        self._outside.waiting()
        believed = self._outside.believed_size
        return shared.read(
            node, number, size, offset, told, sure, lambda: believed(live(node), number), self._outside.outdated
        )

    def _begin(self, path: bytes, told: int | None) -> Beginning:
        node = self._tree.find(path[1:])
        if isinstance(node, UpdaterNode):
            return Beginning(SmallSnapshot(b""), b"", self._tree.started_ns, 0)
        if not isinstance(node, FileNode):
            raise IsDirectoryError("a directory")
        return self._beginning(node, told)

    def _beginning(self, node: FileNode, told: int | None) -> Beginning:
        key = node.target.key
        version, age = self._tree.keyspace.change_count(key), self._tree.age(node.target)
        snapshot, streams = self._tree.reader.open(node, told)
        if node.editable and snapshot.size != node.length:
            self._tree.attributes.drop([key])  # it has changed since, which will be told of
            self._tree.keyspace.touched(key)
        return Beginning(snapshot, key, age, version, streams)

    def _at_hand(self, path: bytes) -> Beginning | None:
        node = self._tree.known(path[1:])
        if not isinstance(node, FileNode):
            return None
        key = node.target.key
        version, age = self._tree.keyspace.change_count(key), self._tree.age(node.target)
        snapshot = self._tree.reader.present(node.target)
        return None if snapshot is None else Beginning(snapshot, key, age, version)

    def retire(self, node: bytes, retired: bytes) -> None:
        self.shared.retire(node, retired)

    def forgotten(self, numbers: Iterable[int]) -> None:
        self.shared.forgotten(numbers, self._outside.has_node)

    def was_read(self, node: bytes) -> bool:
        return self.shared.was_read(node)

    def read_nodes(self) -> Sequence[bytes]:
        return self.shared.nodes()

    def write(self, handle: int, data: bytes, offset: int, *, append: bool) -> int:
        opened = self._handle(handle)
        if not (type(opened) is FileHandle and opened.write_present(offset, data, append=append)):
            self._outside.waiting()
            opened.write(offset, data, append=append)
        return len(data)

    def truncate(self, path: bytes | None, length: int, handle: int | None) -> None:
        if handle is not None:
            self._handle(handle).truncate(length)
            return
        assert path is not None
        path = path[1:]
        change = self._changing()
        node = self._tree.find(path)
        if isinstance(node, ScratchNode):
            assert self._overlay is not None
            file = self._overlay.scratch.open(path)
            file.truncate(length)
            file.close()
        else:
            change.truncate(path, length)

    def flush(self, handle: int) -> None:
        opening = self._opening(handle)
        opened = opening.handle
        if type(opened) is FileHandle and not opened.writing:
            return
        self._outside.waiting()
        final = True
        if isinstance(opened, FileHandle) and opened.file.uncommitted:
            final = self._is_final(opened.opener, opening.path)
        opened.flush(final)

    def _is_final(self, opener: int, path: bytes) -> bool:
        """Whether a close means that the writing is done: not if a child closes what it inherited and the program
        that opened the file still has it open (`sh -c 'a; b' > file` closes once for each command)."""
        caller, process_of = self._outside.caller(), self._outside.process_of
        if caller == opener:
            return True
        process = process_of(opener)
        return process == process_of(caller) or not self._outside.has_open(process, path)

    def fsync(self, handle: int, datasync: bool) -> None:
        self._handle(handle).fsync()

    def release(self, handle: int) -> None:
        with self._lock:
            found = self._openings.pop(handle, None)
        if found is None:
            return
        opened = found.handle
        if type(opened) is FileHandle and opened.release_present():
            return
        if type(opened) is not SnapshotHandle or not opened.in_memory:
            self._outside.waiting()
        opened.release()

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _changing(self) -> Rearranger:
        if self._change is None:
            raise ReadOnlyError("the mount is read-only: it was made without --write")
        return self._change

    def mkdir(self, path: bytes, mode: int) -> None:
        self._changing().make_directory(path[1:], mode)

    def rmdir(self, path: bytes) -> None:
        self._changing().remove_directory(path[1:])

    def unlink(self, path: bytes) -> None:
        self._changing().unlink(path[1:])

    def unlink_open(self, path: bytes, hidden: bytes) -> None:
        self._changing().unlink_open(path[1:], hidden[1:], for_good=self._outside.removing())
        self._moved(path[1:], None)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise InvalidError("only RENAME_NOREPLACE is known here")
        self._changing().rename(old[1:], new[1:], replace=not flags & RENAME_NOREPLACE)
        self._moved(old[1:], new[1:])

    def symlink(self, target: bytes, path: bytes) -> None:
        raise NotPermittedError("there are no symbolic links in Redis")

    def link(self, old: bytes, new: bytes) -> None:
        raise NotPermittedError("there are no hard links in Redis")

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        if not stat.S_ISREG(mode):
            raise NotPermittedError("there are no devices, pipes and sockets in Redis")
        opened = self.create(path, os.O_WRONLY | os.O_EXCL, mode | 0o044)
        self.release(opened.handle)

    def _scratch_of(self, path: bytes) -> Scratch | None:
        """The scratch area, if the path is of something in it."""
        overlay = self._overlay
        return overlay.scratch if overlay is not None and overlay.scratch.exists(path[1:]) else None

    def chmod(self, path: bytes | None, mode: int, handle: int | None) -> None:
        """Succeeds without effect (but on junk), as programs fail otherwise."""
        self.getattr(path, handle)
        if path is not None and (scratch := self._scratch_of(path)) is not None:
            scratch.set_mode(path[1:], mode)

    def chown(self, path: bytes | None, uid: int, gid: int, handle: int | None) -> None:
        """Succeeds without effect, as programs fail otherwise."""
        self.getattr(path, handle)

    def utimens(self, path: bytes | None, atime: Time, mtime: Time, handle: int | None) -> None:
        """Succeeds without effect (but on junk), as programs fail otherwise."""
        self.getattr(path, handle)
        if mtime != OMIT and path is not None and (scratch := self._scratch_of(path)) is not None:
            scratch.set_modified(path[1:], mtime if isinstance(mtime, int) else time.time_ns())

    def statfs(self, path: bytes) -> Mapping[str, int]:
        return self._outside.space()

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        path = path[1:]
        if name.startswith(b"user.redis."):
            return self._tree.extended_one(self._tree.find(path), name)
        if name == STATUS_NAME and not path:
            return self._outside.status()
        if self._overlay is not None and self._overlay.scratch.exists(path):
            return self._overlay.scratch.getxattr(path, name)
        raise NoAttributeError("no such attribute")

    def listxattr(self, path: bytes) -> Sequence[bytes]:
        path = path[1:]
        node = self._tree.find(path)
        if isinstance(node, ScratchNode):
            assert self._overlay is not None
            return self._overlay.scratch.listxattr(path)
        if isinstance(node, DirectoryNode):
            return (b"user.redis.prefix",)
        if isinstance(node, FileNode):
            names = [b"user.redis." + name for name in (b"key", b"type", b"ttl", b"encoding", b"length")]
            return names if node.target.field is None else [*names, b"user.redis.field"]
        return ()

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        path = path[1:]
        change = self._changing()
        if self._overlay is not None and self._overlay.scratch.exists(path):
            self._overlay.scratch.setxattr(path, name, value, flags)
            return
        if name != TTL_NAME:
            raise NotSupportedError("only user.redis.ttl can be set")
        if flags & os.XATTR_CREATE:
            raise ExistsError("user.redis.ttl is always there")
        try:
            milliseconds = int(value)
        except ValueError:
            milliseconds = -2
        if milliseconds < -1:
            raise InvalidError("a TTL is milliseconds from now, or -1 for none")
        change.expire(path, milliseconds)

    def removexattr(self, path: bytes, name: bytes) -> None:
        path = path[1:]
        change = self._changing()
        if self._overlay is not None and self._overlay.scratch.exists(path):
            self._overlay.scratch.removexattr(path, name)
        elif name == TTL_NAME:
            change.expire(path, -1)
        else:
            raise NoAttributeError("no such attribute")


def _stand_in(snapshot: Snapshot | None) -> int | None:
    """What stands for the bytes of a snapshot, where that is had cheaply."""
    content = content_of(snapshot)
    return None if content is None else hash(content)


def inode_of(path: bytes) -> int:
    """A number for a path: the same at every mount. (Two paths share one with a chance of 2^-63.)"""
    return int.from_bytes(blake2b(path, digest_size=8).digest(), "little") >> 1 or 1

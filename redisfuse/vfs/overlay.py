"""The differences between this mount's tree and that of Redis.

They are junk, files that are being edited, and pending removals.
"""

from __future__ import annotations

from redisfuse.paths.grammar import KeyRef
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.nodes import MemoryNode, NamedNode, OpenFileNode
from redisfuse.vfs.open_file_table import OpenFileTable
from redisfuse.vfs.staged_replace import PendingRemovals


class Overlay:
    """The three tables of write mode as one.

    Thread-safe, as each of them is; it has no lock of its own.
    """

    def __init__(self, memory_fs: MemoryFS, open_files: OpenFileTable, pending_removals: PendingRemovals) -> None:
        self.memory_fs = memory_fs
        self.open_files = open_files
        self.pending_removals = pending_removals
        # Paths of directories that hold segments of long names and whose last file was removed here; they stay until
        # rmdir. Single operations on the set are atomic.
        self.dangling_segments: set[bytes] = set()

    def resolve(self, path: bytes) -> MemoryNode | None:
        """Return the node that a path leads to in the memory filesystem, if any."""
        if self.memory_fs.exists(path):
            return MemoryNode(path, self.memory_fs.is_directory(path))
        return None

    def find_open_node(self, target: KeyRef) -> OpenFileNode | None:
        """Return the node of an edit in progress on a target, if any.

        A file that is open for writing and has no edits is one only if Redis certainly has the same bytes.
        """
        file = self.open_files.get(target)
        return None if file is None or file.buffer is None or file.may_be_outdated else OpenFileNode(file)

    def is_pending_removal(self, target: KeyRef) -> bool:
        """Return whether a target is still in Redis but no longer in the tree."""
        return target in self.pending_removals

    def child_directories(self, path: bytes) -> set[bytes]:
        """Return the names in a directory that lead to an entry of the overlay.

        They need no key below them.
        """
        start = path + b"/" if path else b""
        names = self.memory_fs.child_directories(path)
        for file in self.open_files.iter_files():
            name, slash, _rest = file.path[len(start) :].partition(b"/")
            if slash and file.path.startswith(start) and file.is_dirty:
                names.add(name)
        return names

    def has_descendants(self, path: bytes) -> bool:
        """Return whether an entry of the overlay is in a directory or below it."""
        return bool(self.readdir(path) or self.child_directories(path))

    def readdir(self, path: bytes) -> list[NamedNode]:
        """Return the junk in a directory, and the files with uncommitted edits."""
        base = path + b"/" if path else b""
        entries = {
            name: NamedNode(name, MemoryNode(base + name, self.memory_fs.is_directory(base + name)))
            for name in self.memory_fs.listdir(path)
        }
        for file in self.open_files.iter_files():
            directory, _, name = file.path.rpartition(b"/")
            if directory == path and file.is_dirty:
                entries[name] = NamedNode(name, OpenFileNode(file))
        return list(entries.values())

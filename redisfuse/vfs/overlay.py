"""What this mount itself adds to, or takes from, the tree of Redis: junk, files being edited, parked keys."""

from __future__ import annotations

from redisfuse.paths.grammar import KeyRef
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.nodes import MemoryNode, NamedNode, OpenFileNode
from redisfuse.vfs.open_files import OpenFiles
from redisfuse.vfs.staged_replace import PendingRemovals


class Overlay:
    """The three tables of write mode, asked together. Thread-safe as each of them is."""

    def __init__(self, memory_fs: MemoryFS, open_files: OpenFiles, pending_removals: PendingRemovals) -> None:
        self.memory_fs = memory_fs
        self.open_files = open_files
        self.pending_removals = pending_removals
        # Paths of directories that long names are cut into, the last file of which was removed here: left until rmdir.
        self.dangling_segments: set[bytes] = set()

    def resolve(self, path: bytes) -> OpenFileNode | MemoryNode | None:
        """What a path leads to without asking Redis."""
        hidden = self.open_files.get_hidden(path)
        if hidden is not None and hidden.buffer is not None:
            return OpenFileNode(hidden)
        if self.memory_fs.exists(path):
            return MemoryNode(path, self.memory_fs.is_directory(path))
        return None

    def resolve_hidden_path(self, path: bytes) -> bytes:
        """The path itself, or where a file that libfuse believes to be hidden there is nevertheless."""
        hidden = self.open_files.get_hidden(path)
        return path if hidden is None or hidden.target is None else hidden.path

    def find_open_node(self, target: KeyRef) -> OpenFileNode | None:
        """The edit in progress on a target."""
        file = self.open_files.get(target)
        return None if file is None or file.buffer is None else OpenFileNode(file)

    def is_pending_removal(self, target: KeyRef) -> bool:
        """Whether a target is still in Redis but no longer in the tree."""
        return target in self.pending_removals

    def child_directories(self, path: bytes) -> set[bytes]:
        """The names in a directory that lead to something of this mount's own, even if no key is below them."""
        start = path + b"/" if path else b""
        found = self.memory_fs.child_directories(path)
        for file in self.open_files.iter_files():
            name, slash, _rest = file.path[len(start) :].partition(b"/")
            if slash and file.path.startswith(start) and file.is_dirty:
                found.add(name)
        return found

    def has_descendants(self, path: bytes) -> bool:
        """Whether something of this mount's own is in a directory, or further below."""
        return bool(self.readdir(path) or self.child_directories(path))

    def readdir(self, path: bytes) -> list[NamedNode]:
        """The junk in a directory, and the new files that are not in Redis yet."""
        base = path + b"/" if path else b""
        found = {
            name: NamedNode(name, MemoryNode(base + name, self.memory_fs.is_directory(base + name)))
            for name in self.memory_fs.listdir(path)
        }
        for file in self.open_files.iter_files():
            directory, _, name = file.path.rpartition(b"/")
            if directory == path and file.is_dirty:
                found[name] = NamedNode(name, OpenFileNode(file))
        return list(found.values())

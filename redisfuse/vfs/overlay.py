"""What this mount itself adds to, or takes from, the tree of Redis: junk, files being edited, parked keys."""

from __future__ import annotations

from redisfuse.paths.grammar import Target
from redisfuse.vfs.memory_fs import Scratch
from redisfuse.vfs.nodes import Listed, OpenNode, ScratchNode
from redisfuse.vfs.open_files import OpenFiles
from redisfuse.vfs.staged_replace import Parking


class Overlay:
    """The three tables of write mode, asked together. Thread-safe as each of them is."""

    def __init__(self, scratch: Scratch, files: OpenFiles, parking: Parking) -> None:
        self.scratch = scratch
        self.files = files
        self.parking = parking
        # Paths of directories that long names are cut into, the last file of which was removed here: left until rmdir.
        self.pieces: set[bytes] = set()

    def find(self, path: bytes) -> OpenNode | ScratchNode | None:
        """What a path leads to without asking Redis."""
        hidden = self.files.hidden(path)
        if hidden is not None and hidden.buffer is not None:
            return OpenNode(hidden)
        if self.scratch.exists(path):
            return ScratchNode(path, self.scratch.is_directory(path))
        return None

    def path_of(self, path: bytes) -> bytes:
        """The path itself, or where a file that libfuse believes to be hidden there is nevertheless."""
        hidden = self.files.hidden(path)
        return path if hidden is None or hidden.target is None else hidden.path

    def open_node(self, target: Target) -> OpenNode | None:
        """The edit in progress on a target."""
        file = self.files.get(target)
        return None if file is None or file.buffer is None else OpenNode(file)

    def is_parked(self, target: Target) -> bool:
        """Whether a target is still in Redis but no longer in the tree."""
        return target in self.parking

    def folders(self, path: bytes) -> set[bytes]:
        """The names in a directory that lead to something of this mount's own, even if no key is below them."""
        start = path + b"/" if path else b""
        found = self.scratch.folders(path)
        for file in self.files.all():
            name, slash, _rest = file.path[len(start) :].partition(b"/")
            if slash and file.path.startswith(start) and file.uncommitted:
                found.add(name)
        return found

    def has_below(self, path: bytes) -> bool:
        """Whether something of this mount's own is in a directory, or further below."""
        return bool(self.list(path) or self.folders(path))

    def list(self, path: bytes) -> list[Listed]:
        """The junk in a directory, and the new files that are not in Redis yet."""
        base = path + b"/" if path else b""
        found = {
            name: Listed(name, ScratchNode(base + name, self.scratch.is_directory(base + name)))
            for name in self.scratch.list(path)
        }
        for file in self.files.all():
            directory, _, name = file.path.rpartition(b"/")
            if directory == path and file.uncommitted:
                found[name] = Listed(name, OpenNode(file))
        return list(found.values())

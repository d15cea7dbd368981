"""Keeps directories that lose their last file through this mount, until rmdir.

See docs/editing.md. Thread-safe.
"""

from __future__ import annotations

from redisfuse.paths.encoding import CONTINUATION
from redisfuse.paths.grammar import KeyRef, PathCandidates
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.overlay import Overlay


class DirectoryRetention:
    """Records emptied directories, as Redis has no directories without keys.

    They are written to the journal.
    """

    def __init__(self, filesystem: Filesystem, overlay: Overlay, empty_directories: EmptyDirectories) -> None:
        self._filesystem = filesystem
        self._overlay = overlay
        self._empty_directories = empty_directories

    def keep_parent_of(self, target: KeyRef) -> None:
        """Keep the directory of a removed key or field if it is empty now."""
        self.keep(self._filesystem.grammar.split_key(target.key)[:-1])

    def keep(self, directory: tuple[bytes, ...]) -> None:
        """Keep a directory if no key is below it."""
        if directory and not self._filesystem.keyspace.index.is_directory(directory):
            self._empty_directories.add(directory)

    def keep_path(self, path: bytes) -> None:
        """Keep the directory at a path, from which junk was removed, if it is empty now."""
        if path and not self._overlay.memory_fs.is_directory(path):
            parsed_path = self._filesystem.grammar.parse(path)
            if isinstance(parsed_path, PathCandidates) and parsed_path.as_directory is not None:
                self.keep((*parsed_path.directory, parsed_path.as_directory))

    def keep_segments(self, path: bytes) -> None:
        """Keep the directories of the segments of a long name, whose file was removed."""
        while (path := path.rpartition(b"/")[0]).endswith(CONTINUATION):
            self._overlay.dangling_segments.add(path)

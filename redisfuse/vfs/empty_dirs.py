"""Directories without a key below them, which exist until rmdir.

They were created by mkdir, or emptied through the mount. Redis has no such directories; the journal stores them, per
server and database (docs/editing.md). `EmptyDirectories` is the copy of that table in memory. Thread-safe; its lock is
a leaf and is not held while the journal is read.
"""

from __future__ import annotations

import threading

from redisfuse.journal.journal import Journal

DirectoryComponents = tuple[bytes, ...]


class EmptyDirectories:
    """The empty directories of one mounted database."""

    def __init__(self, journal: Journal, server_name: str) -> None:
        self._journal = journal
        self._server_name = server_name  # ServerIdentity.name
        self._journal_version = -1  # used by the thread that calls `reload_if_changed`
        self._lock = threading.Lock()
        # Guarded by `_lock`:
        self._directories: set[DirectoryComponents] = set()
        self._children: dict[DirectoryComponents, set[bytes]] = {}  # of them and of the directories above them
        self.load()

    def load(self) -> set[DirectoryComponents]:
        """Load the directories from the journal; return those that were added or removed."""
        loaded = self._journal.list_directories(self._server_name)
        children: dict[DirectoryComponents, set[bytes]] = {}
        for directory in loaded:
            for depth in range(len(directory)):
                children.setdefault(directory[:depth], set()).add(directory[depth])
        with self._lock:
            changed = self._directories ^ loaded
            self._directories, self._children = loaded, children
        return changed

    def reload_if_changed(self) -> set[DirectoryComponents]:
        """Load the directories if the journal was written since the last call.

        A rollback or another mount may have written it. Returns those that were added or removed.
        """
        version = self._journal.fetch_data_version()
        if version == self._journal_version:
            return set()
        self._journal_version = version
        return self.load()

    def __contains__(self, directory: DirectoryComponents) -> bool:
        with self._lock:
            return directory in self._directories or directory in self._children

    def children(self, directory: DirectoryComponents) -> list[bytes]:
        """Return the components of the empty directories in `directory`, each once."""
        with self._lock:
            return list(self._children.get(directory, ()))

    def add(self, directory: DirectoryComponents) -> None:
        """Add a directory that this mount emptied. It is on disk on return."""
        if directory not in self:
            self._journal.add_directory(self._server_name, directory)
            self.load()

    def plan_rename(
        self, old: DirectoryComponents, new: DirectoryComponents, *, include_self: bool
    ) -> list[tuple[DirectoryComponents, DirectoryComponents]]:
        """Return (old, new) of each empty directory that a rename moves, in order.

        With `include_self`, `old` is one of them even if the journal does not have it.
        """
        with self._lock:
            moved = {directory for directory in self._directories if directory[: len(old)] == old}
        if include_self:
            moved.add(old)
        return [(directory, new + directory[len(old) :]) for directory in sorted(moved)]

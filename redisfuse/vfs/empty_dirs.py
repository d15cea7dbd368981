"""Directories that exist though no key is below them: made, or left by their last file, until rmdir (DESIGN.md 2).

They are in no server; the journal keeps them, per server and database. This is its copy in memory. Thread-safe.
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
        self._lock = threading.Lock()
        self._directories: set[DirectoryComponents] = set()
        self._journal_version = -1
        self._children: dict[DirectoryComponents, set[bytes]] = {}
        self.load()

    def load(self) -> set[DirectoryComponents]:
        """Read them again: something was changed in the journal. Returns those that came or went."""
        made = self._journal.list_directories(self._server_name)
        children: dict[DirectoryComponents, set[bytes]] = {}
        for directory in made:
            for depth in range(len(directory)):
                children.setdefault(directory[:depth], set()).add(directory[depth])
        with self._lock:
            changed = self._directories ^ made
            self._directories, self._children = made, children
        return changed

    def reload_if_changed(self) -> set[DirectoryComponents]:
        """Read them again if anything was written to the journal since this was last asked (a rollback, another mount).

        Returns those that came or went.
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
        """Components of what was made in `directory`, each once."""
        with self._lock:
            return list(self._children.get(directory, ()))

    def add(self, directory: DirectoryComponents) -> None:
        """A directory lost its last file here: it stays. On the disk on return."""
        if directory not in self:
            self._journal.add_directory(self._server_name, directory)
            self.load()

    def plan_rename(
        self, old: DirectoryComponents, new: DirectoryComponents, *, include_self: bool
    ) -> list[tuple[DirectoryComponents, DirectoryComponents]]:
        """What is renamed along with a directory: what was made in it, and (`itself`) the directory without keys."""
        with self._lock:
            below = {each for each in self._directories if each[: len(old)] == old}
        return [(each, new + each[len(old) :]) for each in sorted(below | ({old} if include_self else set()))]

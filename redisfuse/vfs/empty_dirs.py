"""Directories that exist though no key is below them: made, or left by their last file, until rmdir (DESIGN.md 2).

They are in no server; the journal keeps them, per server and database. This is its copy in memory. Thread-safe.
"""

from __future__ import annotations

import threading

from redisfuse.journal.journal import Journal

Directory = tuple[bytes, ...]


class MadeDirectories:
    """The empty directories of one mounted database."""

    def __init__(self, journal: Journal, server: str) -> None:
        self._journal = journal
        self._server = server  # ServerIdentity.name
        self._lock = threading.Lock()
        self._made: set[Directory] = set()
        self._version = -1
        self._children: dict[Directory, set[bytes]] = {}
        self.load()

    def load(self) -> set[Directory]:
        """Read them again: something was changed in the journal. Returns those that came or went."""
        made = self._journal.directories(self._server)
        children: dict[Directory, set[bytes]] = {}
        for directory in made:
            for depth in range(len(directory)):
                children.setdefault(directory[:depth], set()).add(directory[depth])
        with self._lock:
            changed = self._made ^ made
            self._made, self._children = made, children
        return changed

    def reload_if_changed(self) -> set[Directory]:
        """Read them again if anything was written to the journal since this was last asked (a rollback, another mount).

        Returns those that came or went.
        """
        version = self._journal.data_version()
        if version == self._version:
            return set()
        self._version = version
        return self.load()

    def __contains__(self, directory: Directory) -> bool:
        with self._lock:
            return directory in self._made or directory in self._children

    def children(self, directory: Directory) -> list[bytes]:
        """Components of what was made in `directory`, each once."""
        with self._lock:
            return list(self._children.get(directory, ()))

    def keep(self, directory: Directory) -> None:
        """A directory lost its last file here: it stays. On the disk on return."""
        if directory not in self:
            self._journal.add_directory(self._server, directory)
            self.load()

    def moves(self, old: Directory, new: Directory, *, itself: bool) -> list[tuple[Directory, Directory]]:
        """What is renamed along with a directory: what was made in it, and (`itself`) the directory without keys."""
        with self._lock:
            below = {each for each in self._made if each[: len(old)] == old}
        return [(each, new + each[len(old) :]) for each in sorted(below | ({old} if itself else set()))]

"""The versions of keys and fields that programs have read.

A rename over a key is a save: it is checked against the version that the program had before it (docs/editing.md). That
is what the same process last read through this mount, or saved since.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.processes import Processes

MAX_TARGETS = 8192  # the least recently read are forgotten; about 4 MiB
MAX_READERS_PER_TARGET = 16


class _KnownVersion(NamedTuple):
    thread_id: int  # of the reader
    read_at: float  # Processes.now()
    precondition: Precondition


class KnownVersions:
    """The version of each key and field that each process has read.

    Thread-safe; the lock is a leaf, held only to access the table.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._by_target: OrderedDict[KeyRef, list[_KnownVersion]] = OrderedDict()  # versions: the newest last

    def record_read(self, target: KeyRef, thread_id: int, precondition: Precondition | None) -> None:
        """Note the version that a thread has opened for reading.

        None: the version is not known.
        """
        if precondition is None:
            self.record_change(target, [thread_id], None)
            return
        version = _KnownVersion(thread_id, self._processes.now(), precondition)
        with self._lock:
            versions = [each for each in self._by_target.pop(target, ()) if each.thread_id != thread_id]
            self._by_target[target] = [*versions[1 - MAX_READERS_PER_TARGET :], version]
            if len(self._by_target) > MAX_TARGETS:
                self._by_target.popitem(last=False)

    def find(self, targets: Iterable[KeyRef], thread_id: int) -> tuple[KeyRef, Precondition] | None:
        """Return the first target that a thread's process has read, and its version."""
        for target in targets:
            for version in reversed(self._by_target.get(target, ())):
                if self._is_of_process(version, thread_id):
                    return target, version.precondition
        return None

    def record_change(self, target: KeyRef, thread_ids: Collection[int], precondition: Precondition | None) -> None:
        """Note what the processes of these threads have changed a target to.

        Only of a process that has read the target: one that only writes never has to read. None: the version is not
        known.
        """
        for old in self._by_target.get(target, ()):
            if not any(self._is_of_process(old, thread_id) for thread_id in thread_ids):
                continue
            with self._lock:
                versions = [each for each in self._by_target.get(target, ()) if each is not old]
                if precondition is not None:
                    versions.append(_KnownVersion(old.thread_id, self._processes.now(), precondition))
                if versions:
                    self._by_target[target] = versions
                else:
                    self._by_target.pop(target, None)

    def forget_below(self, key_prefix: bytes) -> None:
        """Drop the versions of keys with a prefix: their directory was renamed."""
        with self._lock:
            for target in [target for target in self._by_target if target.key.startswith(key_prefix)]:
                del self._by_target[target]

    def _is_of_process(self, version: _KnownVersion, thread_id: int) -> bool:
        return self._processes.is_same_process(version.thread_id, version.read_at, thread_id)


class UnchangedByOthers:
    """Whether no other client was seen to change a key since a moment."""

    def __init__(self, keyspace: KeyspaceMonitor, key: bytes, version: int, *, is_exact: bool) -> None:
        """`version`: that of the key, or `KeyspaceMonitor.latest_version`, at the moment.

        `is_exact`: changes that the caller has observed count even if they are not announced yet. One round trip.
        """
        self._keyspace = keyspace
        self._key = key
        self._version = version
        self._is_exact = is_exact

    def __call__(self) -> bool:
        if self._is_exact:
            self._keyspace.wait_for_invalidations()
        return not self._keyspace.was_changed_by_others(self._key, self._version)

"""The processes that make changes, and the operations that they continue.

`rm -r`, `cp -r` or `git clone` is one operation of its user, but many changes. The changes of one process that follow
each other within a short time have the same operation: the id of its first change.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_IDLE_MS = 2000  # without a change, after which a process begins a new operation
_MAX_STAT_BYTES = 4096
MAX_TRACKED_PROCESSES = 1000  # more are forgotten, the longest idle first


@dataclass(frozen=True, slots=True)
class CallingProcess:
    """The process that makes a change."""

    pid: int
    start_time: int  # clock ticks after the boot (proc(5), field 22): no later process of the same pid has it
    command: str  # its name, at most 15 bytes, as `ps -o comm` prints it


class ProcessReader:
    """Reads the process of a thread from /proc.

    Thread-safe. A thread that was read before takes one read of its `stat`.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, tuple[int, CallingProcess]] = {}  # start time of the thread, its process

    def read(self, thread_id: int) -> CallingProcess | None:
        """Return the process of a thread.

        None if there is no such thread, or /proc can't be read.
        """
        if thread_id <= 0:
            return None
        thread = _read_stat(thread_id)
        if thread is None:
            return None
        known = self._by_thread.get(thread_id)
        if known is not None and known[0] == thread.start_time and known[1].command == thread.command:
            return known[1]
        process_id = _read_process_id(thread_id)
        process = thread if process_id == thread_id else _read_stat(process_id) or thread
        if len(self._by_thread) >= MAX_TRACKED_PROCESSES:
            self._by_thread.clear()
        self._by_thread[thread_id] = thread.start_time, process
        return process


def _read_stat(process_id: int) -> CallingProcess | None:
    try:
        descriptor = os.open(f"/proc/{process_id}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            head, _, fields = os.read(descriptor, _MAX_STAT_BYTES).rpartition(b")")
        finally:
            os.close(descriptor)
        command = head.partition(b"(")[2].decode("utf-8", "backslashreplace")
        return CallingProcess(process_id, int(fields.split()[19]), command)
    except (OSError, ValueError, IndexError):
        return None


def _read_process_id(thread_id: int) -> int:
    """Return the process of a thread, or the thread itself if that is unknown."""
    try:
        for line in Path(f"/proc/{thread_id}/status").read_bytes().splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    except (OSError, ValueError):
        pass
    return thread_id


class OperationTracker:
    """The operations of the processes that make changes in one session.

    Only the thread that writes the journal uses it, in the transaction that inserts the changes.
    """

    def __init__(self, idle_ms: int | None = DEFAULT_IDLE_MS) -> None:
        """`idle_ms`: how long a process may pause within an operation; None: any time."""
        self._idle_ms = idle_ms
        self._newest: dict[tuple[int, int], tuple[int, int]] = {}  # (pid, start) -> (operation, time of last change)

    def assign(
        self,
        connection: sqlite3.Connection,
        groups: Sequence[tuple[int, CallingProcess | None]],
        recorded_at: int,
    ) -> list[int]:
        """Return the operations of groups of changes that are about to be inserted.

        Each group is the id of its first change, and its process.
        """
        first_new_id = groups[0][0]
        if any(operation >= first_new_id for operation, _ in self._newest.values()):  # they were rolled back
            self._newest = {key: known for key, known in self._newest.items() if known[0] < first_new_id}
        return [
            id if process is None else self._assign_one(connection, id, process, first_new_id, recorded_at)
            for id, process in groups
        ]

    def _assign_one(
        self, connection: sqlite3.Connection, id: int, process: CallingProcess, first_new_id: int, recorded_at: int
    ) -> int:
        key = (process.pid, process.start_time)
        operation, changed_at = self._newest.pop(key, (id, recorded_at))
        is_idle = self._idle_ms is not None and recorded_at - changed_at > self._idle_ms
        if is_idle or (operation < first_new_id and not _exists(connection, operation, process.pid)):
            operation = id
        self._newest[key] = operation, recorded_at
        if len(self._newest) > MAX_TRACKED_PROCESSES:
            del self._newest[next(iter(self._newest))]
        return operation


def _exists(connection: sqlite3.Connection, operation: int, pid: int) -> bool:
    """Return whether an operation of a process has a row.

    It has none if its only row was a held change that another one replaced.
    """
    sql = "SELECT 1 FROM changes WHERE coalesce(operation, group_id) = ? AND pid = ? LIMIT 1"
    return connection.execute(sql, (operation, pid)).fetchone() is not None

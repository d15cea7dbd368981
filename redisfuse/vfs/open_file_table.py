"""The table of open files in write mode, by target.

An unlinked file is not in it: its handles alone refer to it. Lock order: `OpenFile.lock` before the lock of
the table. The latter is a leaf: it is held only to access the table and the handle counts of its files, never while a
thread waits for a file's lock or for Redis.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redisfuse.errors import RedisFuseError
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.known_versions import KnownVersions
from redisfuse.vfs.open_file import AttachmentState, OpenFile
from redisfuse.vfs.processes import Processes
from redisfuse.vfs.staged_replace import PausableClock
from redisfuse.vfs.write_buffer import WriteBuffer

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence
    from redisfuse.vfs.content import ContentLoader

log = logging.getLogger(__name__)


class OpenFileTable:
    """The open files of one mount. Thread-safe."""

    def __init__(
        self,
        key_writer: KeyWriter,
        content_loader: ContentLoader,
        coherence: Coherence,
        *,
        hold_seconds: float,
        clock: PausableClock,
        wake_event: threading.Event,
        processes: Processes,
    ) -> None:
        self.key_writer = key_writer
        self.content_loader = content_loader
        self.coherence = coherence
        self._hold_seconds = hold_seconds  # from the last close of a held file to its commit
        self.known_versions = KnownVersions(processes)
        self._clock = clock
        self._wake_event = wake_event  # set whenever a deadline is added
        self._lock = threading.Lock()
        # Guarded by `_lock`; single look-ups don't need it:
        self._by_target: dict[KeyRef, OpenFile] = {}

    # -- look-ups ----------------------------------------------------------------------------------------------------

    def get(self, target: KeyRef) -> OpenFile | None:
        """Return the open file of a target, if any."""
        return self._by_target.get(target)

    def iter_files(self) -> Iterator[OpenFile]:
        """Iterate over a copy of the table: every file with a target."""
        with self._lock:
            return iter(list(self._by_target.values()))

    # -- handles -----------------------------------------------------------------------------------------------------

    def open_handle(self, target: KeyRef, path: bytes, *, is_writer: bool) -> OpenFile:
        """Count one more handle on a target and return its file.

        Pair it with `close_handle`.
        """
        with self._lock:
            file = self._by_target.get(target)
            if file is None:
                file = self._by_target[target] = OpenFile(self, target, path)
            file.handle_count += 1
            file.writer_count += is_writer
            if is_writer:
                file.path = path
            return file

    def add_handle(self, file: OpenFile, *, is_writer: bool) -> OpenFile:
        """Count one more handle on an existing file, which may be unlinked or new."""
        with self._lock:
            file.handle_count += 1
            file.writer_count += is_writer
            return file

    def record_read(self, file: OpenFile, content: FileContent | None, opener_tid: int) -> None:
        """Note the version that a program has opened for reading.

        It is `content` or, if that is None, the file being edited.
        """
        target = file.target or file.former_target  # the program may not know that it was replaced just now
        if not opener_tid:
            return
        version = file.read_version if content is None else self.content_loader.precondition_of(content, target)
        self.known_versions.record_read(target, opener_tid, version)

    def close_handle(self, file: OpenFile, *, is_writer: bool) -> None:
        """Count one handle less; the close of the last writer commits uncommitted edits."""
        with self._lock:
            file.writer_count -= is_writer
        try:
            if is_writer:
                file.on_writer_close()
        finally:
            # Not before: until its edits are in Redis, a new open must find this file.
            with self._lock:
                file.handle_count -= 1
                if file.handle_count == 0 and file.hold_deadline is not None:
                    file.hold_deadline = self._clock.now + self._hold_seconds
                    self._wake_event.set()
            self.remove_if_idle(file)

    def remove_if_idle(self, file: OpenFile) -> None:
        """Remove a file from the table if it has no handles and is not held back."""
        with self._lock:
            if file.handle_count == 0 and file.hold_deadline is None and file.target is not None:
                self._remove(file.target, file)

    def _remove(self, target: KeyRef, file: OpenFile) -> None:
        if self._by_target.get(target) is file:
            del self._by_target[target]

    # -- unlinking and renaming --------------------------------------------------------------------------------------

    def detach(self, file: OpenFile, contents: WriteBuffer | None) -> None:
        """Remove an unlinked or replaced file; its handles use `contents` from now on.

        The caller holds the file's lock and got `contents` from `OpenFile.copy_for_handles`.
        """
        target = file.target
        file.detach(contents)
        if target is not None:
            with self._lock:
                self._remove(target, file)

    def reattach(self, file: OpenFile, state: AttachmentState) -> None:
        """Undo `detach`."""
        with file.lock:
            file.reattach(state)
            with self._lock:
                if state.target is not None and (file.handle_count or file.hold_deadline is not None):
                    self._by_target.setdefault(state.target, file)

    def retarget(self, file: OpenFile, old_target: KeyRef, new_target: KeyRef, new_path: bytes) -> None:
        """Follow a rename of a target, so that the handles of its file use the new one."""
        with self._lock:
            self._remove(old_target, file)
            file.target = new_target
            file.path = new_path
            if file.handle_count or file.hold_deadline is not None:
                self._by_target[new_target] = file
        file.reload_after_rename()

    # -- held files --------------------------------------------------------------------------------------------------

    def commit_expired_holds(self, now: float | None, key_prefix: bytes = b"") -> None:
        """Commit the held files that are due and whose keys have a prefix.

        A file is due if it has no handles and its deadline is past. `now` is a time of the clock; None: all of them.
        Errors are logged.
        """
        for file in self.iter_files():
            with file.lock:
                if file.hold_deadline is None or file.handle_count or (now is not None and file.hold_deadline > now):
                    continue
                if file.target is None or not file.target.key.startswith(key_prefix):
                    continue
                try:
                    file.commit()
                except RedisFuseError as error:
                    log.error("%s: not saved: %s", os.fsdecode(file.path), error)
                    file.on_writer_close()
            self.remove_if_idle(file)

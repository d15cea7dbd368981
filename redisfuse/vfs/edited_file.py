"""The bytes of an open string or field: those in Redis, or edits over them.

Threads: any. `EditedFile.lock` is held around each change, and while a base is read from the server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError, WrongTypeError
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import check_value_size
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content import ContentStamp
from redisfuse.vfs.content_types import FileContent, InlineContent
from redisfuse.vfs.observed_content import ObservedContent
from redisfuse.vfs.write_back import MAX_WHOLE_WRITE_BYTES, blob_from_buffer
from redisfuse.vfs.write_buffer import BaseContent, WriteBuffer

if TYPE_CHECKING:
    from redisfuse.vfs.open_file_table import OpenFileTable

log = logging.getLogger(__name__)


class EditedFile:
    """An open target, its base and the edits over it; `OpenFile` commits them."""

    def __init__(self, table: OpenFileTable, target: KeyRef, path: bytes) -> None:
        self._table = table
        self.lock = threading.RLock()
        # Guarded by `lock`; single reads don't need it:
        self.target: KeyRef | None = target  # None: unlinked, only its handles have its bytes
        self.path = path  # as the program wrote it, for the journal
        self.buffer: WriteBuffer | None = None  # None: no edits; Redis has the content
        self.mtime_ns: int | None = None  # of the last write through this file; None: nothing was modified yet
        self.is_new = False  # no key or field has its content yet, so that even an empty file is committed
        self._precondition = Precondition.unconditional()  # of the next commit
        self._base_stamp: ContentStamp | None = None  # None: the base was saved through this file
        self._written_since_commit = False
        self._has_unsaved_newline = False  # the buffer's: Redis has the last commit without it (--no-added-newline)

    # -- the base ----------------------------------------------------------------------------------------------------

    def begin_edit(self) -> None:
        """Prepare for writes over the value in Redis. Raises what reading raises."""
        with self.lock:
            if self.buffer is None and self.target is not None:
                self._load_base()

    def _load_base(self) -> None:
        assert self.target is not None
        stamp = self._table.content_loader.stamp(self.target)
        content, self._precondition = self._open_target()
        self._set_base(content)
        self._base_stamp = stamp
        self.mtime_ns = None

    @property
    def shows_redis(self) -> bool:
        """Whether its bytes are those that Redis had when its base was fetched."""
        buffer = self.buffer
        has_own_bytes = self.target is None or self.is_new or self._has_unsaved_newline
        return buffer is not None and not has_own_bytes and not buffer.is_modified

    @property
    def may_be_outdated(self) -> bool:
        """Whether it has no edits, and its base may differ from the value in Redis."""
        if not self.shows_redis or (target := self.target) is None:
            return False
        stamp = self._base_stamp
        return stamp is None or not self._table.content_loader.is_current(target, stamp)

    def _is_outdated(self) -> bool:
        """Return whether its base, without edits, differs from the value in Redis.

        False for a large string whose changes are not announced: the commit will compare it. The caller holds `lock`.
        """
        if not self.may_be_outdated:
            return False
        assert self.target is not None
        stamp = self._table.content_loader.stamp(self.target)
        if self._precondition.blocks is not None:
            is_unchanged = self._precondition.is_unchanged
            is_outdated = is_unchanged is not None and not is_unchanged()
        else:
            try:
                content, precondition = self._open_target()
            except (NotFoundError, WrongTypeError):
                return True
            content.close()
            is_outdated = precondition != self._precondition
        if not is_outdated:
            self._base_stamp = stamp
        return is_outdated

    def _open_target(self) -> tuple[FileContent, Precondition]:
        assert self.target is not None
        return self._table.content_loader.open_with_precondition(self.target)

    def _set_base(self, content: BaseContent) -> None:
        self._drop_buffer()
        self._base_stamp = None
        self.buffer = WriteBuffer(content)

    def _drop_buffer(self) -> None:
        self._has_unsaved_newline = False
        if self.buffer is not None:
            self.buffer.close()
            self.buffer = None

    def _rebase(self, buffer: WriteBuffer, base: BaseContent) -> None:
        self.buffer = buffer.rebase(base)
        buffer.close()

    # -- reading and writing -----------------------------------------------------------------------------------------

    @property
    def size(self) -> int | None:
        """Length of the edited content in bytes; None if there are no edits."""
        buffer = self.buffer
        return None if buffer is None else buffer.size

    def read(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the edited content; None if there are no edits."""
        with self.lock:
            return None if self.buffer is None else self.buffer.read(offset, size)

    def write(self, offset: int | None, data: bytes) -> None:
        """Write `data` at `offset` (None: at the end).

        Raises TooLargeError and what reading raises.
        """
        with self.lock:
            self.begin_edit()
            assert self.buffer is not None
            end = (self.buffer.size if offset is None else offset) + len(data)
            check_value_size(end)
            self._observe_base(end - len(data), end)
            self.buffer.write(end - len(data), data)
            self._written_since_commit = True
            self._mark_modified()

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long. Raises as `write` does."""
        with self.lock:
            self.begin_edit()
            assert self.buffer is not None
            check_value_size(size)
            self._observe_base(size, self.buffer.size)
            self.buffer.truncate(size)
            if size <= MAX_WHOLE_WRITE_BYTES and isinstance(base := self.buffer.base, ObservedContent):
                # Then the journal can keep it if it is refused because the value has changed.
                with contextlib.suppress(ConflictError, NotFoundError, WrongTypeError):
                    self.buffer.replace_base(InlineContent(base.read(0, size)))
            self._mark_modified()

    def can_write_at_once(self, offset: int | None, size: int) -> bool:
        """Return whether `write` queries no server. The caller holds `lock`."""
        if self.buffer is None:
            return False
        start = self.buffer.size if offset is None else offset
        base = self._observed_base()
        return base is None or base.is_observed(start, start + size)

    def _observe_base(self, start: int, end: int) -> None:
        """Remember what an edit hides of a large string, for the commit to compare."""
        base = self._observed_base()
        if base is not None and start < end:
            base.observe(start, end)

    def _observed_base(self) -> ObservedContent | None:
        base = None if self.buffer is None else self.buffer.base
        return base if isinstance(base, ObservedContent) and self._table.key_writer.checks_conflicts else None

    def _mark_modified(self) -> None:
        self.mtime_ns = time.time_ns()

    @property
    def clean_content(self) -> FileContent | None:
        """The content in memory to which no edit was made yet; None if there is none."""
        buffer = self.buffer
        base = None if buffer is None or buffer.is_modified or self.is_new else buffer.base
        return base if isinstance(base, InlineContent) else None

    @property
    def is_dirty(self) -> bool:
        """Whether it has edits that Redis does not have."""
        return self.target is not None and self.buffer is not None and (self.is_new or self.buffer.is_modified)

    @property
    def read_version(self) -> Precondition | None:
        """The precondition of what its handles read.

        None: it is new, its content is large and edited, or it is in Redis alone.
        """
        with self.lock:
            if self.buffer is None or self.is_new:
                return None
            if self.target is not None and not self.buffer.is_modified:
                return self._precondition
            if self.buffer.size > MAX_WHOLE_WRITE_BYTES:
                return None
            return Precondition.from_bytes(self.buffer.read(0, self.buffer.size))

    def to_blob(self) -> Blob:
        """Return all its bytes, valid while the caller holds `lock`."""
        assert self.buffer is not None
        return blob_from_buffer(self.buffer, 0, self.buffer.size)

    # -- unlinking and renaming ----------------------------------------------------------------------------------------

    def _copy_bytes(self) -> WriteBuffer:
        """Return a copy of all its bytes. Raises what reading raises."""
        if self.buffer is not None:
            return self.buffer.copy()
        content, _precondition = self._open_target()
        with contextlib.closing(content):
            return WriteBuffer(content).copy()

    def _reload_base(self) -> None:
        """Read a base that is fetched in chunks from the new name of the target."""
        base = None if self.buffer is None else self.buffer.base
        if self.buffer is None or self.target is None or not isinstance(base, ObservedContent):
            return
        if self.target.field is None:
            content, self._precondition = self._table.content_loader.open_saved(self.target, base.blocks)
        else:
            try:
                content, self._precondition = self._open_target()
            except RedisFuseError as error:
                log.warning("%s: its content can't be read after its rename: %s", os.fsdecode(self.path), error)
                return
        self._rebase(self.buffer, content)

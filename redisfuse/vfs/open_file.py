"""An open string or field in write mode: its handles and commits.

All handles of a target share one `OpenFile`, so that every descriptor sees the writes of all others.

Edits are committed at the flush of a close that ends the writing, at fsync, and at the last close of a writer
(docs/editing.md). A *held* file (created like a temporary file) is not committed before it is renamed or its deadline
is past. Until then the journal has what a close or fsync of it acknowledged.

Lock order: `OpenFile.lock` is held through a commit. It comes before the lock of the `OpenFileTable` and before every
lock of the rooms below (transactions, journal, client).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.errors import (
    ConflictError,
    JournalError,
    OutcomeUnknownError,
    RedisFuseError,
    UnavailableError,
)
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.attached_handles import AttachedHandle, AttachedHandles
from redisfuse.vfs.committed_content import CommittedContent
from redisfuse.vfs.edited_file import EditedFile
from redisfuse.vfs.held_copy import HeldCopy
from redisfuse.vfs.staged_replace import PendingRemoval
from redisfuse.vfs.write_back import preserve_edits, write_back
from redisfuse.vfs.write_buffer import WriteBuffer

if TYPE_CHECKING:
    from redisfuse.vfs.open_file_table import OpenFileTable

log = logging.getLogger(__name__)


class AttachmentState(NamedTuple):
    """The relation of an open file to its target, which `OpenFile.detach` ends."""

    target: KeyRef | None
    precondition: Precondition
    is_new: bool
    is_dirty: bool
    hold_deadline: float | None
    pending_removal: PendingRemoval | None
    expiry: Expiry | None


class OpenFile(EditedFile):
    """An open target, its handles, and the commits of its edits."""

    def __init__(self, table: OpenFileTable, target: KeyRef, path: bytes) -> None:
        super().__init__(table, target, path)
        self.attached_handles = AttachedHandles()

        # Guarded by the table's lock:
        self.handle_count = 0
        self.writer_count = 0

        # Guarded by `lock`; single reads don't need it:
        self.former_target = target  # if it is unlinked
        self.content_version = 0  # incremented when the content in Redis was replaced through this file
        self.pending_removal: PendingRemoval | None = None  # of the value that a new file replaces at its first commit
        # The time of the clock before which it is not committed, unless renamed; math.inf while it is open.
        self.hold_deadline: float | None = None
        self.expiry: Expiry | None = None  # that a new file gets at its first commit
        self.created_version = 0  # of a new file: the version of the keyspace when it was created
        self._held_copy = HeldCopy(table.key_writer)
        self._commit_error: RedisFuseError | None = None  # of the last commit
        self._refused_at_close: RedisFuseError | None = None  # of edits that the program knows not to be saved
        # An earlier commit whose outcome is unknown: its change, and the content that it leaves if it is applied.
        self._in_doubt: tuple[int, CommittedContent] | None = None
        self._modified_since_in_doubt = False  # since that commit

    def begin_create(
        self,
        precondition: Precondition,
        *,
        hold: bool,
        pending_removal: PendingRemoval | None,
        expiry: Expiry | None = None,
        created_version: int = 0,
    ) -> None:
        """Prepare for writing a new file.

        `precondition` describes what Redis has at the target: no value, or one whose removal is pending. `expiry`: that
        of the value that the program has just removed. `created_version`: the keyspace's latest version.
        """
        with self.lock:
            if self.is_new:
                return  # created by a concurrent open(2) with O_CREAT
            self.drop_outdated_base()
            self.buffer = WriteBuffer()
            self._precondition = precondition
            self.is_new = True
            self.mtime_ns = time.time_ns()
            self.pending_removal = pending_removal
            self.hold_deadline = math.inf if hold else None
            self.expiry = expiry
            self.created_version = created_version

    # -- handles -----------------------------------------------------------------------------------------------------

    def drop_outdated_base(self) -> None:
        """Drop a base that another client has changed, before a program opens the file.

        It must read and edit what Redis has now. Writes through the handles from before are refused: their programs may
        have read what was there. Raises what reading raises.
        """
        with self.lock:
            if not self._is_outdated():
                return
            self._drop_buffer()
            if self._table.key_writer.checks_conflicts:
                error = ConflictError("another client changed the key after the file was opened; open it again")
                self.attached_handles.mark_refused(error)

    def _mark_modified(self) -> None:
        super()._mark_modified()
        self._held_copy.is_current = False
        self._commit_error = self._refused_at_close = None
        self._modified_since_in_doubt = True

    @property
    def has_unsaved_writes(self) -> bool:
        """Whether anything was written since the last commit, or that commit failed."""
        return self._written_since_commit or self._commit_error is not None

    def flush(self) -> None:
        """Commit all edits, or journal the copy of a held file.

        An empty file is not journaled. Raises what `commit` raises.
        """
        with self.lock:
            if self.hold_deadline is None:
                self.commit()
            elif self.size:
                self._record_held()

    def attach(self, handle: AttachedHandle) -> None:
        """Attach a new handle.

        It must not read or commit edits that a close has reported as not saved.
        """
        with self.lock:
            if not self.is_new:
                self._discard_refused()
            self.attached_handles.add(handle)

    def refuse_edits(self, error: RedisFuseError) -> None:
        """Note that a close has reported the edits as not saved.

        They are discarded, and journaled as refused, before another handle can commit them.
        """
        if error is not self._commit_error or isinstance(error, UnavailableError):
            return  # an earlier error; or the program does not know whether they were saved
        self._refused_at_close = error
        if self.writer_count > 1:
            self._discard_refused()

    def _discard_refused(self) -> None:
        error = self._refused_at_close
        if error is not None and self.is_dirty:
            self._preserve_unsaved_edits()
            self.attached_handles.mark_refused(error)

    def fsync(self) -> None:
        """Commit all edits, or journal the copy of a held file.

        Raises what `commit` raises.
        """
        with self.lock:
            if self.hold_deadline is None:
                self.commit()
            else:
                self._record_held()

    def _record_held(self) -> None:
        if self.target is not None and not self._held_copy.is_current:
            self._held_copy.record(self.target, self.to_blob(), self.path, self.expiry)

    def set_expiry(self, expires_at_ms: int | None) -> bool:
        """Set when a new file expires, in ms since the epoch.

        Returns False if Redis has it already.
        """
        with self.lock:
            if not self.is_new or self.target is None:
                return False
            # The target of a held file is not final: another one may have an expiry where this one can't.
            self._table.key_writer.check_expiry(self.target if self.hold_deadline is None else None, expires_at_ms)
            self.expiry = Expiry(expires_at_ms, is_explicit=True)
            if self._held_copy.is_current:
                self._held_copy.is_current = False
                self._record_held()
            return True

    def readers_share_content(self, newest_handle: AttachedHandle) -> bool:
        """Return whether the newest handle and all others read the same bytes."""
        with self.lock:
            return self.attached_handles.readers_share_content(newest_handle)

    # -- committing --------------------------------------------------------------------------------------------------

    def commit(self, *, keep_refused: bool = False) -> Precondition | None:
        """Commit the edits as one change in the journal and in Redis.

        Returns the precondition that the target still has them; None: nothing was to be done, or it is unknown. Raises
        RedisFuseError. The edits are kept then, except (without `keep_refused`) after a conflict: the journal has them
        as a refused change.
        """
        with self.lock:
            if not self.is_dirty:
                return None
            assert self.buffer is not None
            assert self.target is not None
            self.hold_deadline = None
            self._written_since_commit = False
            committed: CommittedContent | None = None
            try:
                committed = self._resolve_in_doubt(self.buffer)
                if committed is not None:
                    self._held_copy.discard(self.path)  # made since that commit, as by the rename that reported it
                else:
                    committed = CommittedContent.from_buffer(self.buffer, self.target)
                    saved = write_back(
                        self._table.key_writer,
                        self.target,
                        self.buffer,
                        self._precondition,
                        self.path,
                        is_new=self.is_new,
                        expiry=self.expiry,
                        supersedes=self._held_copy.change_id,
                        content=committed.saved,
                    )
                    committed = committed.as_saved(saved)
            except RedisFuseError as error:
                self._commit_error = error
                self._held_copy.is_current = False
                if isinstance(error, OutcomeUnknownError) and error.change_id is not None and committed is not None:
                    self._in_doubt, self._modified_since_in_doubt = (error.change_id, committed), False
                    self.attached_handles.mark_in_doubt()
                if isinstance(error, ConflictError) and not keep_refused:
                    if error.change_id is None:  # it was found while reading: the journal does not have the edits yet
                        self._preserve_unsaved_edits()
                    self._discard_edits()
                    self.attached_handles.mark_refused(error)
                raise
            self._commit_error = self._refused_at_close = None
            self.attached_handles.mark_saved()
            self._held_copy.forget()
            tids = self.attached_handles.opener_tids()
            self._table.known_versions.record_change(self.target, tids, committed.version)
            if self.mtime_ns is not None:
                self._table.coherence.file_saved(self.target, self.mtime_ns)
            self._clear_new()
            self.content_version += 1
            self._rebase_on_committed(committed)
            return committed.version

    def _resolve_in_doubt(self, buffer: WriteBuffer) -> CommittedContent | None:
        """Return the content in Redis if a commit in doubt has applied all edits.

        If it has applied some of them, the others are rebased on the result. Raises UnavailableError if the outcome is
        still unknown.
        """
        if self._in_doubt is None:
            return None
        change_id, content = self._in_doubt
        change = self._table.key_writer.resolve_change(change_id)
        self._in_doubt = None
        if change.outcome in ("applied", "failed"):
            self.attached_handles.settle_in_doubt(was_applied=change.outcome == "applied")
        if change.outcome != "applied":
            return None
        content = content.as_saved(change.new.content if change.new.kind == "value" else None)
        if not self._modified_since_in_doubt:
            return content
        assert self.target is not None
        base, self._precondition = content.open(self._table.content_loader, self.target)
        self._rebase(buffer, base)
        self._clear_new()
        return None

    def _rebase_on_committed(self, content: CommittedContent) -> None:
        """Continue editing over the content that was just committed.

        Writers continue to see a newline that was not saved: they write at the offsets that they know.
        """
        if not self.writer_count or self.target is None:
            self._drop_buffer()
            return
        base, self._precondition = content.open(self._table.content_loader, self.target)
        self._set_base(base)
        self._has_unsaved_newline = content.lacks_newline

    def commit_as(
        self, target: KeyRef, path: bytes, precondition: Precondition, removed_expiry: Expiry | None
    ) -> Precondition | None:
        """Commit a new file at another target: it was renamed before its first commit.

        `removed_expiry`: that of what the program has just removed there. Returns and raises what `commit` does; if it
        raises, the file is unchanged.
        """
        with self.lock:
            before = (self.target, self.path, self._precondition, self.pending_removal, self.hold_deadline, self.expiry)
            self.expiry = self.expiry or removed_expiry
            self.target, self.path, self._precondition = target, path, precondition
            self.pending_removal = self._in_doubt = None
            try:
                return self.commit(keep_refused=True)
            except RedisFuseError:
                self.target, self.path, self._precondition, self.pending_removal, self.hold_deadline, self.expiry = (
                    before
                )
                self._commit_error = None
                raise

    def _clear_new(self) -> None:
        self.is_new = False
        self.pending_removal = self.expiry = None

    def _discard_edits(self) -> None:
        self._clear_new()
        self._held_copy.discard(self.path)
        self._in_doubt = None
        self.content_version += 1
        self._drop_buffer()
        if self.target is not None:
            # The server's message about a change in conflict with the edits may not have arrived yet.
            self._table.coherence.keys_changed([self.target.key])

    # -- closing -----------------------------------------------------------------------------------------------------

    def on_writer_close(self) -> None:
        """Commit what no flush committed if no writer is left; log errors."""
        with self.lock:
            if self.writer_count or self.target is None or self.hold_deadline is not None:
                return  # `OpenFileTable.commit_expired_holds` commits a held file
            if self.is_dirty and self._commit_error is None:
                try:
                    self.commit()
                except RedisFuseError as error:
                    log.error("%s: not saved at its last close: %s", os.fsdecode(self.path), error)
            self._preserve_unsaved_edits()
            if self._has_unsaved_newline:
                self._discard_edits()
            self._drop_buffer()

    def commit_at_unmount(self, *, busy_at_unmount: bool) -> None:
        """Commit edits at the end of the mount, or preserve them in the journal.

        Raises no RedisFuseError. With `busy_at_unmount` programs still have files open: the edits of a file with
        writers may be incomplete, so they are not committed but preserved. The log reports preserved edits.
        """
        with self.lock:
            if not self.is_dirty:
                return
            if busy_at_unmount and self.writer_count:
                self._commit_error = UnavailableError("the mount ended while it was open for writing")
            else:
                with contextlib.suppress(RedisFuseError):
                    self.commit()
            self._preserve_unsaved_edits()

    def _preserve_unsaved_edits(self) -> None:
        """Record edits whose commit failed in the journal, and discard them."""
        if self._commit_error is None or not self.is_dirty:
            return
        assert self.buffer is not None
        assert self.target is not None
        preserve_edits(self._table.key_writer, self.target, self.buffer, self.path, self._commit_error)
        self._discard_edits()

    # -- unlinking and renaming --------------------------------------------------------------------------------------

    def copy_for_handles(self) -> WriteBuffer | None:
        """Copy its bytes for its handles, before it is unlinked; None without handles.

        Raises what reading raises.
        """
        with self.lock:
            return self._copy_bytes() if self.handle_count and self.target is not None else None

    def detach(self, contents: WriteBuffer | None) -> None:
        """End the relation to its target; its handles use `contents` from now on.

        None means an empty buffer.
        """
        with self.lock:
            if self.target is None:
                return
            self._drop_buffer()
            self.buffer = contents or WriteBuffer()
            self.former_target, self.target = self.target, None
            self.hold_deadline = None
            self._held_copy.discard(self.path)
            self._clear_new()

    @property
    def attachment_state(self) -> AttachmentState:
        """The values that `detach` clears."""
        return AttachmentState(
            *(self.target, self._precondition, self.is_new, self.is_dirty),
            *(self.hold_deadline, self.pending_removal, self.expiry),
        )

    def reattach(self, state: AttachmentState) -> None:
        """Undo `detach`; dirty edits are dirty again."""
        with self.lock:
            self.target, self._precondition, self.is_new = state.target, state.precondition, state.is_new
            self.hold_deadline, self.pending_removal = state.hold_deadline, state.pending_removal
            self.expiry = state.expiry
            if not state.is_dirty:
                self._drop_buffer()
            elif self.hold_deadline is not None and self.size:
                with contextlib.suppress(JournalError):
                    self._record_held()

    def reload_after_rename(self) -> None:
        """Read contents that are fetched in chunks from the new name of the target."""
        with self.lock:
            if self.attached_handles.have_ranged_view():
                self.content_version += 1
            self._reload_base()

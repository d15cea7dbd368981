"""Strings and fields that have handles open on them in write mode: their edits, and when those become a change.

One `OpenFile` a target, shared by all its handles, so that every descriptor sees what any other wrote.

When an edit is committed (JOURNAL.md, "When a change happens"): at flush if something was written since the last
commit, at fsync, and at the last release. A file that is *held* (created like a temporary file, EDITORS.md) is not
committed until it is renamed over something, or its grace time has passed.

Lock order: `OpenFiles._lock` is held only to look into the table, never while a file's lock is being waited
for or Redis is asked. `OpenFile.lock` is held through a commit; it comes before every lock of edits, journal, server.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redisfuse.batching import CHUNK_BYTES
from redisfuse.errors import (
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    RedisFuseError,
    UnavailableError,
    WrongTypeError,
)
from redisfuse.journal.models import Blob, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter, check_value_size
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content_types import FileContent, InlineContent
from redisfuse.vfs.growing_content import inline_bytes
from redisfuse.vfs.staged_replace import PausableClock, PendingRemoval
from redisfuse.vfs.write_buffer import WriteBuffer

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence
    from redisfuse.vfs.content import ContentLoader

log = logging.getLogger(__name__)

MAX_WHOLE_WRITE_BYTES = CHUNK_BYTES  # a value up to this size is always written whole


class AttachedHandle(Protocol):
    """One of the handles of an open file."""

    @property
    def is_reader(self) -> bool:
        """Whether it was opened for reading."""
        ...

    def private_view(self) -> FileContent | None:
        """What it alone reads; None if it reads what is there now."""
        ...

    def mark_conflicted(self, error: ConflictError) -> None:
        """Others have changed what it was opened on."""
        ...


class AttachmentState(NamedTuple):
    """What ties an open file to its target."""

    target: KeyRef | None
    precondition: Precondition
    is_new: bool
    is_dirty: bool
    hold_deadline: float | None
    pending_removal: PendingRemoval | None


class OpenFile:
    """One target's bytes while it is open: the server's, or an edit in progress over them."""

    def __init__(self, open_files: OpenFiles, target: KeyRef, path: bytes) -> None:
        self._open_files = open_files
        self.target: KeyRef | None = target  # None: unlinked, its bytes live only here
        self.path = path  # as the program spelled it, for the journal
        self.lock = threading.RLock()
        self.handle_count = 0
        self.writer_count = 0
        self.attached_handles: set[AttachedHandle] = set()
        self.buffer: WriteBuffer | None = None
        self.content_version = 0  # grows when what Redis holds was replaced through this file: readers look again
        self.hold_deadline: float | None = (
            None  # by the clock; not committed before, unless renamed; inf while it is open
        )
        self.mtime_ns: int | None = None  # when it was last written here; None: the edit has altered nothing yet
        self._precondition = Precondition.unconditional()
        self.pending_removal: PendingRemoval | None = None  # what is in Redis until a new file's first commit
        self.is_new = False  # not in Redis yet (but for a parked value): an empty file is a change too
        self._written_since_commit = False  # since the last commit
        self._commit_error: RedisFuseError | None = None  # why the last commit failed
        self._in_doubt_change: int | None = None  # the change that an earlier commit may have made
        self._modified_since_in_doubt = False  # since that commit

    # -- beginning an edit -------------------------------------------------------------------------------------------

    def begin_edit(self) -> None:
        """Make ready for writing over what Redis holds now. Raises what reading raises."""
        with self.lock:
            if self.buffer is None and self.target is not None:
                self._load_base()

    def begin_create(self, precondition: Precondition, *, hold: bool, pending_removal: PendingRemoval | None) -> None:
        """Make ready for writing something new where Redis holds what `precondition` says (nothing, or a parked value)."""
        with self.lock:
            if self.is_new:
                return  # another open(2) with O_CREAT came at the same moment
            self.buffer = WriteBuffer()
            self._precondition = precondition
            self.is_new = True
            self.mtime_ns = time.time_ns()
            self.pending_removal = pending_removal
            self.hold_deadline = math.inf if hold else None

    def _load_base(self) -> None:
        assert self.target is not None
        snapshot, self._precondition = self._open_files.content_loader.open_with_precondition(self.target)
        if self.target.field is not None and self._precondition.kind == "length":
            # Read whole: should somebody change it meanwhile, its other bytes could not be had any more; and that it is
            # another one can't be told from what is heard of its key, which is heard of for any of its fields.
            self._precondition = Precondition.content_equals(snapshot.size, _content_digest(snapshot))
        self._set_base(snapshot)
        self.mtime_ns = None

    def _set_base(self, content: FileContent) -> None:
        if self.buffer is not None:
            self.buffer.close()
        self.buffer = WriteBuffer(content)

    # -- the calls of a program --------------------------------------------------------------------------------------

    @property
    def size(self) -> int | None:
        """Length of the edit in progress in bytes; None if there is none and Redis is to be asked."""
        buffer = self.buffer
        return None if buffer is None else buffer.size

    def read(self, offset: int, size: int) -> bytes | None:
        """Bytes of the edit in progress; None if there is none."""
        with self.lock:
            return None if self.buffer is None else self.buffer.read(offset, size)

    def write(self, offset: int | None, data: bytes) -> None:
        """Put `data` at `offset` (None: at the end)."""
        with self.lock:
            self.begin_edit()
            assert self.buffer is not None
            end = (self.buffer.size if offset is None else offset) + len(data)
            check_value_size(end)
            self.buffer.write(end - len(data), data)
            self._written_since_commit = True
            self._commit_error = None
            self._modified_since_in_doubt = True
            self.mtime_ns = time.time_ns()

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long. Alone, this waits for a write, an fsync or the last release."""
        with self.lock:
            self.begin_edit()
            assert self.buffer is not None
            check_value_size(size)
            self.buffer.truncate(size)
            self._commit_error = None
            self._modified_since_in_doubt = True
            self.mtime_ns = time.time_ns()

    def flush(self) -> None:
        """Commit if something was written since the last commit, or if that failed. Raises what the commit raises."""
        with self.lock:
            if (self._written_since_commit or self._commit_error is not None) and self.hold_deadline is None:
                self.commit()

    def fsync(self) -> None:
        """Commit whatever is uncommitted. Raises what the commit raises."""
        with self.lock:
            if self.hold_deadline is None:
                self.commit()

    def readers_share_content(self, newest_handle: AttachedHandle) -> bool:
        """Whether the newest handle and all others read the same bytes."""
        with self.lock:
            now = newest_handle.private_view()
            return all(
                _is_same_content(each.private_view(), now)
                for each in list(self.attached_handles)
                if each.is_reader and each is not newest_handle
            )

    @property
    def is_dirty(self) -> bool:
        """Whether Redis does not yet hold what this file holds."""
        return self.target is not None and self.buffer is not None and (self.is_new or self.buffer.is_modified)

    # -- the change --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the edit one change in the journal and in Redis. Raises RedisFuseError; then the edit is kept,
        except after a conflict, where the journal has it as a refused change."""
        with self.lock:
            if not self.is_dirty:
                return
            assert self.buffer is not None
            assert self.target is not None
            self.hold_deadline = None
            self._written_since_commit = False
            try:
                if not self._resolve_in_doubt(self.target, self.buffer):
                    self._write_back(self.target, self.buffer)
            except RedisFuseError as error:
                self._commit_error = error
                if isinstance(error, OutcomeUnknownError):
                    self._in_doubt_change, self._modified_since_in_doubt = error.change_id, False
                if isinstance(error, ConflictError):
                    self._discard_edit()
                    for each in list(self.attached_handles):
                        each.mark_conflicted(error)
                raise
            self._commit_error = None
            if self.mtime_ns is not None:
                self._open_files.coherence.file_saved(self.target, self.mtime_ns)
            self._clear_new()
            self.content_version += 1
            self._rebase_on_committed(self.buffer)

    def _resolve_in_doubt(self, target: KeyRef, buffer: WriteBuffer) -> bool:
        """Whether an earlier commit, of which nobody knew what became, has made all of the edit already.

        If it has made some, the rest goes on over that. Raises UnavailableError if it can't be known yet.
        """
        if self._in_doubt_change is None:
            return False
        made = self._open_files.key_writer.get_applied_state(self._in_doubt_change)
        self._in_doubt_change = None
        if made is None:
            return False
        if not self._modified_since_in_doubt:
            return True
        if made.kind == "value" and made.content is not None and made.content.size <= MAX_WHOLE_WRITE_BYTES:
            content = made.content.read()
            snapshot: FileContent = InlineContent(content)
            self._precondition = Precondition.from_bytes(content)
        else:
            snapshot, self._precondition = self._open_files.content_loader.open_with_precondition(target)
        self.buffer = buffer.rebase(snapshot)
        buffer.close()
        self._clear_new()
        return False

    def _write_back(self, target: KeyRef, buffer: WriteBuffer) -> None:
        """Make the change."""
        edits = self._open_files.key_writer
        patch = (
            buffer.dirty_range()
            if buffer.size > MAX_WHOLE_WRITE_BYTES and target.field is None and not self.is_new
            else None
        )
        if patch is not None and patch[1] * 2 <= buffer.size:
            offset, size = patch
            edits.patch(
                target, offset, buffer_blob(buffer, offset, size), precondition=self._precondition, path=self.path
            )
            return
        op = "create" if self._precondition.kind == "absent" else "write"
        try:
            content = buffer_blob(buffer, 0, buffer.size)
        except (NotFoundError, WrongTypeError) as error:
            raise ConflictError(f"what was not overwritten can't be read any more: {error}") from error
        edits.save(target, content, precondition=self._precondition, path=self.path, op=op)

    def _rebase_on_committed(self, buffer: WriteBuffer) -> None:
        """Go on editing over what was just written."""
        if not self.writer_count:
            self._drop_buffer()
        elif buffer.size <= MAX_WHOLE_WRITE_BYTES:
            content = buffer.read(0, buffer.size)
            self._precondition = Precondition.from_bytes(content)
            self._set_base(InlineContent(content))
        else:
            changed_ns = self.mtime_ns
            try:
                self._load_base()
            except RedisFuseError:
                self._drop_buffer()  # all is saved; whoever goes on editing looks again
            self.mtime_ns = changed_ns

    def commit_as(self, target: KeyRef, path: bytes, precondition: Precondition) -> None:
        """Commit a new file at another target than it was made for: it was renamed before it was ever in Redis.

        Raises what `commit` raises; then it is what it was.
        """
        with self.lock:
            before = (self.target, self.path, self._precondition, self.pending_removal, self.hold_deadline)
            self.target, self.path, self._precondition, self.pending_removal, self._in_doubt_change = (
                target,
                path,
                precondition,
                None,
                None,
            )
            try:
                self.commit()
            except RedisFuseError:
                self.target, self.path, self._precondition, self.pending_removal, self.hold_deadline = before
                raise

    def _clear_new(self) -> None:
        self.is_new = False
        self.pending_removal = None

    def _discard_edit(self) -> None:
        self._clear_new()
        self._in_doubt_change = None
        self.content_version += 1
        self._drop_buffer()
        if self.target is not None:
            self._open_files.coherence.keys_reappeared([self.target.key])

    def _drop_buffer(self) -> None:
        if self.buffer is not None:
            self.buffer.close()
            self.buffer = None

    # -- handles come and go -----------------------------------------------------------------------------------------

    def on_handle_release(self) -> None:
        """A handle was closed for good. The last writer's leaving commits what no flush did (its error is logged)."""
        with self.lock:
            if self.writer_count or self.target is None or self.hold_deadline is not None:
                return  # a held file's turn comes in `OpenFiles.commit_held`
            if self.is_dirty and self._commit_error is None:
                try:
                    self.commit()
                except RedisFuseError as error:
                    log.error("%s: not saved at its last close: %s", os.fsdecode(self.path), error)
            self._journal_unsaved_edit()
            self._drop_buffer()

    def commit_at_unmount(self, *, busy_at_unmount: bool) -> None:
        """The mount ends: save what is left. What can't be, or what a program is still writing (then `left_open`), so
        that it may be half of something, is kept in the journal, and said. Raises no RedisFuseError."""
        with self.lock:
            if not self.is_dirty:
                return
            if busy_at_unmount and self.writer_count:
                self._commit_error = UnavailableError("the mount ended while it was open for writing")
            else:
                with contextlib.suppress(RedisFuseError):
                    self.commit()
            self._journal_unsaved_edit()

    def _journal_unsaved_edit(self) -> None:
        """No edit is lost: what could not be saved, and was reported so, is in the journal, now if not before."""
        if self._commit_error is None or not self.is_dirty:
            return
        assert self.buffer is not None
        assert self.target is not None
        change = self._commit_error.change_id
        try:
            if change is None and self.buffer.size:
                states, error = self._unsaved_states(self.buffer, self.target), str(self._commit_error)
                if states:
                    change = self._open_files.key_writer.record_refused(
                        self.target, states, path=self.path, error=error
                    )
            if change is None:
                log.error("%s: not saved: %s", os.fsdecode(self.path), self._commit_error)
            else:
                log.error("%s: %s; its bytes are kept as change %d", os.fsdecode(self.path), self._commit_error, change)
        except RedisFuseError as error:
            log.error("%s: its bytes could not be kept either: %s", os.fsdecode(self.path), error)
        self._discard_edit()

    def _unsaved_states(self, buffer: WriteBuffer, target: KeyRef) -> list[State]:
        """What is to be kept of an edit: all, or what was written, where the rest is large or can't be read any more.

        Raises what reading does.
        """
        if target.field is not None or not buffer.has_base or buffer.size <= MAX_WHOLE_WRITE_BYTES:
            try:
                content = buffer_blob(buffer, 0, buffer.size)
                return [State.from_value(content, b"string" if target.field is None else b"field")]
            except RedisFuseError:
                if target.field is not None:
                    raise
        return [
            State.from_slice(buffer_blob(buffer, offset, size), offset, buffer.size_after_patch(offset + size))
            for offset, size in buffer.written_ranges()
        ]

    def detach(self, unlink: Callable[[], None]) -> None:
        """Unlink it, once there is a copy of its bytes for the handles that stay. Raises what reading and `unlink` do;
        then it is what it was."""
        with self.lock:
            if self.target is None:
                return
            loaded = self.buffer is None
            if loaded:
                self._load_base()
            assert self.buffer is not None
            try:
                copy = self.buffer.copy()
                unlink()
            except RedisFuseError:
                if loaded:
                    self._drop_buffer()
                raise
            self.buffer.close()
            self.buffer = copy
            self.target = None
            self.hold_deadline = None
            self._clear_new()

    def detach_without_copy(self) -> None:
        """The same for a file whose handles read from elsewhere: there is nothing to copy."""
        with self.lock:
            self._drop_buffer()
            self.buffer = WriteBuffer()
            self.target = None

    def reload_after_rename(self) -> None:
        """Its target has another name now: what is read piece by piece is read there."""
        with self.lock:
            seen = [snapshot for each in list(self.attached_handles) if (snapshot := each.private_view()) is not None]
            if any(inline_bytes(snapshot) is None for snapshot in seen):
                self.content_version += 1
            if self.buffer is None or self.target is None or self._precondition.kind != "length":
                return
            try:
                snapshot, basis = self._open_files.content_loader.open_with_precondition(self.target)
            except RedisFuseError as error:
                log.warning("%s: what it held can't be read after it was renamed: %s", os.fsdecode(self.path), error)
                return
            buffer, self.buffer = self.buffer, self.buffer.rebase(snapshot)
            self._precondition = basis
            buffer.close()

    @property
    def attachment_state(self) -> AttachmentState:
        """What `detach` takes away."""
        return AttachmentState(
            self.target, self._precondition, self.is_new, self.is_dirty, self.hold_deadline, self.pending_removal
        )

    def reattach(self, state: AttachmentState) -> None:
        """Undo `detach`. What was not saved then is not saved now."""
        with self.lock:
            self.target, self._precondition, self.is_new = state.target, state.precondition, state.is_new
            self.hold_deadline, self.pending_removal = state.hold_deadline, state.pending_removal
            if not state.is_dirty:
                self._drop_buffer()

    def to_blob(self) -> Blob:
        """All its bytes; valid while the caller holds `lock`."""
        assert self.buffer is not None
        return buffer_blob(self.buffer, 0, self.buffer.size)


class OpenFiles:
    """The table of open files, by target, and of unlinked ones by the name that libfuse hides them under."""

    def __init__(
        self,
        key_writer: KeyWriter,
        content_loader: ContentLoader,
        coherence: Coherence,
        *,
        hold_seconds: float,
        clock: PausableClock,
        wake_event: threading.Event,
    ) -> None:
        self.key_writer = key_writer
        self.content_loader = content_loader
        self.coherence = coherence
        self.wake_event = wake_event  # set whenever something begins to wait for its time
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._by_target: dict[KeyRef, OpenFile] = {}
        self._hidden_by_path: dict[bytes, OpenFile] = {}

    def get(self, target: KeyRef) -> OpenFile | None:
        """The open file of a target, if any."""
        return self._by_target.get(target)

    def get_hidden(self, hidden_path: bytes) -> OpenFile | None:
        """The unlinked file that libfuse knows under `path`."""
        return self._hidden_by_path.get(hidden_path)

    def open_handle(self, target: KeyRef, path: bytes, *, is_writer: bool) -> OpenFile:
        """Count one more handle on a target. Pair it with `close_handle`."""
        with self._lock:
            file = self._by_target.get(target)
            if file is None:
                file = self._by_target[target] = OpenFile(self, target, path)
            file.handle_count += 1
            file.writer_count += is_writer
            if is_writer:
                file.path = path
            return file

    def get_or_unregistered(self, target: KeyRef, path: bytes) -> OpenFile:
        """The open file of a target, or one without handles that is not in the table."""
        return self._by_target.get(target) or OpenFile(self, target, path)

    def add_handle(self, file: OpenFile, *, is_writer: bool) -> OpenFile:
        """Count one more handle on a file that is known already (a hidden or a new one)."""
        with self._lock:
            file.handle_count += 1
            file.writer_count += is_writer
            return file

    def close_handle(self, file: OpenFile, *, is_writer: bool) -> None:
        """Count one handle less; commits what is left when it was the last that could write."""
        with self._lock:
            file.writer_count -= is_writer
        try:
            if is_writer:
                file.on_handle_release()
        finally:
            # Only now: until what is left is in Redis, whoever opens the file must find this one.
            with self._lock:
                file.handle_count -= 1
                if file.handle_count == 0 and file.hold_deadline is not None:
                    file.hold_deadline = self._clock.now + self._hold_seconds
                    self.wake_event.set()
                if file.handle_count == 0 and file.target is None and self._hidden_by_path:
                    self._hidden_by_path = {
                        path: each for path, each in self._hidden_by_path.items() if each is not file
                    }
            self.remove_if_idle(file)

    def remove_if_idle(self, file: OpenFile) -> None:
        """Let a file go that nobody has open and that holds nothing of its own."""
        with self._lock:
            if file.handle_count == 0 and file.hold_deadline is None and file.target is not None:
                self._remove(file)

    def _remove(self, file: OpenFile) -> None:
        if file.target is not None and self._by_target.get(file.target) is file:
            del self._by_target[file.target]

    def detach(self, file: OpenFile, unlink: Callable[[], None] = lambda: None, *, copy_content: bool = True) -> None:
        """A file is unlinked (by `unlink`) or replaced: it leaves the table, and keeps its bytes for its handles (if
        `copy`). Raises what reading them and `unlink` raise; then nothing was done.
        """
        with file.lock:
            target = file.target
            if copy_content and file.handle_count:
                file.detach(unlink)
            else:
                unlink()
                file.detach_without_copy()
            with self._lock:
                if target is not None and self._by_target.get(target) is file:
                    del self._by_target[target]

    def detach_reversibly(self, file: OpenFile) -> Callable[[], None]:
        """As `detach`, for what may come to nothing: call what it returns, and the file is where it was."""
        with file.lock:
            before = file.attachment_state
            self.detach(file)

        def restore() -> None:
            with file.lock:
                file.reattach(before)
                with self._lock:
                    if before.target is not None and (file.handle_count or file.hold_deadline is not None):
                        self._by_target.setdefault(before.target, file)

        return restore

    def hide(self, file: OpenFile, hidden_path: bytes) -> None:
        """libfuse goes on calling an unlinked file by `path`, until its last close (as `MemoryFS.hide` has it)."""
        with self._lock:
            if file.handle_count:
                self._hidden_by_path[hidden_path] = file

    def rename_hidden_below(self, old: bytes, new: bytes) -> None:
        """Follow a directory that was renamed."""
        with self._lock:
            self._hidden_by_path = {
                new + path[len(old) :] if path.startswith(old + b"/") else path: file
                for path, file in self._hidden_by_path.items()
            }

    def remove_hidden(self, hidden_path: bytes) -> bool:
        """The last descriptor of an unlinked file is gone. False if `path` names none."""
        with self._lock:
            return self._hidden_by_path.pop(hidden_path, None) is not None

    def retarget(self, file: OpenFile, old_target: KeyRef, new_target: KeyRef, new_path: bytes) -> None:
        """The target of an open file got another name: its handles follow."""
        with self._lock:
            if self._by_target.get(old_target) is file:
                del self._by_target[old_target]
            file.target = new_target
            file.path = new_path
            if file.handle_count or file.hold_deadline is not None:
                self._by_target[new_target] = file
        file.reload_after_rename()

    def iter_files(self) -> Iterator[OpenFile]:
        """Every file with a target, as of now."""
        with self._lock:
            return iter(list(self._by_target.values()))

    def commit_expired_holds(self, now: float | None, key_prefix: bytes = b"") -> None:
        """Commit the held files whose grace time has passed (`now` by the clock; None: all) and whose keys begin so."""
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
                    file.on_handle_release()
            self.remove_if_idle(file)


def _is_same_content(pinned: FileContent | None, current: FileContent | None) -> bool:
    """Whether a handle reads what is there now."""
    if pinned is None or pinned is current:
        return True
    content = inline_bytes(pinned)
    return content is not None and content == inline_bytes(current)


def buffer_blob(buffer: WriteBuffer, offset: int, size: int) -> Blob:
    """A range of a buffer as journal content; large ones are read again each time, under the file's lock."""
    if size <= CHUNK_BYTES:
        return Blob.from_bytes(buffer.read(offset, size))
    sha = hashlib.sha256()
    for chunk in buffer.iter_chunks(offset, size):
        sha.update(chunk)
    return Blob(size, sha.digest(), lambda: buffer.iter_chunks(offset, size))


def _content_digest(content: FileContent) -> bytes:
    """SHA-256 of all of it."""
    sha = hashlib.sha256()
    for offset in range(0, content.size, CHUNK_BYTES):
        sha.update(content.read(offset, CHUNK_BYTES))
    return sha.digest()

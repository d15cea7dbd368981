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
from typing import NamedTuple, Protocol

from redisfuse.batching import CHUNK_BYTES
from redisfuse.errors import (
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    RedisFuseError,
    UnavailableError,
    WrongTypeError,
)
from redisfuse.journal.models import Content, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.key_writer import Edits
from redisfuse.transactions.precondition import Basis
from redisfuse.vfs.content_types import SmallSnapshot, Snapshot
from redisfuse.vfs.growing_content import content_of
from redisfuse.vfs.staged_replace import Parked, PatientClock
from redisfuse.vfs.write_buffer import EditBuffer

log = logging.getLogger(__name__)

WHOLE_BYTES = CHUNK_BYTES  # a value up to this size is always written whole


class Opening(Protocol):
    """One of the handles of an open file."""

    @property
    def reads(self) -> bool:
        """Whether it was opened for reading."""
        ...

    def seen(self) -> Snapshot | None:
        """What it alone reads; None if it reads what is there now."""
        ...

    def refuse(self, error: ConflictError) -> None:
        """Others have changed what it was opened on."""
        ...


class Attachment(NamedTuple):
    """What ties an open file to its target."""

    target: Target | None
    basis: Basis
    new: bool
    uncommitted: bool
    held_until: float | None
    parked: Parked | None


class OpenFile:
    """One target's bytes while it is open: the server's, or an edit in progress over them."""

    def __init__(self, files: OpenFiles, target: Target, path: bytes) -> None:
        self._files = files
        self.target: Target | None = target  # None: unlinked, its bytes live only here
        self.path = path  # as the program spelled it, for the journal
        self.lock = threading.RLock()
        self.handles = 0
        self.writers = 0
        self.openings: set[Opening] = set()
        self.buffer: EditBuffer | None = None
        self.version = 0  # grows when what Redis holds was replaced through this file: readers look again
        self.held_until: float | None = None  # by the clock; not committed before, unless renamed; inf while it is open
        self.changed_ns: int | None = None  # when it was last written here; None: the edit has altered nothing yet
        self._basis = Basis.anything()
        self.parked: Parked | None = None  # what is in Redis until a new file's first commit
        self.new = False  # not in Redis yet (but for a parked value): an empty file is a change too
        self._written = False  # since the last commit
        self._error: RedisFuseError | None = None  # why the last commit failed
        self._unsure: int | None = None  # the change that an earlier commit may have made
        self._altered = False  # since that commit

    # -- beginning an edit -------------------------------------------------------------------------------------------

    def begin_edit(self) -> None:
        """Make ready for writing over what Redis holds now. Raises what reading raises."""
        with self.lock:
            if self.buffer is None and self.target is not None:
                self._load()

    def begin_new(self, basis: Basis, *, held: bool, parked: Parked | None) -> None:
        """Make ready for writing something new where Redis holds what `basis` says (nothing, or a parked value)."""
        with self.lock:
            if self.new:
                return  # another open(2) with O_CREAT came at the same moment
            self.buffer = EditBuffer(0, _nothing)
            self._basis = basis
            self.new = True
            self.changed_ns = time.time_ns()
            self.parked = parked
            self.held_until = math.inf if held else None

    def _load(self) -> None:
        assert self.target is not None
        snapshot, self._basis = self._files.snapshot(self.target)
        if self.target.field is not None and self._basis.kind == "length":
            # Read whole: should somebody change it meanwhile, its other bytes could not be had any more; and that it is
            # another one can't be told from what is heard of its key, which is heard of for any of its fields.
            self._basis = Basis.content(snapshot.size, _digest(snapshot))
        self._set_base(snapshot)
        self.changed_ns = None

    def _set_base(self, snapshot: Snapshot) -> None:
        if self.buffer is not None:
            self.buffer.close()
        self.buffer = EditBuffer(snapshot.size, snapshot.read)

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
            self._files.check_size(end)
            self.buffer.write(end - len(data), data)
            self._written = True
            self._error = None
            self._altered = True
            self.changed_ns = time.time_ns()

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long. Alone, this waits for a write, an fsync or the last release."""
        with self.lock:
            self.begin_edit()
            assert self.buffer is not None
            self._files.check_size(size)
            self.buffer.truncate(size)
            self._error = None
            self._altered = True
            self.changed_ns = time.time_ns()

    def flush(self) -> None:
        """Commit if something was written since the last commit, or if that failed. Raises what the commit raises."""
        with self.lock:
            if (self._written or self._error is not None) and self.held_until is None:
                self.commit()

    def fsync(self) -> None:
        """Commit whatever is uncommitted. Raises what the commit raises."""
        with self.lock:
            if self.held_until is None:
                self.commit()

    def reads_alike(self, newest: Opening) -> bool:
        """Whether the newest handle and all others read the same bytes."""
        with self.lock:
            now = newest.seen()
            return all(_alike(each.seen(), now) for each in list(self.openings) if each.reads and each is not newest)

    @property
    def uncommitted(self) -> bool:
        """Whether Redis does not yet hold what this file holds."""
        return self.target is not None and self.buffer is not None and (self.new or self.buffer.changed)

    # -- the change --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the edit one change in the journal and in Redis. Raises RedisFuseError; then the edit is kept,
        except after a conflict, where the journal has it as a refused change."""
        with self.lock:
            if not self.uncommitted:
                return
            assert self.buffer is not None
            assert self.target is not None
            self.held_until = None
            self._written = False
            try:
                if not self._was_made(self.target, self.buffer):
                    self._write_out(self.target, self.buffer)
            except RedisFuseError as error:
                self._error = error
                if isinstance(error, OutcomeUnknownError):
                    self._unsure, self._altered = error.change, False
                if isinstance(error, ConflictError):
                    self._forget_edit()
                    for each in list(self.openings):
                        each.refuse(error)
                raise
            self._error = None
            if self.changed_ns is not None:
                self._files.saved(self.target, self.changed_ns)
            self._settle_new()
            self.version += 1
            self._rebase(self.buffer)

    def _was_made(self, target: Target, buffer: EditBuffer) -> bool:
        """Whether an earlier commit, of which nobody knew what became, has made all of the edit already.

        If it has made some, the rest goes on over that. Raises UnavailableError if it can't be known yet.
        """
        if self._unsure is None:
            return False
        made = self._files.edits.made(self._unsure)
        self._unsure = None
        if made is None:
            return False
        if not self._altered:
            return True
        if made.kind == "value" and made.content is not None and made.content.size <= WHOLE_BYTES:
            content = made.content.read()
            snapshot: Snapshot = SmallSnapshot(content)
            self._basis = Basis.of(content)
        else:
            snapshot, self._basis = self._files.snapshot(target)
        self.buffer = buffer.over(snapshot.size, snapshot.read)
        buffer.close()
        self._settle_new()
        return False

    def _write_out(self, target: Target, buffer: EditBuffer) -> None:
        """Make the change."""
        edits = self._files.edits
        patch = buffer.patch() if buffer.size > WHOLE_BYTES and target.field is None and not self.new else None
        if patch is not None and patch[1] * 2 <= buffer.size:
            offset, size = patch
            edits.patch(target, offset, buffer_content(buffer, offset, size), basis=self._basis, path=self.path)
            return
        op = "create" if self._basis.kind == "absent" else "write"
        try:
            content = buffer_content(buffer, 0, buffer.size)
        except (NotFoundError, WrongTypeError) as error:
            raise ConflictError(f"what was not overwritten can't be read any more: {error}") from error
        edits.save(target, content, basis=self._basis, path=self.path, op=op)

    def _rebase(self, buffer: EditBuffer) -> None:
        """Go on editing over what was just written."""
        if not self.writers:
            self._drop_buffer()
        elif buffer.size <= WHOLE_BYTES:
            content = buffer.read(0, buffer.size)
            self._basis = Basis.of(content)
            self._set_base(SmallSnapshot(content))
        else:
            changed_ns = self.changed_ns
            try:
                self._load()
            except RedisFuseError:
                self._drop_buffer()  # all is saved; whoever goes on editing looks again
            self.changed_ns = changed_ns

    def commit_as(self, target: Target, path: bytes, basis: Basis) -> None:
        """Commit a new file at another target than it was made for: it was renamed before it was ever in Redis.

        Raises what `commit` raises; then it is what it was.
        """
        with self.lock:
            before = (self.target, self.path, self._basis, self.parked, self.held_until)
            self.target, self.path, self._basis, self.parked, self._unsure = target, path, basis, None, None
            try:
                self.commit()
            except RedisFuseError:
                self.target, self.path, self._basis, self.parked, self.held_until = before
                raise

    def _settle_new(self) -> None:
        self.new = False
        self.parked = None

    def _forget_edit(self) -> None:
        self._settle_new()
        self._unsure = None
        self.version += 1
        self._drop_buffer()
        if self.target is not None:
            self._files.given_up(self.target.key)

    def _drop_buffer(self) -> None:
        if self.buffer is not None:
            self.buffer.close()
            self.buffer = None

    # -- handles come and go -----------------------------------------------------------------------------------------

    def released(self) -> None:
        """A handle was closed for good. The last writer's leaving commits what no flush did (its error is logged)."""
        with self.lock:
            if self.writers or self.target is None or self.held_until is not None:
                return  # a held file's turn comes in `OpenFiles.commit_held`
            if self.uncommitted and self._error is None:
                try:
                    self.commit()
                except RedisFuseError as error:
                    log.error("%s: not saved at its last close: %s", os.fsdecode(self.path), error)
            self._give_up()
            self._drop_buffer()

    def finish(self, *, left_open: bool) -> None:
        """The mount ends: save what is left. What can't be, or what a program is still writing (then `left_open`), so
        that it may be half of something, is kept in the journal, and said. Raises no RedisFuseError."""
        with self.lock:
            if not self.uncommitted:
                return
            if left_open and self.writers:
                self._error = UnavailableError("the mount ended while it was open for writing")
            else:
                with contextlib.suppress(RedisFuseError):
                    self.commit()
            self._give_up()

    def _give_up(self) -> None:
        """No edit is lost: what could not be saved, and was reported so, is in the journal, now if not before."""
        if self._error is None or not self.uncommitted:
            return
        assert self.buffer is not None
        assert self.target is not None
        change = self._error.change
        try:
            if change is None and self.buffer.size:
                states, error = self._edited(self.buffer, self.target), str(self._error)
                if states:
                    change = self._files.edits.keep_refused(self.target, states, path=self.path, error=error)
            if change is None:
                log.error("%s: not saved: %s", os.fsdecode(self.path), self._error)
            else:
                log.error("%s: %s; its bytes are kept as change %d", os.fsdecode(self.path), self._error, change)
        except RedisFuseError as error:
            log.error("%s: its bytes could not be kept either: %s", os.fsdecode(self.path), error)
        self._forget_edit()

    def _edited(self, buffer: EditBuffer, target: Target) -> list[State]:
        """What is to be kept of an edit: all, or what was written, where the rest is large or can't be read any more.

        Raises what reading does.
        """
        if target.field is not None or not buffer.has_base or buffer.size <= WHOLE_BYTES:
            try:
                content = buffer_content(buffer, 0, buffer.size)
                return [State.of_value(content, b"string" if target.field is None else b"field")]
            except RedisFuseError:
                if target.field is not None:
                    raise
        return [
            State.of_slice(buffer_content(buffer, offset, size), offset, buffer.size_with(offset + size))
            for offset, size in buffer.written()
        ]

    def detach(self, unlink: Callable[[], None]) -> None:
        """Unlink it, once there is a copy of its bytes for the handles that stay. Raises what reading and `unlink` do;
        then it is what it was."""
        with self.lock:
            if self.target is None:
                return
            loaded = self.buffer is None
            if loaded:
                self._load()
            assert self.buffer is not None
            try:
                copy = _copied(self.buffer)
                unlink()
            except RedisFuseError:
                if loaded:
                    self._drop_buffer()
                raise
            self.buffer.close()
            self.buffer = copy
            self.target = None
            self.held_until = None
            self._settle_new()

    def detach_empty(self) -> None:
        """The same for a file whose handles read from elsewhere: there is nothing to copy."""
        with self.lock:
            self._drop_buffer()
            self.buffer = EditBuffer(0, _nothing)
            self.target = None

    def follow(self) -> None:
        """Its target has another name now: what is read piece by piece is read there."""
        with self.lock:
            seen = [snapshot for each in list(self.openings) if (snapshot := each.seen()) is not None]
            if any(content_of(snapshot) is None for snapshot in seen):
                self.version += 1
            if self.buffer is None or self.target is None or self._basis.kind != "length":
                return
            try:
                snapshot, basis = self._files.snapshot(self.target)
            except RedisFuseError as error:
                log.warning("%s: what it held can't be read after it was renamed: %s", os.fsdecode(self.path), error)
                return
            buffer, self.buffer = self.buffer, self.buffer.over(snapshot.size, snapshot.read)
            self._basis = basis
            buffer.close()

    @property
    def attachment(self) -> Attachment:
        """What `detach` takes away."""
        return Attachment(self.target, self._basis, self.new, self.uncommitted, self.held_until, self.parked)

    def attach(self, before: Attachment) -> None:
        """Undo `detach`. What was not saved then is not saved now."""
        with self.lock:
            self.target, self._basis, self.new = before.target, before.basis, before.new
            self.held_until, self.parked = before.held_until, before.parked
            if not before.uncommitted:
                self._drop_buffer()

    def content(self) -> Content:
        """All its bytes; valid while the caller holds `lock`."""
        assert self.buffer is not None
        return buffer_content(self.buffer, 0, self.buffer.size)


class OpenFiles:
    """The table of open files, by target, and of unlinked ones by the name that libfuse hides them under."""

    def __init__(
        self,
        edits: Edits,
        snapshot: Callable[[Target], tuple[Snapshot, Basis]],
        check_size: Callable[[int], None],
        *,
        hold_seconds: float,
        clock: PatientClock,
        wake: threading.Event,
        given_up: Callable[[bytes], None],
        saved: Callable[[Target, int], None],
    ) -> None:
        self.edits = edits
        self.snapshot = snapshot
        self.check_size = check_size  # raises TooLargeError
        self.given_up = given_up  # told of the key of an edit that came to nothing
        self.saved = saved  # told when what was just committed was last written (ns)
        self.wake = wake  # set whenever something begins to wait for its time
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[Target, OpenFile] = {}
        self._hidden: dict[bytes, OpenFile] = {}

    def get(self, target: Target) -> OpenFile | None:
        """The open file of a target, if any."""
        return self._files.get(target)

    def hidden(self, path: bytes) -> OpenFile | None:
        """The unlinked file that libfuse knows under `path`."""
        return self._hidden.get(path)

    def opened(self, target: Target, path: bytes, *, writing: bool) -> OpenFile:
        """Count one more handle on a target. Pair it with `closed`."""
        with self._lock:
            file = self._files.get(target)
            if file is None:
                file = self._files[target] = OpenFile(self, target, path)
            file.handles += 1
            file.writers += writing
            if writing:
                file.path = path
            return file

    def reopened_or_new(self, target: Target, path: bytes) -> OpenFile:
        """The open file of a target, or one without handles that is not in the table."""
        return self._files.get(target) or OpenFile(self, target, path)

    def reopened(self, file: OpenFile, *, writing: bool) -> OpenFile:
        """Count one more handle on a file that is known already (a hidden or a new one)."""
        with self._lock:
            file.handles += 1
            file.writers += writing
            return file

    def closed(self, file: OpenFile, *, writing: bool) -> None:
        """Count one handle less; commits what is left when it was the last that could write."""
        with self._lock:
            file.writers -= writing
        try:
            if writing:
                file.released()
        finally:
            # Only now: until what is left is in Redis, whoever opens the file must find this one.
            with self._lock:
                file.handles -= 1
                if file.handles == 0 and file.held_until is not None:
                    file.held_until = self._clock.now + self._hold_seconds
                    self.wake.set()
                if file.handles == 0 and file.target is None and self._hidden:
                    self._hidden = {path: each for path, each in self._hidden.items() if each is not file}
            self.forget_if_idle(file)

    def forget_if_idle(self, file: OpenFile) -> None:
        """Let a file go that nobody has open and that holds nothing of its own."""
        with self._lock:
            if file.handles == 0 and file.held_until is None and file.target is not None:
                self._forget(file)

    def _forget(self, file: OpenFile) -> None:
        if file.target is not None and self._files.get(file.target) is file:
            del self._files[file.target]

    def detach(self, file: OpenFile, unlink: Callable[[], None] = lambda: None, *, copy: bool = True) -> None:
        """A file is unlinked (by `unlink`) or replaced: it leaves the table, and keeps its bytes for its handles (if
        `copy`). Raises what reading them and `unlink` raise; then nothing was done.
        """
        with file.lock:
            target = file.target
            if copy and file.handles:
                file.detach(unlink)
            else:
                unlink()
                file.detach_empty()
            with self._lock:
                if target is not None and self._files.get(target) is file:
                    del self._files[target]

    def displace(self, file: OpenFile) -> Callable[[], None]:
        """As `detach`, for what may come to nothing: call what it returns, and the file is where it was."""
        with file.lock:
            before = file.attachment
            self.detach(file)

        def restore() -> None:
            with file.lock:
                file.attach(before)
                with self._lock:
                    if before.target is not None and (file.handles or file.held_until is not None):
                        self._files.setdefault(before.target, file)

        return restore

    def hide(self, file: OpenFile, path: bytes) -> None:
        """libfuse goes on calling an unlinked file by `path`, until its last close (as `Scratch.hide` has it)."""
        with self._lock:
            if file.handles:
                self._hidden[path] = file

    def rename_hidden_below(self, old: bytes, new: bytes) -> None:
        """Follow a directory that was renamed."""
        with self._lock:
            self._hidden = {
                new + path[len(old) :] if path.startswith(old + b"/") else path: file
                for path, file in self._hidden.items()
            }

    def unhide(self, path: bytes) -> bool:
        """The last descriptor of an unlinked file is gone. False if `path` names none."""
        with self._lock:
            return self._hidden.pop(path, None) is not None

    def moved(self, file: OpenFile, old: Target, target: Target, path: bytes) -> None:
        """The target of an open file got another name: its handles follow."""
        with self._lock:
            if self._files.get(old) is file:
                del self._files[old]
            file.target = target
            file.path = path
            if file.handles or file.held_until is not None:
                self._files[target] = file
        file.follow()

    def all(self) -> Iterator[OpenFile]:
        """Every file with a target, as of now."""
        with self._lock:
            return iter(list(self._files.values()))

    def commit_held(self, now: float | None, prefix: bytes = b"") -> None:
        """Commit the held files whose grace time has passed (`now` by the clock; None: all) and whose keys begin so."""
        for file in self.all():
            with file.lock:
                if file.held_until is None or file.handles or (now is not None and file.held_until > now):
                    continue
                if file.target is None or not file.target.key.startswith(prefix):
                    continue
                try:
                    file.commit()
                except RedisFuseError as error:
                    log.error("%s: not saved: %s", os.fsdecode(file.path), error)
                    file.released()
            self.forget_if_idle(file)


def _alike(seen: Snapshot | None, now: Snapshot | None) -> bool:
    """Whether a handle reads what is there now."""
    if seen is None or seen is now:
        return True
    content = content_of(seen)
    return content is not None and content == content_of(now)


def buffer_content(buffer: EditBuffer, offset: int, size: int) -> Content:
    """A range of a buffer as journal content; large ones are read again each time, under the file's lock."""
    if size <= CHUNK_BYTES:
        return Content.of(buffer.read(offset, size))
    sha = hashlib.sha256()
    for chunk in buffer.chunks(offset, size):
        sha.update(chunk)
    return Content(size, sha.digest(), lambda: buffer.chunks(offset, size))


def _copied(old: EditBuffer) -> EditBuffer:
    """The same bytes, with nothing under them."""
    new = EditBuffer(0, _nothing)
    offset = 0
    for chunk in old.chunks():
        new.write(offset, chunk)
        offset += len(chunk)
    return new


def _digest(snapshot: Snapshot) -> bytes:
    """SHA-256 of all of it."""
    sha = hashlib.sha256()
    for offset in range(0, snapshot.size, CHUNK_BYTES):
        sha.update(snapshot.read(offset, CHUNK_BYTES))
    return sha.digest()


def _nothing(_offset: int, _size: int) -> bytes:
    return b""

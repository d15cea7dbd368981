"""Changes of the tree: create, mkdir, unlink, rmdir, rename, truncate.

Everything that reaches Redis goes through the key writer; junk stays in the memory filesystem (docs/editing.md). A
read-only mount has no object of this class.

Threads: every method may be called from any thread. `NamespaceOperations` has no lock of its own.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from redisfuse.errors import AccessError, ExistsError, NotDirectoryError, NotEmptyError, NotFoundError
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.delayed_changes import DelayedChanges
from redisfuse.vfs.directory_retention import DirectoryRetention
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.name_placement import NamePlacement
from redisfuse.vfs.namespace_rename import RenameOperations
from redisfuse.vfs.nodes import (
    DirectoryNode,
    KeyNode,
    MemoryNode,
    OpenFileNode,
    SegmentNode,
    require_target,
)
from redisfuse.vfs.open_file import OpenFile
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.processes import Processes
from redisfuse.vfs.recent_removals import RecentRemovals

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence

log = logging.getLogger(__name__)


class NamespaceOperations:
    """Creates, removes and renames files and directories."""

    def __init__(
        self,
        filesystem: Filesystem,
        overlay: Overlay,
        key_writer: KeyWriter,
        junk_rules: JunkRules,
        empty_directories: EmptyDirectories,
        *,
        strings_only: bool,
        removal_delay_seconds: float,
        coherence: Coherence,
        processes: Processes,
    ) -> None:
        """Prepare for changes.

        `strings_only`: --new-files string; `removal_delay_seconds`: --park-seconds.
        """
        self._filesystem = filesystem
        self._overlay = overlay
        self._key_writer = key_writer
        self._empty_directories = empty_directories
        self._placement = NamePlacement(filesystem, overlay, junk_rules, strings_only=strings_only)
        self._retention = DirectoryRetention(filesystem, overlay, empty_directories)
        self._recent_removals = RecentRemovals(processes)
        self._delayed_changes = DelayedChanges(overlay, key_writer, self._retention, coherence)
        self._rename_operations = RenameOperations(
            filesystem,
            overlay,
            key_writer,
            empty_directories,
            placement=self._placement,
            retention=self._retention,
            recent_removals=self._recent_removals,
            delayed_changes=self._delayed_changes,
            coherence=coherence,
            removal_delay_seconds=removal_delay_seconds,
        )

    # -- creating ----------------------------------------------------------------------------------------------------

    def create(self, path: bytes, *, exclusive: bool, mode: int, caller: int) -> OpenFile | bytes:
        """Create a file. `caller`: the thread that does so.

        Returns an open file with one more handle, or the path of a new junk file. Raises ExistsError, BadNameError,
        NameTooLongError, AccessError (--allow), NoSpaceError (junk).
        """
        decision = self._placement.decide_junk(path, exclusive=exclusive, mode=mode)
        if decision.is_junk:
            self._overlay.memory_fs.create(path, mode, exclusive=exclusive)
            return path
        candidates = self._filesystem.grammar.parse_new(path)
        removals, files = self._overlay.pending_removals, self._overlay.open_files
        with removals.claim(self._placement.candidate_targets(candidates)):
            existing = self._filesystem.resolver.resolve_file(candidates)
            if existing is not None:
                if exclusive:
                    raise ExistsError("file exists")
                return files.open_handle(require_target(existing), path, is_writer=True)
            removed = self._recent_removals.take(self._placement.candidate_targets(candidates), caller)
            target = self._placement.choose_target(candidates) if removed is None else removed.target
            self._key_writer.check_allowed(target.key)
            is_held = decision.is_held and target not in removals
            if is_held:  # a change from before must not count as one since
                self._filesystem.keyspace.wait_for_invalidations()
            file = files.open_handle(target, path, is_writer=True)
            removal = removals.get(target)
            precondition = Precondition.absent() if removal is None else removal.save_precondition
            file.begin_create(
                precondition,
                hold=is_held and removal is None,
                pending_removal=removal,
                expiry=None if removed is None else removed.expiry,
                created_version=self._filesystem.keyspace.latest_version,
            )
            removals.cancel(target)  # not before begin_create, or the tree would show the old content for a moment
        return file

    def mkdir(self, path: bytes, mode: int) -> None:
        """Create a directory. Raises ExistsError, BadNameError."""
        if self._placement.decide_junk(path, is_directory=True).is_junk:
            self._overlay.memory_fs.mkdir(path, mode)
            return
        candidates = self._filesystem.grammar.parse_new(path)
        if candidates.as_directory is None:
            raise self._filesystem.grammar.invalid_name_error(path)
        try:
            self._filesystem.resolver.resolve(path)
        except NotFoundError:
            directory = (*candidates.directory, candidates.as_directory)
            self._filesystem.resolver.check_within_prefix(directory)
            self._key_writer.make_directory(directory, path=path)
            self._empty_directories.load()
        else:
            raise ExistsError("file exists")

    # -- removing ----------------------------------------------------------------------------------------------------

    def unlink(self, path: bytes, *, caller: int) -> None:
        """Remove a file: a key of any type, a field, or junk.

        `caller`: the thread that does so. Raises what `KeyWriter.remove` raises.
        """
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            self._overlay.memory_fs.unlink(path)
            self._retention.keep_path(path.rpartition(b"/")[0])
            return
        target = require_target(node)
        content_loader = self._filesystem.content_loader
        unmeasured = content_loader.describe_unmeasured(node) if isinstance(node, KeyNode) else ""
        file = self._overlay.open_files.get(target)
        if file is None:
            removed = self._key_writer.remove([target], path=path)
            self._note_removal(target, removed.get(target), caller)
        else:
            with file.lock:
                self._remove_open(file, target, path, caller)
        self._retention.keep_parent_of(target)
        self._retention.keep_segments(path)
        if unmeasured:
            log.info(
                "/%s was removed: it showed size 0, and was a %s; `redisfuse rollback` takes that back",
                os.fsdecode(path),
                unmeasured,
            )

    def _remove_open(self, file: OpenFile, target: KeyRef, path: bytes, caller: int) -> None:
        """Remove the target of an open file, whose handles keep its bytes.

        The caller holds the file's lock.
        """
        contents = file.copy_for_handles()
        precondition = Precondition.unconditional()
        if file.is_new and file.pending_removal is not None:
            precondition = file.pending_removal.precondition
        if not file.is_new or file.pending_removal is not None:
            removed = self._key_writer.remove([target], path=path, precondition=precondition)
            self._note_removal(target, removed.get(target), caller)
        self._overlay.open_files.detach(file, contents)

    def _note_removal(self, target: KeyRef, removed: State | None, caller: int) -> None:
        self._recent_removals.add(target, removed, caller)
        self._overlay.open_files.known_versions.record_change(target, [caller], Precondition.absent())

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory.

        Raises NotEmptyError, NotDirectoryError, AccessError (the root).
        """
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            self._overlay.memory_fs.rmdir(path)
            return
        if isinstance(node, SegmentNode):
            has_names = any(True for _ in self._filesystem.readdir(path, node))
            if has_names or not self._filesystem.resolver.is_dangling_segment(path):
                raise NotEmptyError("the directory is not empty")
            self._overlay.dangling_segments.discard(path)
            return
        if not isinstance(node, DirectoryNode):
            raise NotDirectoryError("not a directory that can be removed")
        if not node.directory:
            raise AccessError("the root of the mount can't be removed")
        self._filesystem.resolver.wait_for_index()
        self._delayed_changes.commit_expired(None, self._filesystem.grammar.key_prefix(node.directory))
        if (
            self._filesystem.keyspace.index.is_directory(node.directory)
            or self._overlay.readdir(path)
            or self._empty_directories.children(node.directory)
        ):
            raise NotEmptyError("the directory is not empty")
        self._key_writer.remove_directory(node.directory, path=path)
        self._empty_directories.load()
        self._retention.keep(node.directory[:-1])

    # -- renaming and delayed changes --------------------------------------------------------------------------------

    def rename(self, old: bytes, new: bytes, *, replace: bool, caller: int) -> None:
        """Rename a file or a directory.

        `caller`: the thread that does so. Raises ExistsError unless `replace`, and what `KeyWriter.rename` raises.
        """
        self._rename_operations.rename(old, new, replace=replace, caller=caller)

    def commit_expired(self, now: float | None) -> None:
        """Commit the pending removals and held files that are due.

        `now` is a time of the mount's clock; None: all of them are due.
        """
        self._delayed_changes.commit_expired(now)

    # -- attributes and size -----------------------------------------------------------------------------------------

    def set_expiry(self, path: bytes, ttl_ms: int) -> None:
        """Set the TTL of a key or field in milliseconds; -1 removes it.

        Of a new file it is set at its first commit. Raises AccessError for other nodes, and what `KeyWriter.expire`
        raises.
        """
        node = self._filesystem.resolver.resolve(path)
        if not isinstance(node, KeyNode | OpenFileNode):
            raise AccessError("only keys and fields expire")
        expires_at_ms = None if ttl_ms < 0 else time.time_ns() // 1_000_000 + ttl_ms
        if not (isinstance(node, OpenFileNode) and node.file.set_expiry(expires_at_ms)):
            self._key_writer.expire(require_target(node), expires_at_ms, path=path)

    def truncate(self, path: bytes, size: int) -> None:
        """Truncate a file by its path.

        Raises AccessError, TooLargeError and what reading and saving raise. That is a change of its own, unless a
        handle is open for writing, whose close commits it.
        """
        node = self._filesystem.resolver.resolve(path)
        if isinstance(node, KeyNode) and not node.is_editable:
            raise AccessError("only strings and hash fields can be edited")
        files = self._overlay.open_files
        file = node.file if isinstance(node, OpenFileNode) else files.get(require_target(node))
        if file is not None and (file.target is None or file.writer_count):
            with file.lock:
                file.drop_outdated_base()
                file.truncate(size)
                file.attached_handles.mark_written()
            return
        file = files.open_handle(require_target(node), path, is_writer=True)
        try:
            file.truncate(size)
            file.fsync()
        finally:
            files.close_handle(file, is_writer=True)

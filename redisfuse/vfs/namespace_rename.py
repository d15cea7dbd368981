"""Renames within Redis, within the memory filesystem, and between the two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.errors import (
    AccessError,
    BusyError,
    ConflictError,
    CrossDeviceError,
    ExistsError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    RedisFuseError,
)
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.content_types import iter_content_chunks
from redisfuse.vfs.delayed_changes import DelayedChanges
from redisfuse.vfs.directory_retention import DirectoryRetention
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.known_versions import UnchangedByOthers
from redisfuse.vfs.memory_inodes import Origin
from redisfuse.vfs.name_placement import NamePlacement, is_backup_name, reject_junk_name
from redisfuse.vfs.nodes import (
    DirectoryNode,
    KeyNode,
    MemoryNode,
    OpenFileNode,
    TreeNode,
    is_editable_node,
    require_target,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.recent_removals import RecentRemovals

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence


class _Destination(NamedTuple):
    """The key or field that a rename writes."""

    target: KeyRef
    precondition: Precondition
    removed_expiry: Expiry | None  # of what the program has just removed there


class RenameOperations:
    """Renames files and directories. Every method may be called from any thread.

    Lock order: a rename claims its targets in the table of pending removals; under the claim it takes the locks of open
    files, one at a time.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        overlay: Overlay,
        key_writer: KeyWriter,
        empty_directories: EmptyDirectories,
        *,
        placement: NamePlacement,
        retention: DirectoryRetention,
        recent_removals: RecentRemovals,
        delayed_changes: DelayedChanges,
        coherence: Coherence,
        removal_delay_seconds: float,
    ) -> None:
        self._filesystem = filesystem
        self._overlay = overlay
        self._known_versions = overlay.open_files.known_versions
        self._key_writer = key_writer
        self._empty_directories = empty_directories
        self._placement = placement
        self._retention = retention
        self._recent_removals = recent_removals
        self._delayed_changes = delayed_changes
        self._coherence = coherence
        self._removal_delay_seconds = removal_delay_seconds  # --park-seconds

    def rename(self, old: bytes, new: bytes, *, replace: bool, caller: int) -> None:
        """Rename a file or a directory.

        `caller`: the thread that does so. Raises ExistsError unless `replace`, and what `KeyWriter.rename` raises.
        """
        try:
            targets = self._placement.candidate_targets(self._filesystem.grammar.parse_new(new))
        except RedisFuseError:
            targets = []  # not a name for a key or field, but perhaps one for junk
        with self._overlay.pending_removals.claim(targets):
            self._rename_claimed(old, new, replace=replace, caller=caller)

    def _rename_claimed(self, old: bytes, new: bytes, *, replace: bool, caller: int) -> None:
        source = self._filesystem.resolver.resolve(old)
        try:
            existing: TreeNode | None = self._filesystem.resolver.resolve(new)
        except NotFoundError:
            existing = None
        if existing is not None and not replace:
            raise ExistsError("file exists")
        if isinstance(source, DirectoryNode):
            reject_junk_name(self._placement.decide_junk(new, is_directory=True))
            self._rename_directory(source, old, new, existing)
            return
        if isinstance(existing, DirectoryNode):
            raise IsDirectoryError("a directory has that name")
        if isinstance(source, MemoryNode):
            self._rename_from_memory(source, old, new, caller)
            return
        if not isinstance(source, KeyNode | OpenFileNode):
            raise CrossDeviceError("this can't be renamed")
        decision = self._placement.decide_junk(new)
        is_editable = is_editable_node(source)
        if is_editable and (decision.is_junk or self._placement.is_second_backup(old, new)):
            self._rename_to_memory(source, old, new, caller)
        else:
            reject_junk_name(decision)
            self._rename_file(source, old, new, existing, caller)

    # -- junk --------------------------------------------------------------------------------------------------------

    def _rename_from_memory(self, source: MemoryNode, old: bytes, new: bytes, caller: int) -> None:
        memory_fs = self._overlay.memory_fs
        if self._placement.decide_junk(new, is_directory=source.is_directory).is_junk:
            memory_fs.rename(old, new)
            self._overlay.pending_removals.follow_copy(old, new)
            return
        if source.is_directory:
            raise CrossDeviceError("junk is not in Redis: a directory of it can only be copied there")
        origin = memory_fs.get_origin(old)
        destination = self._resolve_destination(new, caller, origin=origin.target)
        target = destination.target
        with memory_fs.open_copy(old) as file:
            content = Blob.from_file(file)
            removal = self._overlay.pending_removals.get(target)
            was_moved_back = (
                removal is not None and removal.copy_path == old and removal.precondition.requires_exactly(content)
            )
            if not was_moved_back:
                mtime_ns = memory_fs.stat(old).mtime_ns
                expiry = origin.expiry or destination.removed_expiry
                with self._replacement(target):
                    content = self._key_writer.save(
                        target,
                        content,
                        precondition=destination.precondition,
                        path=new,
                        op="write",
                        expiry=expiry,
                        is_rewritten=True,
                    )
                self._coherence.file_saved(target, mtime_ns)
            self._known_versions.record_change(target, [caller], Precondition.of_blob(content))
        self._overlay.pending_removals.cancel(target)
        memory_fs.unlink_and_seal(old)

    def _rename_to_memory(self, source: KeyNode | OpenFileNode, old: bytes, new: bytes, caller: int) -> None:
        """Rename a file to a junk name, and delay its removal.

        That is the first half of an editor's save.
        """
        target = require_target(source)
        files, memory_fs = self._overlay.open_files, self._overlay.memory_fs
        file = files.get(target)
        if file is not None:
            with file.lock:
                if file.is_new:
                    memory_fs.write_file(new, file.to_blob().iter_chunks())
                    memory_fs.set_origin(new, Origin(target, file.expiry))
                    if file.pending_removal is not None:
                        self._overlay.pending_removals.schedule(
                            target, old, file.pending_removal.precondition, self._removal_delay_seconds, new
                        )
                    files.detach(file, file.copy_for_handles())
                    return
                with _busy_after_conflict():
                    file.commit()
        self._key_writer.check_allowed(target.key)
        content, precondition = files.content_loader.open_with_precondition(target)
        memory_fs.write_file(new, iter_content_chunks(content))
        memory_fs.set_mtime(new, self._filesystem.get_mtime_ns(target))
        memory_fs.set_origin(new, Origin(target))
        if file is not None:
            with file.lock:
                files.detach(file, file.copy_for_handles())
        known = self._known_versions.find([target], caller)
        self._overlay.pending_removals.schedule(
            target,
            old,
            precondition,
            self._removal_delay_seconds,
            new,
            save_precondition=None if known is None or known[1].kind == "absent" else known[1],
        )
        self._known_versions.record_change(target, [caller], Precondition.absent())

    # -- files -------------------------------------------------------------------------------------------------------

    def _resolve_destination(
        self,
        path: bytes,
        caller: int,
        *,
        require_key: bool = False,
        origin: KeyRef | None = None,
        created_version: int | None = None,
    ) -> _Destination:
        """Return the key or field that a rename writes, and the state that it must have.

        A rename over a key is a save: the precondition is what the caller's process last read there. If it never did,
        the key must be as it was when the temporary file was created (`created_version`; None: it is not a temporary
        file). `origin`: the key or field that the file was.
        """
        targets = self._placement.candidate_targets(self._filesystem.grammar.parse_new(path))
        known, removed = self._known_versions.find(targets, caller), self._recent_removals.take(targets, caller)
        if known is not None:
            origin = known[0]
        elif removed is not None:
            origin = removed.target
        target, precondition = self._placement.resolve_destination(path, require_key=require_key, origin=origin)
        if target not in self._overlay.pending_removals:
            if known is not None and known[0] == target:
                precondition = known[1]
            elif created_version is not None and target.field is None:  # of a field, changes are not announced
                is_unchanged = UnchangedByOthers(self._filesystem.keyspace, target.key, created_version, is_exact=False)
                precondition = replace(precondition, is_unchanged=is_unchanged)
        return _Destination(target, precondition, None if removed is None else removed.expiry)

    def _rename_file(
        self, source: KeyNode | OpenFileNode, old: bytes, new: bytes, existing: TreeNode | None, caller: int
    ) -> None:
        if isinstance(source, KeyNode) and source.view is not None:
            raise AccessError("a view of a key can't be renamed")
        target = require_target(source)
        is_new = isinstance(source, OpenFileNode) and source.file.is_new
        destination = self._resolve_destination(
            new,
            caller,
            require_key=not is_editable_node(source),
            created_version=source.file.created_version if isinstance(source, OpenFileNode) and is_new else None,
        )
        new_target = destination.target
        if new_target == target:
            return
        if isinstance(existing, MemoryNode):
            self._overlay.memory_fs.unlink(new)
        files = self._overlay.open_files
        if isinstance(source, KeyNode):
            mtime_ns = self._filesystem.get_mtime_ns(target)  # not stat, which would measure a collection
        else:
            mtime_ns = self._filesystem.stat(source).mtime_ns
        with self._replacement(new_target):
            file = files.get(target)
            if file is None:
                self._rename_key(target, destination, old, new, caller)
            else:
                with file.lock:
                    if file.is_new:
                        saved = file.commit_as(new_target, new, destination.precondition, destination.removed_expiry)
                        self._known_versions.record_change(new_target, [caller], saved)
                    else:
                        file.commit()
                        self._rename_key(target, destination, old, new, caller)
                    files.retarget(file, target, new_target, new)
                files.remove_if_idle(file)
        self._coherence.file_saved(new_target, mtime_ns)
        self._overlay.pending_removals.cancel(new_target)
        self._retention.keep_parent_of(target)

    def _rename_key(self, target: KeyRef, destination: _Destination, old: bytes, new: bytes, caller: int) -> None:
        renamed = self._key_writer.rename_over(
            target,
            destination.target,
            path=old,
            new_path=new,
            precondition=destination.precondition,
            removed_expiry=destination.removed_expiry,
        )
        if is_backup_name(old, new):
            self._recent_removals.add(target, renamed.source, caller)
        self._known_versions.record_change(target, [caller], Precondition.absent())
        written = renamed.destination
        content = written.content if written.kind == "value" else None
        saved = None if content is None else Precondition.of_blob(content)
        self._known_versions.record_change(destination.target, [caller], saved)

    @contextlib.contextmanager
    def _replacement(self, target: KeyRef) -> Iterator[None]:
        """Detach the open file of a target that the body replaces.

        Its handles keep its bytes. If the body raises, the file is attached again. After a conflict a key with a
        pending removal reappears, and BusyError is raised.
        """
        files = self._overlay.open_files
        file = files.get(target)
        if file is not None:
            with file.lock:
                state = file.attachment_state
                files.detach(file, file.copy_for_handles())
        try:
            with _busy_after_conflict():
                yield
        except BaseException as error:
            reappears = isinstance(error, BusyError) and self._overlay.pending_removals.cancel(target) is not None
            if file is not None:
                files.reattach(file, state)
            if reappears or file is not None:
                self._coherence.keys_changed([target.key])
            raise

    # -- directories -------------------------------------------------------------------------------------------------

    def _rename_directory(self, source: DirectoryNode, old: bytes, new: bytes, existing: TreeNode | None) -> None:
        grammar, index = self._filesystem.grammar, self._filesystem.keyspace.index
        candidates = grammar.parse_new(new)
        if candidates.as_directory is None:
            raise grammar.invalid_name_error(new)
        destination = (*candidates.directory, candidates.as_directory)
        self._filesystem.resolver.check_within_prefix(destination)
        if existing is not None:
            if not isinstance(existing, DirectoryNode):
                raise NotDirectoryError("a file has that name")
            if (
                index.is_directory(destination)
                or self._empty_directories.children(destination)
                or self._overlay.readdir(new)
            ):
                raise NotEmptyError("the directory of that name is not empty")
        self._filesystem.resolver.wait_for_index()
        old_prefix, new_prefix = grammar.key_prefix(source.directory), grammar.key_prefix(destination)
        self._delayed_changes.commit_expired(None, old_prefix)
        for file in self._overlay.open_files.iter_files():
            if file.target is not None and file.target.key.startswith(old_prefix):
                with _busy_after_conflict():
                    file.commit()
        keys = list(index.iter_keys_below(source.directory)) if index.is_directory(source.directory) else []
        keys += [key for key in index.iter_long_keys() if key.startswith(old_prefix)]
        moves = [(KeyRef(key), KeyRef(new_prefix + key[len(old_prefix) :])) for key in keys]
        above = grammar.directory_path(source.directory)
        paths = ((source, grammar.key_path(source.key)) for source, _ in moves)
        subpaths = {source: path[len(above) :] for source, path in paths if path.startswith(above + b"/")}
        change_ids = self._key_writer.rename(moves, path=old, new_path=new, subpaths=subpaths) if moves else []
        self._retarget_below(dict(moves), old_prefix, new_prefix, old, new)
        for prefix in (old_prefix, new_prefix):
            self._known_versions.forget_below(prefix)
        empty_moves = self._empty_directories.plan_rename(source.directory, destination, include_self=not moves)
        if empty_moves:
            group_id = change_ids[0] if change_ids else None
            self._key_writer.rename_directories(empty_moves, path=old, new_path=new, group_id=group_id)
            self._empty_directories.load()
        self._retention.keep(source.directory[:-1])
        self._overlay.memory_fs.rename_below(old, new)

    def _retarget_below(
        self, moves: dict[KeyRef, KeyRef], old_prefix: bytes, new_prefix: bytes, old_path: bytes, new_path: bytes
    ) -> None:
        """Let the open files below a renamed directory follow it."""
        for file in self._overlay.open_files.iter_files():
            with file.lock:
                target = file.target
                if target is not None and KeyRef(target.key) in moves:
                    new_target = KeyRef(new_prefix + target.key[len(old_prefix) :], target.field)
                    self._overlay.open_files.retarget(file, target, new_target, new_path + file.path[len(old_path) :])


@contextlib.contextmanager
def _busy_after_conflict() -> Iterator[None]:
    """Raise BusyError for a conflict: after ESTALE the kernel would retry the rename."""
    try:
        yield
    except ConflictError as error:
        raise BusyError(str(error)) from error

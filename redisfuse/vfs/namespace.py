"""How a write mount's tree is changed: making, removing and renaming files and directories.

Everything that reaches Redis goes through `edits`; what is junk stays in scratch (DESIGN.md 7). A read-only mount has
no object of this class. Every method may be called from any thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from redisfuse.batching import CHUNK_BYTES
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
from redisfuse.journal.models import Blob
from redisfuse.paths.encoding import CONTINUATION
from redisfuse.paths.grammar import KeyRef, PathCandidates
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import CreateContext, JunkDecision, JunkKind, JunkRules
from redisfuse.vfs.nodes import DirectoryNode, KeyNode, MemoryNode, OpenFileNode, SegmentNode, TreeNode
from redisfuse.vfs.open_files import OpenFile
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.staged_replace import PendingRemoval

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence

log = logging.getLogger(__name__)

_DISPLACED_TTL_SECONDS = 60.0  # seconds after which what gave way was unlinked, and not renamed over
UNLINK_DELAY_SECONDS = 0.2  # how long an unlink of an open file waits: a rename over it may be what is really meant


class _DisplacedFile(NamedTuple):
    """An open file that gave way to what is about to be renamed over it, or was unlinked: that is not known yet."""

    restore: Callable[[], None]
    is_editable: bool
    displaced_at: float  # time.monotonic()


class NamespaceOperations:
    """Makes, removes and renames."""

    def __init__(
        self,
        tree: Filesystem,
        overlay: Overlay,
        key_writer: KeyWriter,
        junk_rules: JunkRules,
        empty_directories: EmptyDirectories,
        *,
        strings_only: bool,
        removal_delay_seconds: float,
        coherence: Coherence,
    ) -> None:
        self._tree = tree
        self._overlay = overlay
        self._key_writer = key_writer
        self._junk_rules = junk_rules
        self._empty_directories = empty_directories
        self._strings_only = strings_only  # --new-files string
        self._removal_delay_seconds = removal_delay_seconds
        self._displaced_files: dict[KeyRef, _DisplacedFile] = {}  # what gave way to what is being renamed over it
        self._coherence = coherence

    # -- making ------------------------------------------------------------------------------------------------------

    def create(self, path: bytes, *, exclusive: bool, mode: int) -> OpenFile | bytes:
        """Make a new file: an open file (count a handle on it), or the path of one in scratch.

        Raises ExistsError, BadNameError, NameTooLongError, AccessError (--allow), NoSpaceError (scratch).
        """
        verdict = self._decide_junk(path, exclusive=exclusive, mode=mode)
        if verdict.is_junk:
            self._overlay.memory_fs.create(path, mode, exclusive=exclusive)
            return path
        reading = self._tree.grammar.parse_new(path)
        with self._overlay.pending_removals.claim(self._candidate_targets(reading)):
            existing = self._tree.resolver.resolve_file(reading)
            if existing is not None:
                if exclusive:
                    raise ExistsError("it exists already")
                target = _require_target(existing)
                return self._overlay.open_files.open_handle(target, path, is_writer=True)
            target = self.choose_new_target(reading)
            self._key_writer.check_allowed(target.key)
            file = self._overlay.open_files.open_handle(target, path, is_writer=True)
            parked = self._overlay.pending_removals.get(target)
            basis = Precondition.absent() if parked is None else parked.precondition
            file.begin_create(basis, hold=verdict.is_held and parked is None, pending_removal=parked)
            self._overlay.pending_removals.cancel(target)  # not before: else its old content would show for a moment
        return file

    def _candidate_targets(self, candidates: PathCandidates) -> list[KeyRef]:
        return [target for target in self._tree.resolver.candidate_targets(candidates) if target is not None]

    def choose_new_target(self, candidates: PathCandidates, *, require_key: bool = False) -> KeyRef:
        """What a new file of this name becomes (NAMES.md); `whole`: it must be a key, since no field can hold it."""
        for parked in self._candidate_targets(candidates):
            if parked in self._overlay.pending_removals:
                return parked  # it is what was saved there before: an editor is at work
        field, key = self._tree.resolver.candidate_targets(candidates)
        if field is None or key is None:
            target = key if field is None else field
            if target is None:
                raise AccessError("that is outside of the part that is mounted (--prefix)")
            return target
        if require_key or self._strings_only or candidates.name.endswith(b".lock"):
            return key
        owner = KeyRef(field.key)
        if self._overlay.find_open_node(owner) is not None:
            return key
        return field if self._tree.metadata.get_with_content(field.key).type in (b"none", b"hash") else key

    def mkdir(self, path: bytes, mode: int) -> None:
        """mkdir. Raises ExistsError, BadNameError."""
        if self._decide_junk(path, is_directory=True).is_junk:
            self._overlay.memory_fs.mkdir(path, mode)
            return
        reading = self._tree.grammar.parse_new(path)
        if reading.as_directory is None:
            raise self._tree.grammar.invalid_name_error(path)
        try:
            self._tree.resolver.resolve(path)
        except NotFoundError:
            directory = (*reading.directory, reading.as_directory)
            self._tree.resolver.check_within_prefix(directory)
            self._key_writer.make_directory(directory, path=path)
            self._empty_directories.load()
        else:
            raise ExistsError("it exists already")

    # -- removing ----------------------------------------------------------------------------------------------------

    def unlink(self, path: bytes) -> None:
        """Remove a file: any key of any type, a field, junk. Raises what `edits.remove` raises."""
        if self._overlay.open_files.remove_hidden(path):
            return
        node = self._tree.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            self._overlay.memory_fs.unlink(path)
            self._record_if_empty_path(path.rpartition(b"/")[0])
            return
        target = _require_target(node)
        file = self._overlay.open_files.get(target)
        if file is not None:
            with file.lock:
                if file.is_new:
                    if file.pending_removal is not None:
                        self._key_writer.remove([target], path=path, precondition=file.pending_removal.precondition)
                    self._overlay.open_files.detach(file)
                else:
                    self._overlay.open_files.detach(file, lambda: self._key_writer.remove([target], path=path))
        else:
            self._key_writer.remove([target], path=path)
        self._record_if_empty_parent(target)
        self._record_dangling_segments(path)

    def unlink_open(self, path: bytes, hidden_path: bytes, *, is_removal: bool) -> None:
        """A file that is open is removed (`for_good`: surely), or about to be replaced: its bytes stay for its handles.

        Where that is not known it shows in the next moment; until then it is parked (`vfs/staged_replace.py`).
        """
        node = self._tree.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            self._overlay.memory_fs.hide(path, hidden_path)
            return
        target = _require_target(node)
        file = self._overlay.open_files.get_or_unregistered(target, path)
        files, parking = self._overlay.open_files, self._overlay.pending_removals
        with file.lock:
            editable = _is_editable(node) if isinstance(node, KeyNode | OpenFileNode) else True
            parked, now = file.pending_removal, time.monotonic()
            for each in [
                each
                for each, displaced in list(self._displaced_files.items())
                if now - displaced.displaced_at > _DISPLACED_TTL_SECONDS
            ]:
                self._displaced_files.pop(each, None)
            if file.is_new:
                if is_removal:
                    if parked is not None:
                        self._key_writer.remove([target], path=path, precondition=parked.precondition)
                    files.detach(file)
                else:
                    self._displaced_files[target] = _DisplacedFile(files.detach_reversibly(file), editable, now)
                    if parked is not None:
                        parking.schedule(target, path, parked.precondition, UNLINK_DELAY_SECONDS, None)
            elif not editable:  # who reads it has a snapshot
                self._key_writer.check_allowed(target.key)
                if is_removal:
                    self._key_writer.remove([target], path=path)
                else:
                    self._displaced_files[target] = _DisplacedFile(lambda: None, editable, now)
                    parking.schedule(target, path, Precondition.unconditional(), UNLINK_DELAY_SECONDS, None)
            else:
                self._key_writer.check_allowed(target.key)
                _snapshot, basis = files.content_loader.open_with_precondition(target)
                if is_removal:
                    files.detach(file, lambda: self._key_writer.remove([target], path=path, precondition=basis))
                else:
                    self._displaced_files[target] = _DisplacedFile(files.detach_reversibly(file), editable, now)
                    parking.schedule(target, path, basis, UNLINK_DELAY_SECONDS, None)
            files.hide(file, hidden_path)
        self._record_if_empty_parent(target)
        self._record_dangling_segments(path)

    def rmdir(self, path: bytes) -> None:
        """rmdir. Raises NotEmptyError, NotDirectoryError."""
        node = self._tree.resolver.resolve(path)
        if isinstance(node, MemoryNode):
            self._overlay.memory_fs.rmdir(path)
            return
        if isinstance(node, SegmentNode):
            if any(True for _ in self._tree.readdir(path, node)):
                raise NotEmptyError("the directory is not empty")
            self._overlay.dangling_segments.discard(path)
            return
        if not isinstance(node, DirectoryNode):
            raise NotDirectoryError("not a directory that can be removed")
        if not node.directory:
            raise AccessError("the root stays")
        self._tree.resolver.wait_for_index()
        self.commit_expired(None, self._tree.grammar.key_prefix(node.directory))
        index = self._tree.keyspace.index
        if (
            index.is_directory(node.directory)
            or self._overlay.readdir(path)
            or self._empty_directories.children(node.directory)
        ):
            raise NotEmptyError("the directory is not empty")
        self._key_writer.remove_directory(node.directory, path=path)
        self._empty_directories.load()
        self._record_if_empty(node.directory[:-1])

    def _record_if_empty_path(self, path: bytes) -> None:
        if path and not self._overlay.memory_fs.is_directory(path):
            meaning = self._tree.grammar.parse(path)
            if isinstance(meaning, PathCandidates) and meaning.as_directory is not None:
                self._record_if_empty((*meaning.directory, meaning.as_directory))

    def _record_if_empty_parent(self, target: KeyRef) -> None:
        """A directory stays when its last file goes, until rmdir."""
        self._record_if_empty(self._tree.grammar.split_key(target.key)[:-1])

    def _record_dangling_segments(self, path: bytes) -> None:
        """So do those that its name is cut into."""
        while (path := path.rpartition(b"/")[0]).endswith(CONTINUATION):
            self._overlay.dangling_segments.add(path)

    def _record_if_empty(self, directory: tuple[bytes, ...]) -> None:
        if directory and not self._tree.keyspace.index.is_directory(directory):
            self._empty_directories.add(directory)

    # -- renaming ----------------------------------------------------------------------------------------------------

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """Rename a file or a directory. Raises ExistsError unless `replace`, and what `edits.rename` raises."""
        try:
            targets = self._candidate_targets(self._tree.grammar.parse_new(new))
        except RedisFuseError:
            targets = []  # a name for junk, if for anything
        with self._overlay.pending_removals.claim(targets):
            try:
                self._rename_claimed(old, new, replace=replace)
            except BaseException:
                self._restore_displaced(targets)
                raise
            for target in targets:
                self._displaced_files.pop(target, None)

    def _restore_displaced(self, targets: list[KeyRef]) -> None:
        """Nothing came over the open file that gave way for it: it is there as before."""
        for target in targets:
            displaced, parked = self._displaced_files.pop(target, None), self._overlay.pending_removals.get(target)
            if displaced is None or (parked is not None and parked.copy_path is not None):
                continue
            self._overlay.pending_removals.cancel(target)
            displaced.restore()
            self._coherence.keys_reappeared([target.key])

    def _rename_claimed(self, old: bytes, new: bytes, *, replace: bool) -> None:
        source = self._tree.resolver.resolve(old)
        try:
            existing: TreeNode | None = self._tree.resolver.resolve(new)
        except NotFoundError:
            existing = None
        if existing is not None and not replace:
            raise ExistsError("it exists already")
        if isinstance(source, DirectoryNode):
            self._reject_junk_name(self._decide_junk(new, is_directory=True))
            self._rename_directory(source, old, new, existing)
            return
        if isinstance(existing, DirectoryNode):
            raise IsDirectoryError("a directory has that name")
        if isinstance(source, MemoryNode):
            self._rename_from_memory(source, old, new)
            return
        if not isinstance(source, KeyNode | OpenFileNode):
            raise CrossDeviceError("this can't be renamed")
        verdict = self._decide_junk(new)
        if _is_editable(source) and any(not each.is_editable for each in self._displaced_files_at(new)):
            raise AccessError("only strings and hash fields can be replaced by a file; remove it first")
        if verdict.is_junk and _is_editable(source):
            self._rename_to_memory(source, old, new)
        else:
            self._reject_junk_name(verdict)
            self._rename_file(source, old, new, existing)

    def _displaced_files_at(self, path: bytes) -> list[_DisplacedFile]:
        if not self._displaced_files:
            return []
        found = map(self._displaced_files.get, self._candidate_targets(self._tree.grammar.parse_new(path)))
        return [each for each in found if each is not None]

    def _reject_junk_name(self, decision: JunkDecision) -> None:
        """What scratch can't hold as it is (many keys, a list) does not get a name there: mv(1) then copies it.

        A name that is junk only beside what it belongs to is as good as any.
        """
        if decision.is_junk and (decision.rule is None or decision.rule.kind is not JunkKind.COMPANION):
            raise CrossDeviceError("that is a place for junk, outside of Redis: it can only be copied there")

    def _rename_from_memory(self, source: MemoryNode, old: bytes, new: bytes) -> None:
        scratch = self._overlay.memory_fs
        if self._decide_junk(new, is_directory=source.is_directory).is_junk:
            scratch.rename(old, new)
            return
        if source.is_directory:
            raise CrossDeviceError("junk is outside of Redis: a directory of it can only be copied there")
        target, basis = self._resolve_destination(new)
        with scratch.open_copy(old) as file:
            content = Blob.from_file(file)
            parked = self._overlay.pending_removals.get(target)
            if (
                parked is None or parked.copy_path != old or not parked.precondition.requires_exactly(content)
            ):  # else only away and back
                modified = scratch.stat(old).mtime_ns
                self._key_writer.save(target, content, precondition=basis, path=new, op="write")
                self._tree.keyspace.record_save(target, modified)
        self._overlay.pending_removals.cancel(target)
        scratch.unlink_and_seal(old)

    def _resolve_destination(self, new: bytes, *, require_key: bool = False) -> tuple[KeyRef, Precondition]:
        """What a rename to `new` writes to, and what is expected there."""
        reading = self._tree.grammar.parse_new(new)
        node = self._tree.resolver.resolve_file(reading)
        target = self.choose_new_target(reading, require_key=require_key) if node is None else _require_target(node)
        if node is not None and isinstance(node, KeyNode) and require_key and target.field is not None:
            raise AccessError("a hash field can't hold a key of this type")
        if isinstance(node, KeyNode) and not require_key and not node.is_editable:
            raise AccessError("only strings and hash fields can be replaced by a file; remove it first")
        parked = self._overlay.pending_removals.get(target)
        if parked is not None:
            return target, parked.precondition
        return target, Precondition.absent() if node is None else Precondition.unconditional()

    def _rename_to_memory(self, source: KeyNode | OpenFileNode, old: bytes, new: bytes) -> None:
        """An editor moves a file to its backup name: that is the first half of a save."""
        target = _require_target(source)
        files = self._overlay.open_files
        file = files.get(target)
        if file is not None:
            with file.lock:
                if file.is_new:
                    self._overlay.memory_fs.write_file(new, file.to_blob().iter_chunks())
                    if file.pending_removal is not None:
                        self._overlay.pending_removals.schedule(
                            target, old, file.pending_removal.precondition, self._removal_delay_seconds, new
                        )
                    files.detach(file)
                    return
                _commit_before_rename(file)
        self._key_writer.check_allowed(target.key)
        snapshot, basis = files.content_loader.open_with_precondition(target)
        chunks = (snapshot.read(at, CHUNK_BYTES) for at in range(0, snapshot.size, CHUNK_BYTES))
        self._overlay.memory_fs.write_file(new, chunks)
        self._overlay.memory_fs.set_mtime(new, self._tree.get_mtime_ns(target))
        if file is not None:
            files.detach(file)
        self._overlay.pending_removals.schedule(target, old, basis, self._removal_delay_seconds, new)

    def _rename_file(self, source: KeyNode | OpenFileNode, old: bytes, new: bytes, existing: TreeNode | None) -> None:
        if isinstance(source, KeyNode) and source.view is not None:
            raise AccessError("a view of a key can't be renamed")
        target = _require_target(source)
        editable = _is_editable(source)
        destination, basis = self._resolve_destination(new, require_key=not editable)
        if destination == target:
            return
        if isinstance(existing, MemoryNode):
            self._overlay.memory_fs.unlink(new)
        files = self._overlay.open_files
        modified = self._tree.get_mtime_ns(target) if isinstance(source, KeyNode) else self._tree.stat(source).mtime_ns
        replaced = files.get(destination)
        if replaced is not None:
            files.detach(replaced)
        file = files.get(target)
        if file is None:
            self._key_writer.rename([(target, destination)], path=old, new_path=new)
        else:
            with file.lock:
                if file.is_new:
                    file.commit_as(destination, new, basis)
                else:
                    _commit_before_rename(file)
                    self._key_writer.rename([(target, destination)], path=old, new_path=new)
                files.retarget(file, target, destination, new)
            files.remove_if_idle(file)
        self._tree.keyspace.record_save(destination, modified)
        self._overlay.pending_removals.cancel(destination)
        self._record_if_empty_parent(target)

    def _rename_directory(self, source: DirectoryNode, old: bytes, new: bytes, existing: TreeNode | None) -> None:
        grammar, index = self._tree.grammar, self._tree.keyspace.index
        reading = grammar.parse_new(new)
        if reading.as_directory is None:
            raise grammar.invalid_name_error(new)
        directory = (*reading.directory, reading.as_directory)
        self._tree.resolver.check_within_prefix(directory)
        if existing is not None:
            if not isinstance(existing, DirectoryNode):
                raise NotDirectoryError("a file has that name")
            if (
                index.is_directory(directory)
                or self._empty_directories.children(directory)
                or self._overlay.readdir(new)
            ):
                raise NotEmptyError("the directory of that name is not empty")
        self._tree.resolver.wait_for_index()
        self.commit_expired(None, grammar.key_prefix(source.directory))
        before, after = grammar.key_prefix(source.directory), grammar.key_prefix(directory)
        for file in self._overlay.open_files.iter_files():
            if file.target is not None and file.target.key.startswith(before):
                _commit_before_rename(file)
        keys = list(index.iter_keys_below(source.directory)) if index.is_directory(source.directory) else []
        keys += [key for key in index.iter_long_keys() if key.startswith(before)]
        moves = [(KeyRef(key), KeyRef(after + key[len(before) :])) for key in keys]
        renamed = self._key_writer.rename(moves, path=old, new_path=new) if moves else []
        self._retarget_below(dict(moves), before, after, old, new)
        made = self._empty_directories.plan_rename(source.directory, directory, include_self=not moves)
        if made:
            self._key_writer.rename_directories(made, path=old, new_path=new, group_id=renamed[0] if renamed else None)
            self._empty_directories.load()
        self._record_if_empty(source.directory[:-1])
        self._overlay.open_files.rename_hidden_below(old, new)
        self._overlay.memory_fs.rename_below(old, new)

    def _retarget_below(
        self, renames: dict[KeyRef, KeyRef], old_prefix: bytes, new_prefix: bytes, old_path: bytes, new_path: bytes
    ) -> None:
        """Open files below a renamed directory go with it."""
        for file in self._overlay.open_files.iter_files():
            with file.lock:
                target = file.target
                if target is not None and KeyRef(target.key) in renames:
                    moved = KeyRef(new_prefix + target.key[len(old_prefix) :], target.field)
                    self._overlay.open_files.retarget(file, target, moved, new_path + file.path[len(old_path) :])

    # -- what waits for its time -------------------------------------------------------------------------------------

    def commit_expired(self, now: float | None, key_prefix: bytes = b"") -> None:
        """Make changes of the parked removals and held files whose time has come (`now` by the clock; None: of all)
        and whose keys begin with `prefix`."""
        stays: list[bytes] = []
        with self._overlay.pending_removals.take_expired(now, key_prefix) as due:
            for parked in due:
                self._displaced_files.pop(parked.target, None)
                if not self._commit_removal(parked):
                    stays.append(parked.target.key)
        if stays:
            self._coherence.keys_reappeared(stays)
        self._overlay.open_files.commit_expired_holds(now, key_prefix)

    def _commit_removal(self, removal: PendingRemoval) -> bool:
        """Whether it is gone."""
        shown = os.fsdecode(removal.path)
        try:
            self._key_writer.remove([removal.target], path=removal.path, precondition=removal.precondition)
        except NotFoundError:
            log.debug("%s was to be removed, and is gone", shown)
        except ConflictError as error:
            log.warning("%s was renamed or unlinked here but changed in Redis meanwhile, so it stays: %s", shown, error)
            return False
        except RedisFuseError as error:
            log.error("%s was to be removed and is still in Redis: %s", shown, error)
            return False
        else:
            self._record_if_empty_parent(removal.target)
            if removal.copy_path is not None:
                log.warning(
                    "%s was renamed to %s, which is kept out of Redis: the key is removed, its content is in this "
                    "mount's scratch area until it is unmounted, and in the journal (redisfuse log, rollback)",
                    shown,
                    os.fsdecode(removal.copy_path),
                )
        return True

    # -- small ones --------------------------------------------------------------------------------------------------

    def set_expiry(self, path: bytes, ttl_ms: int) -> None:
        """Set the expiry of a key or field to so many milliseconds from now; -1: none."""
        node = self._tree.resolver.resolve(path)
        if not isinstance(node, KeyNode | OpenFileNode):
            raise AccessError("only keys and fields expire")
        at = None if ttl_ms < 0 else time.time_ns() // 1_000_000 + ttl_ms
        self._key_writer.expire(_require_target(node), at, path=path)

    def truncate(self, path: bytes, size: int) -> None:
        """truncate(2) by path: a change of its own, unless some handle is open for writing (its close commits)."""
        node = self._tree.resolver.resolve(path)
        if isinstance(node, OpenFileNode) and (node.file.target is None or node.file.writer_count):
            node.file.truncate(size)
            return
        if isinstance(node, KeyNode) and not node.is_editable:
            raise AccessError("only strings and hash fields can be edited")
        target = _require_target(node)
        files = self._overlay.open_files
        file = files.open_handle(target, path, is_writer=True)
        try:
            file.truncate(size)
            file.fsync()
        finally:
            files.close_handle(file, is_writer=True)

    def _decide_junk(
        self, path: bytes, *, exclusive: bool = False, mode: int = 0o644, is_directory: bool = False
    ) -> JunkDecision:
        """Whether something made at `path` is junk, or held back, by its name and by how it is made."""
        parent, _, name = path.rpartition(b"/")
        in_scratch = bool(parent) and self._overlay.memory_fs.is_directory(parent)
        facts = CreateContext(exclusive, mode, is_directory, _DataNames(self, parent), in_scratch)
        return self._junk_rules.decide(parent, name, facts)

    def _is_data(self, parent: bytes, name: bytes) -> bool:
        """Whether `name` beside a candidate is a key, a field or a directory, or a new file that will be in Redis."""
        try:
            meaning = self._tree.grammar.parse(parent + b"/" + name if parent else name)
        except NotFoundError:
            return False
        if not isinstance(meaning, PathCandidates):
            return False
        if any(target in self._overlay.pending_removals for target in self._candidate_targets(meaning)):
            return True
        return (
            self._tree.resolver.resolves_to_directory(meaning) or self._tree.resolver.resolve_file(meaning) is not None
        )


class _DataNames:
    """The names in one directory that are keys, fields, directories, or new files that will be in Redis."""

    def __init__(self, namespace: NamespaceOperations, parent: bytes) -> None:
        self._namespace = namespace
        self._parent = parent

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self._namespace._is_data(self._parent, name)


def _commit_before_rename(file: OpenFile) -> None:
    """Commit an edit before its file is moved. A conflict is BusyError: after ESTALE the kernel would try once more."""
    try:
        file.commit()
    except ConflictError as error:
        raise BusyError(str(error)) from error


def _is_editable(node: KeyNode | OpenFileNode) -> bool:
    return isinstance(node, OpenFileNode) or node.is_editable


def _require_target(node: TreeNode) -> KeyRef:
    """The datum a file node stands for. Raises AccessError for what is none."""
    if isinstance(node, KeyNode) and node.view is None:
        return node.target
    if isinstance(node, OpenFileNode) and node.file.target is not None:
        return node.file.target
    if isinstance(node, OpenFileNode):
        raise NotFoundError("it was unlinked")
    raise AccessError("this is not a key or a field")

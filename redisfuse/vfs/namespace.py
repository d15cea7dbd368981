"""How a write mount's tree is changed: making, removing and renaming files and directories.

Everything that reaches Redis goes through `edits`; what is junk stays in scratch (DESIGN.md 7). A read-only mount has
no object of this class. Every method may be called from any thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

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
from redisfuse.journal.models import Content
from redisfuse.paths.encoding import CUT
from redisfuse.paths.grammar import Reading, Target
from redisfuse.transactions.key_writer import Edits
from redisfuse.transactions.precondition import Basis
from redisfuse.vfs.empty_dirs import MadeDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import CreateFacts, Junk, Kind, Verdict
from redisfuse.vfs.nodes import DirectoryNode, FileNode, Node, OpenNode, PieceNode, ScratchNode
from redisfuse.vfs.open_files import OpenFile
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.staged_replace import Parked

log = logging.getLogger(__name__)

_STALE = 60.0  # seconds after which what gave way was unlinked, and not renamed over
UNLINK_SECONDS = 0.2  # how long an unlink of an open file waits: a rename over it may be what is really meant


class _Displaced(NamedTuple):
    """An open file that gave way to what is about to be renamed over it, or was unlinked: that is not known yet."""

    restore: Callable[[], None]
    editable: bool
    at: float  # time.monotonic()


class Rearranger:
    """Makes, removes and renames."""

    def __init__(
        self,
        tree: Filesystem,
        overlay: Overlay,
        edits: Edits,
        junk: Junk,
        made: MadeDirectories,
        *,
        strings_only: bool,
        park_seconds: float,
        reappeared: Callable[[Collection[bytes]], None],
    ) -> None:
        self._tree = tree
        self._overlay = overlay
        self._edits = edits
        self._junk = junk
        self._made = made
        self._strings_only = strings_only  # --new-files string
        self._park_seconds = park_seconds
        self._displaced: dict[Target, _Displaced] = {}  # what gave way to what is being renamed over it
        self._reappeared = reappeared  # told of keys that were not in the tree for a while, though in Redis

    # -- making ------------------------------------------------------------------------------------------------------

    def create(self, path: bytes, *, exclusive: bool, mode: int) -> OpenFile | bytes:
        """Make a new file: an open file (count a handle on it), or the path of one in scratch.

        Raises ExistsError, BadNameError, NameTooLongError, AccessError (--allow), NoSpaceError (scratch).
        """
        verdict = self._verdict(path, exclusive=exclusive, mode=mode)
        if verdict.is_junk:
            self._overlay.scratch.create(path, mode, exclusive=exclusive)
            return path
        reading = self._tree.grammar.creatable(path)
        with self._overlay.parking.claimed(self._targets(reading)):
            existing = self._tree.find_file(reading)
            if existing is not None:
                if exclusive:
                    raise ExistsError("it exists already")
                target = _target(existing)
                return self._overlay.files.opened(target, path, writing=True)
            target = self.new_target(reading)
            self._edits.check_allowed(target.key)
            file = self._overlay.files.opened(target, path, writing=True)
            parked = self._overlay.parking.get(target)
            basis = Basis.absent() if parked is None else parked.basis
            file.begin_new(basis, held=verdict.held and parked is None, parked=parked)
            self._overlay.parking.take(target)  # not before: else its old content would show for a moment
        return file

    def _targets(self, reading: Reading) -> list[Target]:
        return [target for target in self._tree.targets(reading) if target is not None]

    def new_target(self, reading: Reading, *, whole: bool = False) -> Target:
        """What a new file of this name becomes (NAMES.md); `whole`: it must be a key, since no field can hold it."""
        for parked in self._targets(reading):
            if parked in self._overlay.parking:
                return parked  # it is what was saved there before: an editor is at work
        field, key = self._tree.targets(reading)
        if field is None or key is None:
            target = key if field is None else field
            if target is None:
                raise AccessError("that is outside of the part that is mounted (--prefix)")
            return target
        if whole or self._strings_only or reading.name.endswith(b".lock"):
            return key
        owner = Target(field.key)
        if self._overlay.open_node(owner) is not None:
            return key
        return field if self._tree.attributes.look(field.key).type in (b"none", b"hash") else key

    def make_directory(self, path: bytes, mode: int) -> None:
        """mkdir. Raises ExistsError, BadNameError."""
        if self._verdict(path, directory=True).is_junk:
            self._overlay.scratch.mkdir(path, mode)
            return
        reading = self._tree.grammar.creatable(path)
        if reading.as_directory is None:
            raise self._tree.grammar.refusal(path)
        try:
            self._tree.find(path)
        except NotFoundError:
            directory = (*reading.directory, reading.as_directory)
            self._tree.check_mounted(directory)
            self._edits.make_directory(directory, path=path)
            self._made.load()
        else:
            raise ExistsError("it exists already")

    # -- removing ----------------------------------------------------------------------------------------------------

    def unlink(self, path: bytes) -> None:
        """Remove a file: any key of any type, a field, junk. Raises what `edits.remove` raises."""
        if self._overlay.files.unhide(path):
            return
        node = self._tree.find(path)
        if isinstance(node, ScratchNode):
            self._overlay.scratch.unlink(path)
            self._keep_folder(path.rpartition(b"/")[0])
            return
        target = _target(node)
        file = self._overlay.files.get(target)
        if file is not None:
            with file.lock:
                if file.new:
                    if file.parked is not None:
                        self._edits.remove([target], path=path, basis=file.parked.basis)
                    self._overlay.files.detach(file)
                else:
                    self._overlay.files.detach(file, lambda: self._edits.remove([target], path=path))
        else:
            self._edits.remove([target], path=path)
        self._keep_parent(target)
        self._keep_pieces(path)

    def unlink_open(self, path: bytes, hidden: bytes, *, for_good: bool) -> None:
        """A file that is open is removed (`for_good`: surely), or about to be replaced: its bytes stay for its handles.

        Where that is not known it shows in the next moment; until then it is parked (`vfs/staged_replace.py`).
        """
        node = self._tree.find(path)
        if isinstance(node, ScratchNode):
            self._overlay.scratch.hide(path, hidden)
            return
        target = _target(node)
        file = self._overlay.files.reopened_or_new(target, path)
        files, parking = self._overlay.files, self._overlay.parking
        with file.lock:
            editable = _is_editable(node) if isinstance(node, FileNode | OpenNode) else True
            parked, now = file.parked, time.monotonic()
            for each in [each for each, displaced in list(self._displaced.items()) if now - displaced.at > _STALE]:
                self._displaced.pop(each, None)
            if file.new:
                if for_good:
                    if parked is not None:
                        self._edits.remove([target], path=path, basis=parked.basis)
                    files.detach(file)
                else:
                    self._displaced[target] = _Displaced(files.displace(file), editable, now)
                    if parked is not None:
                        parking.park(target, path, parked.basis, UNLINK_SECONDS, None)
            elif not editable:  # who reads it has a snapshot
                self._edits.check_allowed(target.key)
                if for_good:
                    self._edits.remove([target], path=path)
                else:
                    self._displaced[target] = _Displaced(lambda: None, editable, now)
                    parking.park(target, path, Basis.anything(), UNLINK_SECONDS, None)
            else:
                self._edits.check_allowed(target.key)
                _snapshot, basis = files.snapshot(target)
                if for_good:
                    files.detach(file, lambda: self._edits.remove([target], path=path, basis=basis))
                else:
                    self._displaced[target] = _Displaced(files.displace(file), editable, now)
                    parking.park(target, path, basis, UNLINK_SECONDS, None)
            files.hide(file, hidden)
        self._keep_parent(target)
        self._keep_pieces(path)

    def remove_directory(self, path: bytes) -> None:
        """rmdir. Raises NotEmptyError, NotDirectoryError."""
        node = self._tree.find(path)
        if isinstance(node, ScratchNode):
            self._overlay.scratch.rmdir(path)
            return
        if isinstance(node, PieceNode):
            if any(True for _ in self._tree.list(path, node)):
                raise NotEmptyError("the directory is not empty")
            self._overlay.pieces.discard(path)
            return
        if not isinstance(node, DirectoryNode):
            raise NotDirectoryError("not a directory that can be removed")
        if not node.directory:
            raise AccessError("the root stays")
        self._tree.wait()
        self.settle(None, self._tree.grammar.prefix(node.directory))
        index = self._tree.keyspace.index
        if index.is_directory(node.directory) or self._overlay.list(path) or self._made.children(node.directory):
            raise NotEmptyError("the directory is not empty")
        self._edits.remove_directory(node.directory, path=path)
        self._made.load()
        self._keep_directory(node.directory[:-1])

    def _keep_folder(self, path: bytes) -> None:
        if path and not self._overlay.scratch.is_directory(path):
            meaning = self._tree.grammar.parse(path)
            if isinstance(meaning, Reading) and meaning.as_directory is not None:
                self._keep_directory((*meaning.directory, meaning.as_directory))

    def _keep_parent(self, target: Target) -> None:
        """A directory stays when its last file goes, until rmdir."""
        self._keep_directory(self._tree.grammar.split(target.key)[:-1])

    def _keep_pieces(self, path: bytes) -> None:
        """So do those that its name is cut into."""
        while (path := path.rpartition(b"/")[0]).endswith(CUT):
            self._overlay.pieces.add(path)

    def _keep_directory(self, directory: tuple[bytes, ...]) -> None:
        if directory and not self._tree.keyspace.index.is_directory(directory):
            self._made.keep(directory)

    # -- renaming ----------------------------------------------------------------------------------------------------

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """Rename a file or a directory. Raises ExistsError unless `replace`, and what `edits.rename` raises."""
        try:
            targets = self._targets(self._tree.grammar.creatable(new))
        except RedisFuseError:
            targets = []  # a name for junk, if for anything
        with self._overlay.parking.claimed(targets):
            try:
                self._rename(old, new, replace=replace)
            except BaseException:
                self._give_back(targets)
                raise
            for target in targets:
                self._displaced.pop(target, None)

    def _give_back(self, targets: list[Target]) -> None:
        """Nothing came over the open file that gave way for it: it is there as before."""
        for target in targets:
            displaced, parked = self._displaced.pop(target, None), self._overlay.parking.get(target)
            if displaced is None or (parked is not None and parked.copy is not None):
                continue
            self._overlay.parking.take(target)
            displaced.restore()
            self._reappeared([target.key])

    def _rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        source = self._tree.find(old)
        try:
            existing: Node | None = self._tree.find(new)
        except NotFoundError:
            existing = None
        if existing is not None and not replace:
            raise ExistsError("it exists already")
        if isinstance(source, DirectoryNode):
            self._check_no_junk(self._verdict(new, directory=True))
            self._rename_directory(source, old, new, existing)
            return
        if isinstance(existing, DirectoryNode):
            raise IsDirectoryError("a directory has that name")
        if isinstance(source, ScratchNode):
            self._rename_scratch(source, old, new)
            return
        if not isinstance(source, FileNode | OpenNode):
            raise CrossDeviceError("this can't be renamed")
        verdict = self._verdict(new)
        if _is_editable(source) and any(not each.editable for each in self._displaced_at(new)):
            raise AccessError("only strings and hash fields can be replaced by a file; remove it first")
        if verdict.is_junk and _is_editable(source):
            self._park(source, old, new)
        else:
            self._check_no_junk(verdict)
            self._rename_file(source, old, new, existing)

    def _displaced_at(self, path: bytes) -> list[_Displaced]:
        if not self._displaced:
            return []
        found = map(self._displaced.get, self._targets(self._tree.grammar.creatable(path)))
        return [each for each in found if each is not None]

    def _check_no_junk(self, verdict: Verdict) -> None:
        """What scratch can't hold as it is (many keys, a list) does not get a name there: mv(1) then copies it.

        A name that is junk only beside what it belongs to is as good as any.
        """
        if verdict.is_junk and (verdict.rule is None or verdict.rule.kind is not Kind.COMPANION):
            raise CrossDeviceError("that is a place for junk, outside of Redis: it can only be copied there")

    def _rename_scratch(self, source: ScratchNode, old: bytes, new: bytes) -> None:
        scratch = self._overlay.scratch
        if self._verdict(new, directory=source.directory).is_junk:
            scratch.rename(old, new)
            return
        if source.directory:
            raise CrossDeviceError("junk is outside of Redis: a directory of it can only be copied there")
        target, basis = self._destination(new)
        with scratch.reading(old) as file:
            content = Content.of_file(file)
            parked = self._overlay.parking.get(target)
            if parked is None or parked.copy != old or not parked.basis.is_content(content):  # else only away and back
                modified = scratch.attributes(old).modified_ns
                self._edits.save(target, content, basis=basis, path=new, op="write")
                self._tree.keyspace.saved(target, modified)
        self._overlay.parking.take(target)
        scratch.hand_over(old)

    def _destination(self, new: bytes, *, whole: bool = False) -> tuple[Target, Basis]:
        """What a rename to `new` writes to, and what is expected there."""
        reading = self._tree.grammar.creatable(new)
        node = self._tree.find_file(reading)
        target = self.new_target(reading, whole=whole) if node is None else _target(node)
        if node is not None and isinstance(node, FileNode) and whole and target.field is not None:
            raise AccessError("a hash field can't hold a key of this type")
        if isinstance(node, FileNode) and not whole and not node.editable:
            raise AccessError("only strings and hash fields can be replaced by a file; remove it first")
        parked = self._overlay.parking.get(target)
        if parked is not None:
            return target, parked.basis
        return target, Basis.absent() if node is None else Basis.anything()

    def _park(self, source: FileNode | OpenNode, old: bytes, new: bytes) -> None:
        """An editor moves a file to its backup name: that is the first half of a save."""
        target = _target(source)
        files = self._overlay.files
        file = files.get(target)
        if file is not None:
            with file.lock:
                if file.new:
                    self._overlay.scratch.store(new, file.content().chunks())
                    if file.parked is not None:
                        self._overlay.parking.park(target, old, file.parked.basis, self._park_seconds, new)
                    files.detach(file)
                    return
                _save(file)
        self._edits.check_allowed(target.key)
        snapshot, basis = files.snapshot(target)
        chunks = (snapshot.read(at, CHUNK_BYTES) for at in range(0, snapshot.size, CHUNK_BYTES))
        self._overlay.scratch.store(new, chunks)
        self._overlay.scratch.set_modified(new, self._tree.age(target))
        if file is not None:
            files.detach(file)
        self._overlay.parking.park(target, old, basis, self._park_seconds, new)

    def _rename_file(self, source: FileNode | OpenNode, old: bytes, new: bytes, existing: Node | None) -> None:
        if isinstance(source, FileNode) and source.view is not None:
            raise AccessError("a view of a key can't be renamed")
        target = _target(source)
        editable = _is_editable(source)
        destination, basis = self._destination(new, whole=not editable)
        if destination == target:
            return
        if isinstance(existing, ScratchNode):
            self._overlay.scratch.unlink(new)
        files = self._overlay.files
        modified = self._tree.age(target) if isinstance(source, FileNode) else self._tree.stat(source).mtime_ns
        replaced = files.get(destination)
        if replaced is not None:
            files.detach(replaced)
        file = files.get(target)
        if file is None:
            self._edits.rename([(target, destination)], path=old, new_path=new)
        else:
            with file.lock:
                if file.new:
                    file.commit_as(destination, new, basis)
                else:
                    _save(file)
                    self._edits.rename([(target, destination)], path=old, new_path=new)
                files.moved(file, target, destination, new)
            files.forget_if_idle(file)
        self._tree.keyspace.saved(destination, modified)
        self._overlay.parking.take(destination)
        self._keep_parent(target)

    def _rename_directory(self, source: DirectoryNode, old: bytes, new: bytes, existing: Node | None) -> None:
        grammar, index = self._tree.grammar, self._tree.keyspace.index
        reading = grammar.creatable(new)
        if reading.as_directory is None:
            raise grammar.refusal(new)
        directory = (*reading.directory, reading.as_directory)
        self._tree.check_mounted(directory)
        if existing is not None:
            if not isinstance(existing, DirectoryNode):
                raise NotDirectoryError("a file has that name")
            if index.is_directory(directory) or self._made.children(directory) or self._overlay.list(new):
                raise NotEmptyError("the directory of that name is not empty")
        self._tree.wait()
        self.settle(None, grammar.prefix(source.directory))
        before, after = grammar.prefix(source.directory), grammar.prefix(directory)
        for file in self._overlay.files.all():
            if file.target is not None and file.target.key.startswith(before):
                _save(file)
        keys = list(index.keys_below(source.directory)) if index.is_directory(source.directory) else []
        keys += [key for key in index.long_keys() if key.startswith(before)]
        moves = [(Target(key), Target(after + key[len(before) :])) for key in keys]
        renamed = self._edits.rename(moves, path=old, new_path=new) if moves else []
        self._follow(dict(moves), before, after, old, new)
        made = self._made.moves(source.directory, directory, itself=not moves)
        if made:
            self._edits.rename_directories(made, path=old, new_path=new, group=renamed[0] if renamed else None)
            self._made.load()
        self._keep_directory(source.directory[:-1])
        self._overlay.files.rename_hidden_below(old, new)
        self._overlay.scratch.rename_below(old, new)

    def _follow(self, moves: dict[Target, Target], before: bytes, after: bytes, old: bytes, new: bytes) -> None:
        """Open files below a renamed directory go with it."""
        for file in self._overlay.files.all():
            with file.lock:
                target = file.target
                if target is not None and Target(target.key) in moves:
                    moved = Target(after + target.key[len(before) :], target.field)
                    self._overlay.files.moved(file, target, moved, new + file.path[len(old) :])

    # -- what waits for its time -------------------------------------------------------------------------------------

    def settle(self, now: float | None, prefix: bytes = b"") -> None:
        """Make changes of the parked removals and held files whose time has come (`now` by the clock; None: of all)
        and whose keys begin with `prefix`."""
        stays: list[bytes] = []
        with self._overlay.parking.due(now, prefix) as due:
            for parked in due:
                self._displaced.pop(parked.target, None)
                if not self._remove_parked(parked):
                    stays.append(parked.target.key)
        if stays:
            self._reappeared(stays)
        self._overlay.files.commit_held(now, prefix)

    def _remove_parked(self, parked: Parked) -> bool:
        """Whether it is gone."""
        shown = os.fsdecode(parked.path)
        try:
            self._edits.remove([parked.target], path=parked.path, basis=parked.basis)
        except NotFoundError:
            log.debug("%s was to be removed, and is gone", shown)
        except ConflictError as error:
            log.warning("%s was renamed or unlinked here but changed in Redis meanwhile, so it stays: %s", shown, error)
            return False
        except RedisFuseError as error:
            log.error("%s was to be removed and is still in Redis: %s", shown, error)
            return False
        else:
            self._keep_parent(parked.target)
            if parked.copy is not None:
                log.warning(
                    "%s was renamed to %s, which is kept out of Redis: the key is removed, its content is in this "
                    "mount's scratch area until it is unmounted, and in the journal (redisfuse log, rollback)",
                    shown,
                    os.fsdecode(parked.copy),
                )
        return True

    # -- small ones --------------------------------------------------------------------------------------------------

    def expire(self, path: bytes, milliseconds: int) -> None:
        """Set the expiry of a key or field to so many milliseconds from now; -1: none."""
        node = self._tree.find(path)
        if not isinstance(node, FileNode | OpenNode):
            raise AccessError("only keys and fields expire")
        at = None if milliseconds < 0 else time.time_ns() // 1_000_000 + milliseconds
        self._edits.expire(_target(node), at, path=path)

    def truncate(self, path: bytes, size: int) -> None:
        """truncate(2) by path: a change of its own, unless some handle is open for writing (its close commits)."""
        node = self._tree.find(path)
        if isinstance(node, OpenNode) and (node.file.target is None or node.file.writers):
            node.file.truncate(size)
            return
        if isinstance(node, FileNode) and not node.editable:
            raise AccessError("only strings and hash fields can be edited")
        target = _target(node)
        files = self._overlay.files
        file = files.opened(target, path, writing=True)
        try:
            file.truncate(size)
            file.fsync()
        finally:
            files.closed(file, writing=True)

    def _verdict(self, path: bytes, *, exclusive: bool = False, mode: int = 0o644, directory: bool = False) -> Verdict:
        """Whether something made at `path` is junk, or held back, by its name and by how it is made."""
        parent, _, name = path.rpartition(b"/")
        in_scratch = bool(parent) and self._overlay.scratch.is_directory(parent)
        facts = CreateFacts(exclusive, mode, directory, lambda other: self._is_data(parent, other), in_scratch)
        return self._junk.verdict(parent, name, facts)

    def _is_data(self, parent: bytes, name: bytes) -> bool:
        """Whether `name` beside a candidate is a key, a field or a directory, or a new file that will be in Redis."""
        try:
            meaning = self._tree.grammar.parse(parent + b"/" + name if parent else name)
        except NotFoundError:
            return False
        if not isinstance(meaning, Reading):
            return False
        if any(target in self._overlay.parking for target in self._targets(meaning)):
            return True
        return self._tree.names_directory(meaning) or self._tree.find_file(meaning) is not None


def _save(file: OpenFile) -> None:
    """Commit an edit before its file is moved. A conflict is BusyError: after ESTALE the kernel would try once more."""
    try:
        file.commit()
    except ConflictError as error:
        raise BusyError(str(error)) from error


def _is_editable(node: FileNode | OpenNode) -> bool:
    return isinstance(node, OpenNode) or node.editable


def _target(node: Node) -> Target:
    """The datum a file node stands for. Raises AccessError for what is none."""
    if isinstance(node, FileNode) and node.view is None:
        return node.target
    if isinstance(node, OpenNode) and node.file.target is not None:
        return node.file.target
    if isinstance(node, OpenNode):
        raise NotFoundError("it was unlinked")
    raise AccessError("this is not a key or a field")

"""What the tree is: which path leads to what, what a directory shows, how large and how old a file is.

Knows neither FUSE nor a Redis command. Reading only; what changes the tree is in `vfs/namespace.py`. Every method may be
called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from redisfuse.errors import (
    AccessError,
    InterruptedWaitError,
    NameTooLongError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    TryAgainError,
)
from redisfuse.keyspace.metadata import ABSENT, UNREADABLE, Attributes, AttributeStore
from redisfuse.keyspace.monitor import Keyspace
from redisfuse.paths.grammar import (
    NAME_MAX,
    Grammar,
    LongEntry,
    LongField,
    LongFields,
    LongRoot,
    Piece,
    Reading,
    Root,
    Target,
    Updater,
    digest,
)
from redisfuse.vfs.content import Reader
from redisfuse.vfs.content_types import Snapshot
from redisfuse.vfs.junk_rules import Junk
from redisfuse.vfs.nodes import (
    DIRECTORY_NODES,
    FIELD_TYPE,
    DirectoryNode,
    FileNode,
    Listed,
    LongFieldsNode,
    LongRootNode,
    Node,
    OpenNode,
    PieceNode,
    ScratchNode,
    UpdaterNode,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir import Lister

log = logging.getLogger(__name__)

BRIEFLY = 0.25  # seconds that a look-up waits for the index before it takes an unknown name for a directory
LONG_FIELD_LIMIT = 1_000_000  # fields of a hash that are looked through for the digest of a long one


class EmptyDirectories(Protocol):
    """Directories that exist though no key is below them (they live in the journal)."""

    def __contains__(self, directory: tuple[bytes, ...], /) -> bool:
        """Whether it, or one below it, was made."""
        ...

    def children(self, directory: tuple[bytes, ...]) -> list[bytes]:
        """Components of the made directories in `directory`, each once."""
        ...


class Stat(NamedTuple):
    """What `stat` is told: size in bytes, mtime in ns since the epoch (UTC)."""

    directory: bool
    size: int
    mtime_ns: int
    editable: bool  # a file that write mode can open for writing
    readable: bool = True  # False: the server's ACL hides what the key holds
    mode: int | None = None  # the permission bits of junk; else they are the mount's
    streamed: bool = False  # its size is not known beforehand: read with direct I/O until the end
    linked: bool = True  # False: it was unlinked while it was open

    @property
    def measured(self) -> bool:
        """Whether its size is what will be read."""
        return self.readable and not self.streamed


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """What of the settings shapes the tree."""

    field_limit: int
    hash_limit: int
    show_junk: bool
    prefix: bytes  # of the keys that are mounted


class Filesystem:
    """The tree of one mounted database."""

    def __init__(
        self,
        *,
        grammar: Grammar,
        keyspace: Keyspace,
        attributes: AttributeStore,
        reader: Reader,
        junk: Junk,
        overlay: Overlay | None,
        empty: EmptyDirectories | None,
        options: TreeOptions,
        started_ns: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self.grammar = grammar
        self.keyspace = keyspace
        self.attributes = attributes
        self.reader = reader
        self.overlay = overlay
        self._junk = junk
        self._empty = empty
        self._options = options
        self.started_ns = started_ns
        self._told_of_junk = False  # the log says once that some is not listed
        self._interrupted = interrupted  # whether the program that waits for the current answer was interrupted

    # -- looking up --------------------------------------------------------------------------------------------------

    def find(self, path: bytes) -> Node:
        """What a path (from the mount's root) leads to. Raises NotFoundError, NameTooLongError."""
        if len(path) > NAME_MAX and any(len(name) > NAME_MAX for name in path.split(b"/")):
            raise NameTooLongError(f"a name has more than {NAME_MAX} bytes")
        if self.overlay is not None:
            if (own := self.overlay.find(path)) is not None:
                return own
            path = self.overlay.path_of(path)
        meaning = self.grammar.parse(path)
        if isinstance(meaning, Reading):
            return self._find_reading(path, meaning)
        if isinstance(meaning, Root):
            return DirectoryNode(())
        if isinstance(meaning, Updater):
            return UpdaterNode()
        if isinstance(meaning, Piece):
            node = PieceNode(meaning.directory, meaning.start)
            if not self._is_left(path):
                next(self._lister().piece(node))
            return node
        return self._find_long(meaning)

    def _is_left(self, path: bytes) -> bool:
        return self.overlay is not None and path in self.overlay.pieces

    def known(self, path: bytes) -> DirectoryNode | FileNode | None:
        """As `find`, if it is a directory or a string and that is known without waiting; for read-only mounts."""
        if self._options.prefix or len(path) > NAME_MAX:
            return None  # not worth a way of its own: `find` looks whether it is mounted, and at each name's length
        meaning = self.grammar.parse(path)
        if not isinstance(meaning, Reading):
            return None
        if meaning.as_directory is not None:
            directory = (*meaning.directory, meaning.as_directory)
            if self._is_directory(directory):
                return DirectoryNode(directory)
        if meaning.as_key is None or meaning.as_field or meaning.view:
            return None
        target = Target(self.grammar.join((*meaning.directory, meaning.as_key)))
        found = self.attributes.known(target.key)
        return None if found is None or found.type != b"string" else FileNode(target, found.type, found.length)

    def present(self, path: bytes) -> Snapshot | None:
        """What the string holds that a path leads to, if that is known without asking; for read-only mounts."""
        node = self.known(path)
        return self.reader.present(node.target) if isinstance(node, FileNode) else None

    def _find_reading(self, path: bytes, reading: Reading) -> Node:
        directory = None if reading.as_directory is None else (*reading.directory, reading.as_directory)
        if directory is not None and self._is_directory(directory):
            return DirectoryNode(directory)
        node = self.find_file(reading)
        if node is not None:
            return node
        if directory is not None and not self._knows_directories():
            return DirectoryNode(directory)  # nobody knows yet; whoever lists it will wait for the index
        if directory is not None and self._is_directory(directory):
            return DirectoryNode(directory)  # the index was completed meanwhile
        if directory is not None and self.overlay is not None and self.overlay.has_below(path):
            return DirectoryNode(directory)  # its keys have gone, but what is being edited there has not
        raise NotFoundError("no such key")

    def _knows_directories(self) -> bool:
        """Whether the index is whole, waiting a moment for it; where names are made, as long as it takes."""
        if self.overlay is not None:
            self.wait()
        else:
            with contextlib.suppress(TryAgainError):
                self.keyspace.wait(BRIEFLY)
        return self.keyspace.ready

    def wait(self) -> None:
        """Wait until the index is whole. Raises InterruptedWaitError (Ctrl-C), or why it can't be had."""
        while True:
            began = time.monotonic()
            try:
                self.keyspace.wait(BRIEFLY)
                return
            except TryAgainError:
                if time.monotonic() - began < BRIEFLY:
                    raise  # not our time is up: the server says that it can't answer now (LOADING, BUSY)
                if self._interrupted():
                    raise InterruptedWaitError("interrupted while the keys are being read") from None

    def names_directory(self, reading: Reading) -> bool:
        """Whether a reading is a directory, as far as is known by now."""
        return reading.as_directory is not None and self._is_directory((*reading.directory, reading.as_directory))

    def _is_directory(self, directory: tuple[bytes, ...]) -> bool:
        if self.keyspace.ready and self.keyspace.index.is_directory(directory):
            return True
        return self._empty is not None and directory in self._empty

    def find_file(self, reading: Reading) -> FileNode | OpenNode | None:
        """The field, or else the key, that a reading names: as it is open for editing here, or as it is in Redis."""
        field, key = self.targets(reading)
        for target in (field, key):
            if target is not None and self.overlay is not None and (node := self.overlay.open_node(target)):
                return node
        key_found, field_length = self._look(key, field)
        if field is not None and field_length is not None and not self._parked(field):
            return FileNode(field, FIELD_TYPE, field_length)
        if key is not None and key_found is not None and not self._parked(key):
            return FileNode(key, key_found.type, key_found.length, reading.view)
        return None

    def _look(self, key: Target | None, field: Target | None) -> tuple[Attributes | None, int | None]:
        """The key's attributes and the field's length in bytes, None for what is not there: at most two round trips."""
        if field is None:
            found = ABSENT if key is None else self.attributes.look(key.key)
            length = None
        else:
            assert field.field is not None
            other = field.key if key is None else key.key
            _owner, length, found = self.attributes.look_field(field.key, field.field, other)
        return (None if found.type == b"none" else found), length

    def targets(self, reading: Reading) -> tuple[Target | None, Target | None]:
        """The field and the key that a reading may name."""
        field = key = None
        if reading.as_field is not None:
            component, name = reading.as_field
            field = Target(self.grammar.join((*reading.directory, component)), name)
        if reading.as_key is not None:
            key = Target(self.grammar.join((*reading.directory, reading.as_key)))
        if self._options.prefix:
            field, key = self._mounted(field), self._mounted(key)
        return field, key

    def _mounted(self, target: Target | None) -> Target | None:
        """None for what is not in the part of the keys that is mounted (--prefix)."""
        return target if target is not None and target.key.startswith(self._options.prefix) else None

    def check_mounted(self, directory: tuple[bytes, ...]) -> None:
        """Raises AccessError for a directory that can't hold keys of the part that is mounted (--prefix)."""
        start, prefix = self.grammar.prefix(directory), self._options.prefix
        if not start.startswith(prefix) and not prefix.startswith(start):
            raise AccessError("that is outside of the part that is mounted (--prefix)")

    def _parked(self, target: Target) -> bool:
        return self.overlay is not None and self.overlay.is_parked(target)

    def _find_long(self, meaning: LongRoot | LongEntry | LongFields | LongField) -> Node:
        if isinstance(meaning, LongRoot):
            if next(self.keyspace.index.long_keys(), None) is None:
                raise NotFoundError("no key is so long")
            return LongRootNode()
        if isinstance(meaning, LongFields):
            key = self.grammar.join((*meaning.directory, meaning.component))
            if self.attributes.look(key).type != b"hash":
                raise NotFoundError("no such hash")
            return LongFieldsNode(meaning.directory, meaning.component, key)
        if isinstance(meaning, LongField):
            key = self.grammar.join((*meaning.directory, meaning.component))
            return self._field_by_digest(key, meaning.digest)
        found = self.keyspace.index.long_key(meaning.key_digest)
        if found is None:
            raise NotFoundError("no such long key")
        if meaning.field_digest is not None:
            return self._field_by_digest(found, meaning.field_digest)
        attributes = self.attributes.look(found)
        if attributes.type == b"none":
            raise NotFoundError("no such long key")
        return FileNode(Target(found), attributes.type, attributes.length, meaning.view)

    def _field_by_digest(self, key: bytes, wanted: str) -> FileNode:
        if self.attributes.look(key).type == b"hash":
            for field in self.attributes.fields(key, LONG_FIELD_LIMIT) or ():
                if digest(field) == wanted:
                    [length] = self.attributes.field_lengths(key, [field])
                    if length is not None:
                        return FileNode(Target(key, field), FIELD_TYPE, length)
        raise NotFoundError("no such long field")

    # -- listing -----------------------------------------------------------------------------------------------------

    def list(self, path: bytes, node: Node) -> Iterator[Listed]:
        """The names in a directory; asks the server as it goes. Waits for the first index.

        Raises NotDirectoryError, NotFoundError (it is gone), UnavailableError (the index can't be had).
        """
        if isinstance(node, ScratchNode) and node.directory:
            assert self.overlay is not None
            yield from self.overlay.list(path)
            return
        if not isinstance(node, DIRECTORY_NODES):
            raise NotDirectoryError("not a directory")
        self.wait()
        lister = self._lister()
        if isinstance(node, PieceNode):
            try:
                yield from lister.piece(node)
            except NotFoundError:
                if not self._is_left(path):
                    raise
        elif isinstance(node, LongRootNode):
            yield from lister.long_root()
        elif isinstance(node, LongFieldsNode):
            yield from lister.long_fields(node)
        else:
            yield from self._list_directory(path, node.directory, lister)

    def _list_directory(self, path: bytes, directory: tuple[bytes, ...], lister: Lister) -> Iterator[Listed]:
        own = list(self.overlay.list(path)) if self.overlay is not None else []
        made = self._empty.children(directory) if self._empty is not None else []
        names = {listed.name for listed in own}
        yield from own
        for component in made:
            name = self.grammar.directory_name(component, root=not directory)
            if name not in names and not lister.index.is_directory((*directory, component)):
                yield Listed(name, DirectoryNode((*directory, component)))
        kept = self._kept_by_own(path, names, lister)
        yield from kept
        if not lister.index.is_directory(directory):
            if own or made or kept or (self._empty is not None and directory in self._empty):
                return
            raise NotFoundError("no key is below it any more")
        hidden = 0
        hides = None if self._options.show_junk else self._junk.hides
        for listed in lister.directory(directory):
            name, node = listed
            if name in names or (self.overlay is not None and isinstance(node, FileNode) and self._parked(node.target)):
                continue
            if hides is not None and hides(name, root=not directory):
                hidden += 1
            else:
                yield listed
        if hidden and not self._told_of_junk:
            self._told_of_junk = True
            log.info(
                "/%s: %d names are not listed, as they are junk by their names. An exact path opens them, --show-junk "
                "lists them, `redisfuse junk scan` finds all of them on the server",
                os.fsdecode(path),
                hidden,
            )

    def _kept_by_own(self, path: bytes, listed: Collection[bytes], lister: Lister) -> Sequence[Listed]:
        """The directories in one that hold nothing but junk, or what is being edited."""
        found = []
        for name in self.overlay.folders(path) if self.overlay is not None else ():
            if name in listed:
                continue
            meaning = self.grammar.parse(path + b"/" + name if path else name)
            if isinstance(meaning, Reading) and meaning.as_directory is not None:
                directory = (*meaning.directory, meaning.as_directory)
                if not lister.index.is_directory(directory) and (self._empty is None or directory not in self._empty):
                    found.append(Listed(name, DirectoryNode(directory)))
        return found

    def _lister(self) -> Lister:
        options = self._options
        return Lister(
            self.grammar,
            self.keyspace.index,
            self.attributes,
            options.field_limit,
            options.hash_limit,
            self.keyspace.change_count,
        )

    # -- describing --------------------------------------------------------------------------------------------------

    def stat(self, node: Node) -> Stat:
        """Size and age of what a path led to. Raises what measuring a collection raises."""
        if isinstance(node, FileNode):
            if node.type == UNREADABLE.type:
                return Stat(False, 0, self.started_ns, False, readable=False)
            size, streamed = self.reader.measure(node)
            return Stat(False, size, self.age(node.target), node.editable, streamed=streamed)
        if isinstance(node, DirectoryNode):
            prefix = self.grammar.prefix(node.directory)
            return Stat(True, 0, max(self.keyspace.changed_at(prefix), self.started_ns), True)
        if isinstance(node, OpenNode):
            file = node.file
            mtime = file.changed_ns or (self.started_ns if file.target is None else self.age(file.target))
            return Stat(False, file.size or 0, mtime, True, linked=file.target is not None)
        if isinstance(node, ScratchNode):
            assert self.overlay is not None
            found = self.overlay.scratch.attributes(node.path)
            return Stat(found.directory, found.size, found.modified_ns, True, mode=found.mode)
        if isinstance(node, UpdaterNode):
            return Stat(False, 0, self.started_ns, False)
        return Stat(True, 0, self.started_ns, False)

    def age(self, target: Target) -> int:
        """The mtime of a file, in ns since the epoch: when it was last seen to change, else the mount's start."""
        return max(self.keyspace.modified_at(target), self.started_ns)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def extended(self, node: Node) -> dict[bytes, bytes]:
        """`user.redis.*` of a file or directory (NAMES.md); values are bytes."""
        if isinstance(node, DirectoryNode):
            return {b"user.redis.prefix": self.grammar.prefix(node.directory)}
        if isinstance(node, OpenNode) and node.file.target is not None:
            found = self.find_stored(node.file.target)
            if found is None:
                return {}
            node = found
        if not isinstance(node, FileNode):
            return {}
        target = node.target
        facts = self.attributes.extended(target.key)
        ttl, length = facts.ttl, facts.length
        named = {b"user.redis.key": target.key, b"user.redis.type": facts.type, b"user.redis.encoding": facts.encoding}
        if target.field is not None:
            named[b"user.redis.field"] = target.field
            ttl, length = self.reader.field_ttl(target, ttl), node.length
        return named | {b"user.redis.ttl": b"%d" % ttl, b"user.redis.length": b"%d" % length}

    def extended_one(self, node: Node, name: bytes) -> bytes:
        """One extended attribute. Raises NoAttributeError."""
        if not name.startswith(b"user.redis."):
            raise NoAttributeError("no such attribute")
        try:
            return self.extended(node)[name]
        except KeyError:
            raise NoAttributeError("no such attribute") from None

    def find_stored(self, target: Target) -> FileNode | None:
        """What Redis holds at a target now, whatever is open here; None if nothing."""
        if target.field is not None:
            _found, length = self._look(None, target)
            return None if length is None else FileNode(target, FIELD_TYPE, length)
        found, _length = self._look(target, None)
        return None if found is None else FileNode(target, found.type, found.length)

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
from redisfuse.keyspace.metadata import ABSENT, UNREADABLE, KeyMetadata, MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import (
    NAME_MAX,
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    DigestRoot,
    KeyRef,
    NameSegment,
    PathCandidates,
    PathCodec,
    RefreshFile,
    RootDir,
    sha256_hex,
)
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.nodes import (
    DIRECTORY_NODE_TYPES,
    FIELD_TYPE,
    DigestFieldsNode,
    DigestRootNode,
    DirectoryNode,
    KeyNode,
    MemoryNode,
    NamedNode,
    OpenFileNode,
    RefreshNode,
    SegmentNode,
    TreeNode,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir import DirectoryReader

log = logging.getLogger(__name__)

INDEX_WAIT_SECONDS = 0.25  # seconds that a look-up waits for the index before it takes an unknown name for a directory
MAX_DIGEST_SCAN_FIELDS = 1_000_000  # fields of a hash that are looked through for the digest of a long one


class EmptyDirectoryLookup(Protocol):
    """Directories that exist though no key is below them (they live in the journal)."""

    def __contains__(self, directory: tuple[bytes, ...], /) -> bool:
        """Whether it, or one below it, was made."""
        ...

    def children(self, directory: tuple[bytes, ...]) -> list[bytes]:
        """Components of the made directories in `is_directory`, each once."""
        ...


class Stat(NamedTuple):
    """What `stat` is told: size in bytes, mtime in ns since the epoch (UTC)."""

    is_directory: bool
    size: int
    mtime_ns: int
    is_editable: bool  # a file that write mode can open for writing
    is_readable: bool = True  # False: the server's ACL hides what the key holds
    mode: int | None = None  # the permission bits of junk; else they are the mount's
    is_streamed: bool = False  # its size is not known beforehand: read with direct I/O until the end
    is_linked: bool = True  # False: it was unlinked while it was open

    @property
    def has_exact_size(self) -> bool:
        """Whether its size is what will be read."""
        return self.is_readable and not self.is_streamed


@dataclass(frozen=True, slots=True)
class FilesystemOptions:
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
        grammar: PathCodec,
        keyspace: KeyspaceMonitor,
        metadata: MetadataStore,
        content_loader: ContentLoader,
        junk_rules: JunkRules,
        overlay: Overlay | None,
        empty_directories: EmptyDirectoryLookup | None,
        options: FilesystemOptions,
        mount_time_ns: int,
        is_interrupted: Callable[[], bool],
    ) -> None:
        self.grammar = grammar
        self.keyspace = keyspace
        self.metadata = metadata
        self.content_loader = content_loader
        self.overlay = overlay
        self._junk_rules = junk_rules
        self._empty_directories = empty_directories
        self._options = options
        self.mount_time_ns = mount_time_ns
        self._hidden_junk_logged = False  # the log says once that some is not listed
        self._is_interrupted = is_interrupted  # whether the program that waits for the current answer was interrupted

    # -- looking up --------------------------------------------------------------------------------------------------

    def resolve(self, path: bytes) -> TreeNode:
        """What a path (from the mount's root) leads to. Raises NotFoundError, NameTooLongError."""
        if len(path) > NAME_MAX and any(len(name) > NAME_MAX for name in path.split(b"/")):
            raise NameTooLongError(f"a name has more than {NAME_MAX} bytes")
        if self.overlay is not None:
            if (own := self.overlay.resolve(path)) is not None:
                return own
            path = self.overlay.resolve_hidden_path(path)
        meaning = self.grammar.parse(path)
        if isinstance(meaning, PathCandidates):
            return self._resolve_candidates(path, meaning)
        if isinstance(meaning, RootDir):
            return DirectoryNode(())
        if isinstance(meaning, RefreshFile):
            return RefreshNode()
        if isinstance(meaning, NameSegment):
            node = SegmentNode(meaning.directory, meaning.prefix)
            if not self._is_empty_segment(path):
                next(self._directory_reader().continuation_entries(node))
            return node
        return self._resolve_digest_path(meaning)

    def _is_empty_segment(self, path: bytes) -> bool:
        return self.overlay is not None and path in self.overlay.dangling_segments

    def resolve_cached(self, path: bytes) -> DirectoryNode | KeyNode | None:
        """As `resolve`, if it is a directory or a string and that is known without waiting; for read-only mounts."""
        if self._options.prefix or len(path) > NAME_MAX:
            return None  # not worth a way of its own: `resolve` looks whether it is mounted, and at each name's length
        meaning = self.grammar.parse(path)
        if not isinstance(meaning, PathCandidates):
            return None
        if meaning.as_directory is not None:
            directory = (*meaning.directory, meaning.as_directory)
            if self._is_directory(directory):
                return DirectoryNode(directory)
        if meaning.as_key is None or meaning.as_field or meaning.view:
            return None
        target = KeyRef(self.grammar.join_key((*meaning.directory, meaning.as_key)))
        found = self.metadata.get_cached(target.key)
        return None if found is None or found.type != b"string" else KeyNode(target, found.type, found.length)

    def open_cached(self, path: bytes) -> FileContent | None:
        """What the string holds that a path leads to, if that is known without asking; for read-only mounts."""
        node = self.resolve_cached(path)
        return self.content_loader.open_cached(node.target) if isinstance(node, KeyNode) else None

    def _resolve_candidates(self, path: bytes, candidates: PathCandidates) -> TreeNode:
        directory = None if candidates.as_directory is None else (*candidates.directory, candidates.as_directory)
        if directory is not None and self._is_directory(directory):
            return DirectoryNode(directory)
        node = self.resolve_file(candidates)
        if node is not None:
            return node
        if directory is not None and not self._await_index():
            return DirectoryNode(directory)  # nobody knows yet; whoever lists it will wait for the index
        if directory is not None and self._is_directory(directory):
            return DirectoryNode(directory)  # the index was completed meanwhile
        if directory is not None and self.overlay is not None and self.overlay.has_descendants(path):
            return DirectoryNode(directory)  # its keys have gone, but what is being edited there has not
        raise NotFoundError("no such key")

    def _await_index(self) -> bool:
        """Whether the index is whole, waiting a moment for it; where names are made, as long as it takes."""
        if self.overlay is not None:
            self.wait_for_index()
        else:
            with contextlib.suppress(TryAgainError):
                self.keyspace.wait_until_ready(INDEX_WAIT_SECONDS)
        return self.keyspace.is_ready

    def wait_for_index(self) -> None:
        """Wait until the index is whole. Raises InterruptedWaitError (Ctrl-C), or why it can't be had."""
        while True:
            began = time.monotonic()
            try:
                self.keyspace.wait_until_ready(INDEX_WAIT_SECONDS)
                return
            except TryAgainError:
                if time.monotonic() - began < INDEX_WAIT_SECONDS:
                    raise  # not our time is up: the server says that it can't answer now (LOADING, BUSY)
                if self._is_interrupted():
                    raise InterruptedWaitError("interrupted while the keys are being read") from None

    def resolves_to_directory(self, candidates: PathCandidates) -> bool:
        """Whether a reading is a directory, as far as is known by now."""
        return candidates.as_directory is not None and self._is_directory(
            (*candidates.directory, candidates.as_directory)
        )

    def _is_directory(self, directory: tuple[bytes, ...]) -> bool:
        if self.keyspace.is_ready and self.keyspace.index.is_directory(directory):
            return True
        return self._empty_directories is not None and directory in self._empty_directories

    def resolve_file(self, candidates: PathCandidates) -> KeyNode | OpenFileNode | None:
        """The field, or else the key, that a reading names: as it is open for editing here, or as it is in Redis."""
        field, key = self.candidate_targets(candidates)
        for target in (field, key):
            if target is not None and self.overlay is not None and (node := self.overlay.find_open_node(target)):
                return node
        key_found, field_length = self._fetch_metadata(key, field)
        if field is not None and field_length is not None and not self._is_pending_removal(field):
            return KeyNode(field, FIELD_TYPE, field_length)
        if key is not None and key_found is not None and not self._is_pending_removal(key):
            return KeyNode(key, key_found.type, key_found.length, candidates.view)
        return None

    def _fetch_metadata(self, key: KeyRef | None, field: KeyRef | None) -> tuple[KeyMetadata | None, int | None]:
        """The key's attributes and the field's length in bytes, None for what is not there: at most two round trips."""
        if field is None:
            found = ABSENT if key is None else self.metadata.get_with_content(key.key)
            length = None
        else:
            assert field.field is not None
            other = field.key if key is None else key.key
            _owner, length, found = self.metadata.resolve_field_or_key(field.key, field.field, other)
        return (None if found.type == b"none" else found), length

    def candidate_targets(self, candidates: PathCandidates) -> tuple[KeyRef | None, KeyRef | None]:
        """The field and the key that a reading may name."""
        field = key = None
        if candidates.as_field is not None:
            component, name = candidates.as_field
            field = KeyRef(self.grammar.join_key((*candidates.directory, component)), name)
        if candidates.as_key is not None:
            key = KeyRef(self.grammar.join_key((*candidates.directory, candidates.as_key)))
        if self._options.prefix:
            field, key = self._restrict_to_prefix(field), self._restrict_to_prefix(key)
        return field, key

    def _restrict_to_prefix(self, target: KeyRef | None) -> KeyRef | None:
        """None for what is not in the part of the keys that is mounted (--prefix)."""
        return target if target is not None and target.key.startswith(self._options.prefix) else None

    def check_within_prefix(self, directory: tuple[bytes, ...]) -> None:
        """Raises AccessError for a directory that can't hold keys of the part that is mounted (--prefix)."""
        start, prefix = self.grammar.key_prefix(directory), self._options.prefix
        if not start.startswith(prefix) and not prefix.startswith(start):
            raise AccessError("that is outside of the part that is mounted (--prefix)")

    def _is_pending_removal(self, target: KeyRef) -> bool:
        return self.overlay is not None and self.overlay.is_pending_removal(target)

    def _resolve_digest_path(self, parsed_path: DigestRoot | DigestEntry | DigestFieldsDir | DigestField) -> TreeNode:
        if isinstance(parsed_path, DigestRoot):
            if next(self.keyspace.index.iter_long_keys(), None) is None:
                raise NotFoundError("no key is so long")
            return DigestRootNode()
        if isinstance(parsed_path, DigestFieldsDir):
            key = self.grammar.join_key((*parsed_path.directory, parsed_path.component))
            if self.metadata.get_with_content(key).type != b"hash":
                raise NotFoundError("no such hash")
            return DigestFieldsNode(parsed_path.directory, parsed_path.component, key)
        if isinstance(parsed_path, DigestField):
            key = self.grammar.join_key((*parsed_path.directory, parsed_path.component))
            return self._resolve_field_by_digest(key, parsed_path.digest)
        found = self.keyspace.index.get_long_key(parsed_path.key_digest)
        if found is None:
            raise NotFoundError("no such long key")
        if parsed_path.field_digest is not None:
            return self._resolve_field_by_digest(found, parsed_path.field_digest)
        attributes = self.metadata.get_with_content(found)
        if attributes.type == b"none":
            raise NotFoundError("no such long key")
        return KeyNode(KeyRef(found), attributes.type, attributes.length, parsed_path.view)

    def _resolve_field_by_digest(self, key: bytes, field_digest: str) -> KeyNode:
        if self.metadata.get_with_content(key).type == b"hash":
            for field in self.metadata.list_fields(key, MAX_DIGEST_SCAN_FIELDS) or ():
                if sha256_hex(field) == field_digest:
                    [length] = self.metadata.get_field_lengths(key, [field])
                    if length is not None:
                        return KeyNode(KeyRef(key, field), FIELD_TYPE, length)
        raise NotFoundError("no such long field")

    # -- listing -----------------------------------------------------------------------------------------------------

    def readdir(self, path: bytes, node: TreeNode) -> Iterator[NamedNode]:
        """The names in a directory; asks the server as it goes. Waits for the first index.

        Raises NotDirectoryError, NotFoundError (it is gone), UnavailableError (the index can't be had).
        """
        if isinstance(node, MemoryNode) and node.is_directory:
            assert self.overlay is not None
            yield from self.overlay.readdir(path)
            return
        if not isinstance(node, DIRECTORY_NODE_TYPES):
            raise NotDirectoryError("not a directory")
        self.wait_for_index()
        lister = self._directory_reader()
        if isinstance(node, SegmentNode):
            try:
                yield from lister.continuation_entries(node)
            except NotFoundError:
                if not self._is_empty_segment(path):
                    raise
        elif isinstance(node, DigestRootNode):
            yield from lister.digest_root_entries()
        elif isinstance(node, DigestFieldsNode):
            yield from lister.digest_field_entries(node)
        else:
            yield from self._read_key_directory(path, node.directory, lister)

    def _read_key_directory(
        self, path: bytes, directory: tuple[bytes, ...], reader: DirectoryReader
    ) -> Iterator[NamedNode]:
        own = list(self.overlay.readdir(path)) if self.overlay is not None else []
        made = self._empty_directories.children(directory) if self._empty_directories is not None else []
        names = {listed.name for listed in own}
        yield from own
        for component in made:
            name = self.grammar.directory_name(component, in_root=not directory)
            if name not in names and not reader.index.is_directory((*directory, component)):
                yield NamedNode(name, DirectoryNode((*directory, component)))
        kept = self._overlay_directories(path, names, reader)
        yield from kept
        if not reader.index.is_directory(directory):
            if own or made or kept or (self._empty_directories is not None and directory in self._empty_directories):
                return
            raise NotFoundError("no key is below it any more")
        hidden = 0
        hides = None if self._options.show_junk else self._junk_rules.is_hidden
        for listed in reader.entries(directory):
            name, node = listed
            if name in names or (
                self.overlay is not None and isinstance(node, KeyNode) and self._is_pending_removal(node.target)
            ):
                continue
            if hides is not None and hides(name, in_root=not directory):
                hidden += 1
            else:
                yield listed
        if hidden and not self._hidden_junk_logged:
            self._hidden_junk_logged = True
            log.info(
                "/%s: %d names are not listed, as they are junk by their names. An exact path opens them, --show-junk "
                "lists them, `redisfuse junk scan` finds all of them on the server",
                os.fsdecode(path),
                hidden,
            )

    def _overlay_directories(
        self, path: bytes, listed_names: Collection[bytes], reader: DirectoryReader
    ) -> Sequence[NamedNode]:
        """The directories in one that hold nothing but junk, or what is being edited."""
        found = []
        for name in self.overlay.child_directories(path) if self.overlay is not None else ():
            if name in listed_names:
                continue
            meaning = self.grammar.parse(path + b"/" + name if path else name)
            if isinstance(meaning, PathCandidates) and meaning.as_directory is not None:
                directory = (*meaning.directory, meaning.as_directory)
                if not reader.index.is_directory(directory) and (
                    self._empty_directories is None or directory not in self._empty_directories
                ):
                    found.append(NamedNode(name, DirectoryNode(directory)))
        return found

    def _directory_reader(self) -> DirectoryReader:
        options = self._options
        return DirectoryReader(
            self.grammar,
            self.keyspace.index,
            self.metadata,
            options.field_limit,
            options.hash_limit,
            self.keyspace.get_version,
        )

    # -- describing --------------------------------------------------------------------------------------------------

    def stat(self, node: TreeNode) -> Stat:
        """Size and age of what a path led to. Raises what measuring a collection raises."""
        if isinstance(node, KeyNode):
            if node.type == UNREADABLE.type:
                return Stat(False, 0, self.mount_time_ns, False, is_readable=False)
            size, streamed = self.content_loader.measure_size(node)
            return Stat(False, size, self.get_mtime_ns(node.target), node.is_editable, is_streamed=streamed)
        if isinstance(node, DirectoryNode):
            prefix = self.grammar.key_prefix(node.directory)
            return Stat(True, 0, max(self.keyspace.changed_at(prefix), self.mount_time_ns), True)
        if isinstance(node, OpenFileNode):
            file = node.file
            mtime = file.mtime_ns or (self.mount_time_ns if file.target is None else self.get_mtime_ns(file.target))
            return Stat(False, file.size or 0, mtime, True, is_linked=file.target is not None)
        if isinstance(node, MemoryNode):
            assert self.overlay is not None
            found = self.overlay.memory_fs.stat(node.path)
            return Stat(found.is_directory, found.size, found.mtime_ns, True, mode=found.mode)
        if isinstance(node, RefreshNode):
            return Stat(False, 0, self.mount_time_ns, False)
        return Stat(True, 0, self.mount_time_ns, False)

    def get_mtime_ns(self, target: KeyRef) -> int:
        """The mtime of a file, in ns since the epoch: when it was last seen to change, else the mount's start."""
        return max(self.keyspace.mtime_ns(target), self.mount_time_ns)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def get_xattrs(self, node: TreeNode) -> dict[bytes, bytes]:
        """`user.redis.*` of a file or directory (NAMES.md); values are bytes."""
        if isinstance(node, DirectoryNode):
            return {b"user.redis.prefix": self.grammar.key_prefix(node.directory)}
        if isinstance(node, OpenFileNode) and node.file.target is not None:
            found = self.resolve_stored(node.file.target)
            if found is None:
                return {}
            node = found
        if not isinstance(node, KeyNode):
            return {}
        target = node.target
        facts = self.metadata.fetch_extended(target.key)
        ttl, length = facts.ttl_ms, facts.length
        named = {b"user.redis.key": target.key, b"user.redis.type": facts.type, b"user.redis.encoding": facts.encoding}
        if target.field is not None:
            named[b"user.redis.field"] = target.field
            ttl, length = self.content_loader.fetch_field_ttl(target, ttl), node.length
        return named | {b"user.redis.ttl": b"%d" % ttl, b"user.redis.length": b"%d" % length}

    def get_xattr(self, node: TreeNode, name: bytes) -> bytes:
        """One extended attribute. Raises NoAttributeError."""
        if not name.startswith(b"user.redis."):
            raise NoAttributeError("no such attribute")
        try:
            return self.get_xattrs(node)[name]
        except KeyError:
            raise NoAttributeError("no such attribute") from None

    def resolve_stored(self, target: KeyRef) -> KeyNode | None:
        """What Redis holds at a target now, whatever is open here; None if nothing."""
        if target.field is not None:
            _found, length = self._fetch_metadata(None, target)
            return None if length is None else KeyNode(target, FIELD_TYPE, length)
        found, _length = self._fetch_metadata(target, None)
        return None if found is None else KeyNode(target, found.type, found.length)

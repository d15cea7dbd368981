"""Resolving paths to nodes: what a path of the mount leads to.

Knows neither FUSE nor a Redis command. Every method may be called from any thread; there is no lock here.
"""

from __future__ import annotations

import contextlib
import time
from typing import Protocol

from redisfuse.errors import AccessError, InterruptedWaitError, NameTooLongError, NotFoundError, TryAgainError
from redisfuse.keyspace.metadata import ABSENT, KeyMetadata, MetadataStore
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
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.hash_layouts import HashLayouts
from redisfuse.vfs.nodes import (
    FIELD_TYPE,
    DigestFieldsNode,
    DigestRootNode,
    DirectoryNode,
    KeyNode,
    OpenFileNode,
    RefreshNode,
    SegmentNode,
    TreeNode,
)
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.readdir import DirectoryReader

INDEX_WAIT_SECONDS = 0.25  # a look-up waits for the index this long before it takes an unknown name for a directory
MAX_DIGEST_SCAN_FIELDS = 1_000_000  # fields of a hash that are searched for the digest of a long one


class InterruptSource(Protocol):
    """Reports interrupts of the program whose request the calling thread serves."""

    def is_interrupted(self) -> bool:
        """Return whether the program was interrupted (Ctrl-C)."""


class PathResolver:
    """The paths of one mounted database.

    They are relative to the mount's root, without a leading slash.
    """

    def __init__(
        self,
        *,
        grammar: PathCodec,
        keyspace: KeyspaceMonitor,
        metadata: MetadataStore,
        overlay: Overlay | None,
        empty_directories: EmptyDirectories | None,
        prefix: bytes,
        layouts: HashLayouts,
        interrupts: InterruptSource,
    ) -> None:
        """`overlay` and `empty_directories` exist in write mode only.

        `prefix` is that of the keys that are mounted.
        """
        self._grammar = grammar
        self._keyspace = keyspace
        self._metadata = metadata
        self._overlay = overlay
        self._empty_directories = empty_directories
        self._prefix = prefix
        self._layouts = layouts
        self._interrupts = interrupts

    # -- paths -------------------------------------------------------------------------------------------------------

    def resolve(self, path: bytes) -> TreeNode:
        """Return the node that a path leads to. Raises NotFoundError, NameTooLongError."""
        if path:  # the root is looked up by `redisfuse status`, too
            self._keyspace.record_use()
        if len(path) > NAME_MAX and any(len(name) > NAME_MAX for name in path.split(b"/")):
            raise NameTooLongError(f"a name has more than {NAME_MAX} bytes")
        if self._overlay is not None and (node := self._overlay.resolve(path)) is not None:
            return node
        parsed_path = self._grammar.parse(path)
        if isinstance(parsed_path, PathCandidates):
            return self._resolve_candidates(path, parsed_path)
        if isinstance(parsed_path, RootDir):
            return DirectoryNode(())
        if isinstance(parsed_path, RefreshFile):
            return RefreshNode()
        if isinstance(parsed_path, NameSegment):
            return self._resolve_segment(path, parsed_path)
        return self._resolve_digest_path(parsed_path)

    def _resolve_candidates(self, path: bytes, candidates: PathCandidates) -> TreeNode:
        directory = None if candidates.as_directory is None else (*candidates.directory, candidates.as_directory)
        if directory is not None and self._is_directory(directory):
            return DirectoryNode(directory)
        node = self.resolve_file(candidates)
        if node is not None:
            return node
        if directory is not None:
            if not self._wait_briefly_for_index():
                return DirectoryNode(directory)  # not known yet; a listing of it waits for the index
            if self._is_directory(directory):
                return DirectoryNode(directory)  # the index became ready meanwhile
            if self._overlay is not None and self._overlay.has_descendants(path):
                return DirectoryNode(directory)  # its keys were deleted, but files in it are being edited
        raise NotFoundError("no such key")

    def _resolve_segment(self, path: bytes, segment: NameSegment) -> SegmentNode:
        node = SegmentNode(segment.directory, segment.prefix)
        if not self.is_dangling_segment(path):
            reader = self.create_reader()
            try:
                next(reader.continuation_entries(node))
            except NotFoundError:
                if not reader.begins_unlisted_name(node):
                    raise
        return node

    def is_dangling_segment(self, path: bytes) -> bool:
        """Return whether a segment of long names has lost its last file here.

        It then exists only for that reason.
        """
        return self._overlay is not None and path in self._overlay.dangling_segments

    def _resolve_digest_path(self, parsed_path: DigestRoot | DigestEntry | DigestFieldsDir | DigestField) -> TreeNode:
        if isinstance(parsed_path, DigestRoot):
            if next(self._keyspace.index.iter_long_keys(), None) is None:
                raise NotFoundError("no key has a path that is too long")
            return DigestRootNode()
        if isinstance(parsed_path, DigestEntry):
            return self._resolve_digest_entry(parsed_path)
        key = self._grammar.join_key((*parsed_path.directory, parsed_path.component))
        if isinstance(parsed_path, DigestField):
            return self._resolve_field_by_digest(key, parsed_path.digest, parsed_path.view)
        if self._metadata.get_with_content(key).type != b"hash":
            raise NotFoundError("no such hash")
        return DigestFieldsNode(parsed_path.directory, parsed_path.component, key)

    def _resolve_digest_entry(self, entry: DigestEntry) -> KeyNode:
        key = self._keyspace.index.get_long_key(entry.key_digest)
        if key is None:
            raise NotFoundError("no such long key")
        if entry.field_digest is not None:
            return self._resolve_field_by_digest(key, entry.field_digest, entry.view)
        metadata = self._metadata.get_with_content(key)
        if metadata.type == b"none":
            raise NotFoundError("no such long key")
        return KeyNode(KeyRef(key), metadata.type, metadata.length, entry.view)

    def _resolve_field_by_digest(self, key: bytes, field_digest: str, view: str | None) -> KeyNode:
        if self._metadata.get_with_content(key).type == b"hash":
            for field in self._metadata.list_fields(key, MAX_DIGEST_SCAN_FIELDS) or ():
                if sha256_hex(field) == field_digest:
                    [length] = self._metadata.get_field_lengths(key, [field])
                    if length is not None:
                        return KeyNode(KeyRef(key, field), FIELD_TYPE, length, view)
        raise NotFoundError("no such long field")

    # -- directories -------------------------------------------------------------------------------------------------

    def resolves_to_directory(self, candidates: PathCandidates) -> bool:
        """Return whether a parsed path is a directory, as far as the index shows it now."""
        return candidates.as_directory is not None and self._is_directory(
            (*candidates.directory, candidates.as_directory)
        )

    def _is_directory(self, directory: tuple[bytes, ...]) -> bool:
        if self._keyspace.index.is_directory(directory):  # in a cluster, also while a node of it is down
            return True
        return self._empty_directories is not None and directory in self._empty_directories

    def check_within_prefix(self, directory: tuple[bytes, ...]) -> None:
        """Raise AccessError if no key of a directory is mounted (--prefix)."""
        start = self._grammar.key_prefix(directory)
        if not start.startswith(self._prefix) and not self._prefix.startswith(start):
            raise AccessError("the directory is outside of the mounted keys (--prefix)")

    def create_reader(self) -> DirectoryReader:
        """Return a reader of the present index, for one listing."""
        return DirectoryReader(self._grammar, self._keyspace.index, self._keyspace, self._metadata, self._layouts)

    # -- keys and fields ---------------------------------------------------------------------------------------------

    def resolve_file(self, candidates: PathCandidates) -> KeyNode | OpenFileNode | None:
        """Return the field, or else the key, that a parsed path names.

        Returns None if neither exists. A file that is being edited here takes precedence over the value in Redis; its
        views are those of the value.
        """
        field, key = self.candidate_targets(candidates)
        for target in (field, key):
            if target is not None and self._overlay is not None and (node := self._overlay.find_open_node(target)):
                if candidates.view is None:
                    return node
                break
        key_metadata, field_length = self._fetch_metadata(key, field)
        if field is not None and field_length is not None and not self.is_pending_removal(field):
            return KeyNode(field, FIELD_TYPE, field_length, candidates.view)
        if key is not None and key_metadata is not None and not self.is_pending_removal(key):
            return KeyNode(key, key_metadata.type, key_metadata.length, candidates.view)
        return None

    def resolve_stored(self, target: KeyRef) -> KeyNode | None:
        """Return what Redis holds at a target now, whatever is open here.

        Returns None if there is nothing.
        """
        if target.field is not None:
            _metadata, length = self._fetch_metadata(None, target)
            return None if length is None else KeyNode(target, FIELD_TYPE, length)
        metadata, _length = self._fetch_metadata(target, None)
        return None if metadata is None else KeyNode(target, metadata.type, metadata.length)

    def candidate_targets(self, candidates: PathCandidates) -> tuple[KeyRef | None, KeyRef | None]:
        """Return the field and the key that a parsed path may name.

        Returns None for what is not mounted (--prefix).
        """
        field = key = None
        if candidates.as_field is not None:
            component, name = candidates.as_field
            field = KeyRef(self._grammar.join_key((*candidates.directory, component)), name)
        if candidates.as_key is not None:
            key = KeyRef(self._grammar.join_key((*candidates.directory, candidates.as_key)))
        if not self._prefix:
            return field, key
        return self._restrict_to_prefix(field), self._restrict_to_prefix(key)

    def _restrict_to_prefix(self, target: KeyRef | None) -> KeyRef | None:
        return target if target is not None and target.key.startswith(self._prefix) else None

    def is_pending_removal(self, target: KeyRef) -> bool:
        """Return whether a target is still in Redis but no longer in the tree."""
        return self._overlay is not None and self._overlay.is_pending_removal(target)

    def _fetch_metadata(self, key: KeyRef | None, field: KeyRef | None) -> tuple[KeyMetadata | None, int | None]:
        """Return the key's metadata and the field's length in bytes.

        None for what doesn't exist.

        At most two round trips.
        """
        if field is None:
            metadata = ABSENT if key is None else self._metadata.get_with_content(key.key)
            length = None
        else:
            assert field.field is not None
            other_key = field.key if key is None else key.key
            _owner, length, metadata = self._metadata.resolve_field_or_key(field.key, field.field, other_key)
        return (None if metadata.type == b"none" else metadata), length

    # -- the index ---------------------------------------------------------------------------------------------------

    def wait_for_index(self) -> None:
        """Wait until the index is ready.

        Raises InterruptedWaitError (Ctrl-C), UnavailableError (the index can't be read).
        """
        while True:
            start = time.monotonic()
            try:
                self._keyspace.wait_until_ready(INDEX_WAIT_SECONDS)
                return
            except TryAgainError:
                if time.monotonic() - start < INDEX_WAIT_SECONDS:
                    raise  # not a time-out: the server can't answer now (LOADING, BUSY)
                if self._interrupts.is_interrupted():
                    raise InterruptedWaitError("interrupted while the keys are being read") from None

    def _wait_briefly_for_index(self) -> bool:
        """Return whether the index is ready, after a short wait.

        The wait is a full one in write mode, where names are created.
        """
        if self._overlay is not None:
            self.wait_for_index()
        else:
            with contextlib.suppress(TryAgainError):
                self._keyspace.wait_until_ready(INDEX_WAIT_SECONDS)
        return self._keyspace.is_ready

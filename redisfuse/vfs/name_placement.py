"""Decides where a new name goes: to a key, to a field, or as junk to memory.

See docs/names.md and docs/editing.md.
"""

from __future__ import annotations

from redisfuse.errors import AccessError, CrossDeviceError, NotFoundError
from redisfuse.paths.grammar import KeyRef, PathCandidates
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import CreateContext, JunkDecision, JunkKind, JunkRules
from redisfuse.vfs.nodes import KeyNode, require_target
from redisfuse.vfs.overlay import Overlay

_TEMPORARY_ENDINGS = (b".tmp", b".temp", b".new", b".part", b".bak", b".orig")


class NamePlacement:
    """The rules of a mount for new names. Thread-safe: it has no state of its own."""

    def __init__(self, filesystem: Filesystem, overlay: Overlay, junk_rules: JunkRules, *, strings_only: bool) -> None:
        self._filesystem = filesystem
        self._overlay = overlay
        self._junk_rules = junk_rules
        self._strings_only = strings_only  # --new-files string

    # -- junk or data ------------------------------------------------------------------------------------------------

    def decide_junk(
        self, path: bytes, *, exclusive: bool = False, mode: int = 0o644, is_directory: bool = False
    ) -> JunkDecision:
        """Decide whether a new path is junk or held back.

        The decision depends on its name and on the flags of its creation.
        """
        parent, _, name = path.rpartition(b"/")
        context = CreateContext(
            exclusive,
            mode,
            is_directory,
            data_names=_DataNames(self, parent),
            in_memory_fs=bool(parent) and self._overlay.memory_fs.is_directory(parent),
        )
        return self._junk_rules.decide(parent, name, context)

    def is_second_backup(self, old: bytes, new: bytes) -> bool:
        """Return whether a rename makes a backup beside an older one, as vim does.

        If there is `note~`, it renames `note` to `notz~`, or to another letter.
        """
        return (
            self._junk_rules.enabled
            and (new[:-2], new[-1:]) == (old[:-1], b"~")
            and new[-2:-1].islower()
            and (self._overlay.memory_fs.exists(old + b"~") or self.is_data(old + b"~"))
        )

    def is_data(self, path: bytes) -> bool:
        """Return whether a path is a key, field, directory, or file that becomes one."""
        try:
            parsed_path = self._filesystem.grammar.parse(path)
        except NotFoundError:
            return False
        if not isinstance(parsed_path, PathCandidates):
            return False
        if any(target in self._overlay.pending_removals for target in self.candidate_targets(parsed_path)):
            return True
        return (
            self._filesystem.resolver.resolves_to_directory(parsed_path)
            or self._filesystem.resolver.resolve_file(parsed_path) is not None
        )

    # -- keys and fields ---------------------------------------------------------------------------------------------

    def candidate_targets(self, candidates: PathCandidates) -> list[KeyRef]:
        """Return the field and the key that a path may name."""
        return [target for target in self._filesystem.resolver.candidate_targets(candidates) if target is not None]

    def choose_target(self, candidates: PathCandidates, *, require_key: bool = False) -> KeyRef:
        """Return the key or field that a new file of this name becomes (docs/names.md).

        `require_key`: its type is one that a field can't hold. Raises AccessError if the name is outside of --prefix.
        """
        for target in self.candidate_targets(candidates):
            if target in self._overlay.pending_removals:
                return target  # an editor replaces the file that it has just renamed or unlinked
        field, key = self._filesystem.resolver.candidate_targets(candidates)
        if field is None or key is None:
            only_target = field or key
            if only_target is None:
                raise AccessError("the path is outside of the mounted part of the keys (--prefix)")
            return only_target
        if require_key or self._strings_only or candidates.name.endswith(b".lock"):
            return key
        # A temporary file that becomes a hash could not be renamed to the hash's name, as programs do.
        is_temporary = candidates.name.endswith(_TEMPORARY_ENDINGS)
        return field if self._can_hold_fields(field.key, is_absent_enough=not is_temporary) else key

    def _can_hold_fields(self, key: bytes, *, is_absent_enough: bool = True) -> bool:
        """Return whether a key is a hash or, with `is_absent_enough`, absent."""
        if self._overlay.find_open_node(KeyRef(key)) is not None:
            return False
        key_type = self._filesystem.metadata.get_with_content(key).type
        return key_type == b"hash" or (is_absent_enough and key_type == b"none")

    def resolve_destination(
        self, path: bytes, *, require_key: bool = False, origin: KeyRef | None = None
    ) -> tuple[KeyRef, Precondition]:
        """Return the key or field that a rename writes, and its precondition.

        `origin`: the one that the renamed file was; it is the same again if the path is one of it.

        Raises AccessError if the value there can't be replaced by a file.
        """
        candidates = self._filesystem.grammar.parse_new(path)
        node = self._filesystem.resolver.resolve_file(candidates)
        if node is not None:
            target = require_target(node)
        elif (
            origin is not None
            and origin in self.candidate_targets(candidates)
            and (origin.field is None or (not require_key and self._can_hold_fields(origin.key)))
        ):
            target = origin
        else:
            target = self.choose_target(candidates, require_key=require_key)
        if isinstance(node, KeyNode) and require_key and target.field is not None:
            raise AccessError("a hash field can't hold a key of this type")
        if isinstance(node, KeyNode) and not require_key and not node.is_editable:
            raise AccessError("only strings and hash fields can be replaced by a file; remove it first")
        removal = self._overlay.pending_removals.get(target)
        if removal is not None:
            return target, removal.save_precondition
        return target, Precondition.absent() if node is None else Precondition.unconditional()


def is_backup_name(path: bytes, backup: bytes) -> bool:
    """Return whether a path is another one with an addition to its name.

    So `sed -i.bak` names what it replaces.
    """
    directory, _, name = path.rpartition(b"/")
    backup_directory, _, backup_name = backup.rpartition(b"/")
    return directory == backup_directory and (backup_name.startswith(name) or backup_name.endswith(name))


def reject_junk_name(decision: JunkDecision) -> None:
    """Raise CrossDeviceError for a junk name of a source that memory can't hold.

    After that error mv(1) copies the source. Such sources are directories of keys and keys that are not editable, for
    example lists. A companion name is allowed for them, as it is junk only beside the file that it belongs to.
    """
    if decision.is_junk and (decision.rule is None or decision.rule.kind is not JunkKind.COMPANION):
        raise CrossDeviceError("the new path is junk, which is not in Redis: the file can only be copied there")


class _DataNames:
    """The names in one directory that are data, as a container."""

    def __init__(self, placement: NamePlacement, parent: bytes) -> None:
        self._placement = placement
        self._prefix = parent + b"/" if parent else b""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self._placement.is_data(self._prefix + name)

"""Commits delayed changes, which are pending removals and held files, when due."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.vfs.directory_retention import DirectoryRetention
from redisfuse.vfs.memory_inodes import Origin
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.staged_replace import PendingRemoval

if TYPE_CHECKING:
    from redisfuse.vfs.coherence import Coherence

log = logging.getLogger(__name__)


class DelayedChanges:
    """The delayed changes of a mount.

    Thread-safe; the table of pending removals serializes their commits.
    """

    def __init__(
        self,
        overlay: Overlay,
        key_writer: KeyWriter,
        retention: DirectoryRetention,
        coherence: Coherence,
    ) -> None:
        self._overlay = overlay
        self._key_writer = key_writer
        self._retention = retention
        self._coherence = coherence

    def commit_expired(self, now: float | None, key_prefix: bytes = b"") -> None:
        """Commit the delayed changes that are due and whose keys have a prefix.

        Errors are logged. `now` is a time of the clock of the mount; None: all of them.
        """
        remaining: list[bytes] = []
        with self._overlay.pending_removals.take_expired(now, key_prefix) as due:
            for removal in due:
                if not self._commit_removal(removal):
                    remaining.append(removal.target.key)
        if remaining:
            self._coherence.keys_changed(remaining)
        self._overlay.open_files.commit_expired_holds(now, key_prefix)

    def _commit_removal(self, removal: PendingRemoval) -> bool:
        """Remove a key or field; return whether it is gone."""
        path = os.fsdecode(removal.path)
        try:
            removed = self._key_writer.remove([removal.target], path=removal.path, precondition=removal.precondition)
        except NotFoundError:
            log.debug("%s was to be removed, but another client removed it first", path)
        except ConflictError as error:
            log.warning("%s was renamed or unlinked here, but stays in Redis: %s", path, error)
            return False
        except RedisFuseError as error:
            log.error("%s could not be removed and is still in Redis: %s", path, error)
            return False
        else:
            self._retention.keep_parent_of(removal.target)
            if removal.copy_path is not None:
                expiry = Expiry.from_state(removed[removal.target])  # for its copy, which may be moved back
                self._overlay.memory_fs.set_origin(removal.copy_path, Origin(removal.target, expiry))
                log.warning(
                    "%s was renamed to the junk name %s: the key is removed; its content is in this mount's scratch "
                    "memory until the unmount, and in the journal (redisfuse log, redisfuse rollback)",
                    path,
                    os.fsdecode(removal.copy_path),
                )
        return True

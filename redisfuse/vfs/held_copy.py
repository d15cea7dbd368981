"""The copy in the journal of a held file, which is not in Redis yet.

What close(2) or fsync(2) of the file acknowledged is on this disk: if the process dies, recovery writes the copy
(docs/editing.md). The change by which the file is written replaces the copy, in the same transaction of the journal.

Threads: the lock of the open file is held around every call.
"""

from __future__ import annotations

import logging
import os

from redisfuse.errors import JournalError
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.key_writer import KeyWriter

log = logging.getLogger(__name__)


class HeldCopy:
    """The copy of one file; there is none until `record`."""

    def __init__(self, key_writer: KeyWriter) -> None:
        self._key_writer = key_writer
        self.change_id: int | None = None  # its row; a change that replaces it may have removed it
        self.is_current = False  # it has all that the file has

    def record(self, target: KeyRef, content: Blob, path: bytes, expiry: Expiry | None) -> None:
        """Journal the present content. Raises JournalError."""
        self.change_id = self._key_writer.record_held(
            target, content, path=path, expiry=expiry, supersedes=self.change_id
        )
        self.is_current = True

    def discard(self, path: bytes) -> None:
        """Remove the copy of a file that is gone, or is kept otherwise.

        Errors are logged.
        """
        if self.change_id is not None:
            try:
                self._key_writer.discard_held(self.change_id)
            except JournalError as error:
                log.error("%s: its copy could not be removed from the journal: %s", os.fsdecode(path), error)
        self.forget()

    def forget(self) -> None:
        """Note that a change has replaced the copy."""
        self.change_id, self.is_current = None, False

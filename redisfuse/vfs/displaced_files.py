"""Open files that libfuse hid: unlinked, or about to be replaced by a rename.

At first it is not known which of the two.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from redisfuse.paths.grammar import KeyRef
from redisfuse.vfs.open_file import AttachmentState, OpenFile
from redisfuse.vfs.open_file_table import OpenFileTable

DISPLACED_TTL_SECONDS = 60.0  # after that a displaced file counts as unlinked, not as about to be replaced


class _DisplacedFile(NamedTuple):
    file: OpenFile
    state: AttachmentState | None  # to reattach it; None: it was not detached, as its handles have their own content
    displaced_at: float  # time.monotonic()

    @property
    def is_editable(self) -> bool:
        return self.state is not None


class DisplacedFiles:
    """The displaced files of a mount by target.

    Thread-safe: each access to the table is atomic. Lock order: `displace` and `restore` take the file's lock.
    """

    def __init__(self, open_files: OpenFileTable) -> None:
        self._open_files = open_files
        self._by_target: dict[KeyRef, _DisplacedFile] = {}

    def displace(self, target: KeyRef, file: OpenFile, *, is_editable: bool) -> None:
        """Detach a file from its target, so that `restore` can undo it.

        Raises what reading the file raises.
        """
        now = time.monotonic()
        for other, displaced in list(self._by_target.items()):
            if now - displaced.displaced_at > DISPLACED_TTL_SECONDS:
                self._by_target.pop(other, None)
        state = None
        if is_editable:
            with file.lock:
                state = file.attachment_state
                self._open_files.detach(file, file.copy_for_handles())
        self._by_target[target] = _DisplacedFile(file, state, now)

    def restore(self, target: KeyRef) -> bool:
        """Attach the displaced file of a target again; return False if there is none."""
        displaced = self._by_target.pop(target, None)
        if displaced is None:
            return False
        if displaced.state is not None:
            self._open_files.reattach(displaced.file, displaced.state)
        return True

    def discard(self, target: KeyRef) -> None:
        """Drop the entry of a target: its file was replaced or unlinked."""
        self._by_target.pop(target, None)

    def include_uneditable(self, targets: Iterable[KeyRef]) -> bool:
        """Return whether a key that can't be edited was displaced from a target."""
        displaced = map(self._by_target.get, targets)
        return any(entry is not None and not entry.is_editable for entry in displaced)

"""The state of the writes of one handle.

All handles of an open file share its edits, and a commit contains the edits of all of them. So the close of a handle
must report the commit that contained *its* writes, even if another handle's close made that commit.
"""

from __future__ import annotations

from redisfuse.errors import OutcomeUnknownError, RedisFuseError


class WriteTracker:
    """The writes of one handle since the last commit, and the errors that it reports.

    Guarded by the lock of the `OpenFile`.
    """

    def __init__(self, *, has_unsaved: bool) -> None:
        self._has_unsaved = has_unsaved
        self._is_in_doubt = False  # writes are in a commit whose outcome is unknown
        self._refusal: RedisFuseError | None = None  # why further writes are refused
        self._loss: RedisFuseError | None = None  # why writes were discarded

    @property
    def has_unsaved(self) -> bool:
        """Whether it has writes that are neither saved nor discarded."""
        return self._has_unsaved or self._is_in_doubt

    @property
    def has_loss(self) -> bool:
        """Whether writes were discarded."""
        return self._loss is not None

    def mark_written(self) -> None:
        """Note a write or a truncation."""
        self._has_unsaved = True

    def mark_saved(self) -> None:
        """Note a commit of all edits."""
        self._has_unsaved = self._is_in_doubt = False

    def mark_in_doubt(self) -> None:
        """Note a commit of all edits whose outcome is unknown."""
        self._is_in_doubt = self.has_unsaved
        self._has_unsaved = False

    def settle_in_doubt(self, *, was_applied: bool) -> None:
        """Note the outcome of the commit that was in doubt."""
        self._has_unsaved = self._has_unsaved or (self._is_in_doubt and not was_applied)
        self._is_in_doubt = False

    def mark_refused(self, error: RedisFuseError) -> None:
        """Note that all edits were discarded.

        Further writes are refused, too: the program may have read what was discarded, or what another client has
        replaced.
        """
        if self._is_in_doubt:
            self._loss = OutcomeUnknownError(f"an earlier save may have been applied; the next one failed: {error}")
        elif self._has_unsaved:
            self._loss = error
        self._has_unsaved = self._is_in_doubt = False
        self._refusal = error

    def check_may_write(self) -> None:
        """Raise the error of refused edits again until the file is reopened.

        Otherwise a later success would look like a save.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    def check_nothing_lost(self) -> None:
        """Raise the error with which writes of this handle were discarded."""
        if self._loss is not None:
            raise self._loss.with_traceback(None)

"""The handles that are attached to one open file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from redisfuse.errors import RedisFuseError
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.growing_content import inline_bytes
from redisfuse.vfs.write_tracker import WriteTracker


class AttachedHandle(Protocol):
    """A handle of an open file."""

    @property
    def is_reader(self) -> bool:
        """Whether it was opened for reading."""
        ...

    @property
    def is_writer(self) -> bool:
        """Whether it was opened for writing."""
        ...

    @property
    def opener_tid(self) -> int:
        """The thread that opened it; 0 if unknown."""
        ...

    def private_view(self) -> FileContent | None:
        """Return the content that only this handle reads; None: the current one."""
        ...

    @property
    def writes(self) -> WriteTracker:
        """The state of the writes through it."""
        ...


class AttachedHandles:
    """The handles of one open file.

    Adding and discarding are atomic; callers of the other methods hold the file's lock.
    """

    def __init__(self) -> None:
        self._handles: set[AttachedHandle] = set()

    def add(self, handle: AttachedHandle) -> None:
        """Attach a handle."""
        self._handles.add(handle)

    def discard(self, handle: AttachedHandle) -> None:
        """Detach a handle."""
        self._handles.discard(handle)

    def opener_tids(self) -> set[int]:
        """Return the threads that opened them."""
        return {handle.opener_tid for handle in list(self._handles)}

    def mark_written(self) -> None:
        """Note a write that no handle made, as one of each writer."""
        for handle in list(self._handles):
            if handle.is_writer:
                handle.writes.mark_written()

    def mark_saved(self) -> None:
        """Note a commit of all edits."""
        for handle in list(self._handles):
            handle.writes.mark_saved()

    def mark_in_doubt(self) -> None:
        """Note a commit of all edits whose outcome is unknown."""
        for handle in list(self._handles):
            handle.writes.mark_in_doubt()

    def settle_in_doubt(self, *, was_applied: bool) -> None:
        """Note the outcome of the commit that was in doubt."""
        for handle in list(self._handles):
            handle.writes.settle_in_doubt(was_applied=was_applied)

    def mark_refused(self, error: RedisFuseError) -> None:
        """Note that all edits were discarded."""
        for handle in list(self._handles):
            handle.writes.mark_refused(error)

    def have_ranged_view(self) -> bool:
        """Return whether a handle reads a private content that is not in memory."""
        return any(inline_bytes(view) is None for view in self._private_views())

    def _private_views(self) -> Iterator[FileContent]:
        return (view for handle in list(self._handles) if (view := handle.private_view()) is not None)

    def readers_share_content(self, newest: AttachedHandle) -> bool:
        """Return whether the newest handle and all other readers read the same bytes."""
        newest_view = newest.private_view()
        return all(
            _is_same_content(handle.private_view(), newest_view)
            for handle in list(self._handles)
            if handle.is_reader and handle is not newest
        )


def _is_same_content(pinned: FileContent | None, current: FileContent | None) -> bool:
    """Return whether a handle with the private view `pinned` reads `current`."""
    if pinned is None or pinned is current:
        return True
    data = inline_bytes(pinned)
    return data is not None and data == inline_bytes(current)

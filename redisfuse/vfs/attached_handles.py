"""The handles that are attached to one open file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from redisfuse.errors import ConflictError
from redisfuse.vfs.content_types import FileContent
from redisfuse.vfs.growing_content import inline_bytes


class AttachedHandle(Protocol):
    """A handle of an open file."""

    @property
    def is_reader(self) -> bool:
        """Whether it was opened for reading."""
        ...

    @property
    def opener_tid(self) -> int:
        """The thread that opened it; 0 if unknown."""
        ...

    def private_view(self) -> FileContent | None:
        """Return the content that only this handle reads; None: the current one."""
        ...

    def mark_conflicted(self, error: ConflictError) -> None:
        """Note that the edits made through this handle were refused."""
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

    def mark_conflicted(self, error: ConflictError) -> None:
        """Mark all handles as conflicted."""
        for handle in list(self._handles):
            handle.mark_conflicted(error)

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

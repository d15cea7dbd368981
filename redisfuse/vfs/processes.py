"""The programs that use the tree."""

from __future__ import annotations

from typing import Protocol


class Processes(Protocol):
    """The processes of this machine, which `fuse/procfs.py` implements."""

    def is_same_process(self, thread_id: int, other_id: int, /) -> bool:
        """Return whether two threads are, or were a moment ago, of one process."""
        ...

"""The programs that use the tree."""

from __future__ import annotations

from typing import Protocol


class Processes(Protocol):
    """The processes of this machine, which `mount/procfs.py` implements."""

    def now(self) -> float:
        """Return the seconds since the boot."""
        ...

    def is_same_process(self, thread_id: int, seen_at: float, other_id: int, /) -> bool:
        """Return whether two threads are of one process.

        The first was seen at a time of `now`; a later thread of the same number is another one.
        """
        ...

"""The mount around the tree, as the requests see it."""

from __future__ import annotations

from typing import Protocol


class MountControl(Protocol):
    """The mount: its start and end, its refresh file, and its status."""

    def start(self) -> None:
        """Start the threads that serve the mount: it answers requests now."""

    def stop(self) -> None:
        """Commit what is left and stop: the mount has ended."""

    def refresh(self) -> None:
        """Scan the keyspace again."""

    def encode_status(self) -> bytes:
        """Return the status as JSON."""

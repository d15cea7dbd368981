"""The protocol by which requests control their mount."""

from __future__ import annotations

from typing import Protocol


class MountControl(Protocol):
    """The mount: its start and end, its refresh file, and its status."""

    def start(self) -> None:
        """Start the threads of the mount, which answers requests from now on."""

    def stop(self) -> None:
        """Commit delayed changes and stop the threads: the mount has ended."""

    def refresh(self) -> None:
        """Scan the keyspace again."""

    def encode_status(self) -> bytes:
        """Return the status as JSON."""

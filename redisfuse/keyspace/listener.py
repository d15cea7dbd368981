"""The protocols by which changes of keys are announced.

One listener is for the index and the caches, one for the writers. `vfs/coherence.py` implements both for a mount. The
lower rooms know only these protocols.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol


class ChangeListener(Protocol):
    """Receives what the keyspace monitor learns.

    Called from its threads, without any of its locks held. For each change, `keys_touched` comes first, before the keys
    have another version, so that nothing caches their former bytes under it. `keys_changed` follows within a fraction
    of a second. In the same way `all_touched` precedes `reset` where any key may have changed.
    """

    def keys_touched(self, keys: Collection[bytes]) -> None:
        """Drop what is cached of these keys: the server has announced a change."""

    def keys_changed(self, keys: Collection[bytes]) -> None:
        """Follow a change of these keys: the index has been updated."""

    def all_touched(self) -> None:
        """Drop what is cached of any key."""

    def reset(self) -> None:
        """Drop everything cached: anything may have changed.

        The index may no longer be ready or coherent.
        """

    def state_changed(self) -> None:
        """Check `is_coherent` and `is_ready` again: they may have become true."""

    def no_key_expires(self) -> None:
        """Note that none of the keys announced so far has a time to live."""


class Freshness(Protocol):
    """How long cached metadata and contents are valid."""

    def max_age(self) -> float:
        """Return the seconds that an entry is valid.

        math.inf while every change is announced.
        """

    def may_expire(self) -> bool:
        """Return whether any key of the database may have a time to live."""

    def expires_at(self, key: bytes, deadline: float) -> None:
        """Schedule the expiry of a cached key at `deadline` (time.monotonic()).

        The server announces an expiry late.
        """


class WriteListener(Protocol):
    """Receives the changes that this process makes."""

    def keys_will_change(self, keys: Collection[bytes]) -> None:
        """Expect changes of these keys: the caller is about to write them."""

    def keys_written(self, keys: Mapping[bytes, bool | None]) -> None:
        """Follow a write of these keys, without waiting for the server's announcement.

        The value says whether the key exists now; None: it must be looked up.
        """


class NullListener:
    """A listener that ignores everything, for commands without a mount.

    As a Freshness it trusts nothing.
    """

    def keys_touched(self, keys: Collection[bytes]) -> None:
        """Ignore."""

    def keys_changed(self, keys: Collection[bytes]) -> None:
        """Ignore."""

    def keys_will_change(self, keys: Collection[bytes]) -> None:
        """Ignore."""

    def keys_written(self, keys: Mapping[bytes, bool | None]) -> None:
        """Ignore."""

    def all_touched(self) -> None:
        """Ignore."""

    def reset(self) -> None:
        """Ignore."""

    def state_changed(self) -> None:
        """Ignore."""

    def no_key_expires(self) -> None:
        """Ignore."""

    def max_age(self) -> float:
        """Return 0: nothing announces changes."""
        return 0.0

    def may_expire(self) -> bool:
        """Return True: this is unknown."""
        return True

    def expires_at(self, key: bytes, deadline: float) -> None:
        """Ignore."""

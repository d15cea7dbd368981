"""Keys of a cluster that are between two nodes, as its replicas show them.

While a slot moves key by key, the replica of its owner has lost the keys that have moved, and the replica of the new
node refuses to show them until it owns the slot. So a key that the owner's replica doesn't have is moving if another
node's replica has announced it. As that announcement may arrive later, a listed key counts as absent only if it has
been so for a moment. Replicas of Valkey 8 and newer redirect to each other (ASK), so they need none of this.

Thread-safe. The lock is a leaf; the index is queried while it is not held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, Protocol

from redisfuse.client.channel import RedisCommand
from redisfuse.client.command_keys import command_key
from redisfuse.client.slot_map import SlotMap, key_slot, select_keys
from redisfuse.errors import TryAgainError

SETTLING_SECONDS = 0.25
"""How long a listed key is missing before it counts as absent."""

LATE_SECONDS = 5.0
"""How long the announcements of a slot's former owner are ignored: they may be late."""

MAX_TRANSIT_SECONDS = 600.0
"""How long a key is considered to be moving. A move that is given up is announced by no node."""

_MAX_KEYS = 200_000  # that are remembered; more make all keys be scanned again after the next move
_ABSENT_REPLIES: tuple[Any, ...] = (None, 0, -2, b"", b"none", [], [b"0", []])

Absence = Literal["absent", "unsettled", "moving"]


class KeyNames(Protocol):
    """The index."""

    def __contains__(self, key: bytes) -> bool:
        """Return whether a key is listed."""


class KeyTransit:
    """The keys that another node than their slot's owner has named."""

    def __init__(self, find_owner: Callable[[bytes], str | None]) -> None:
        """Create a record; `find_owner` returns the node that owns a key's slot now."""
        self._find_owner = find_owner
        self.listed: KeyNames = frozenset()  # the index; a key that is not in it is absent at once
        self._lock = threading.Lock()  # guards all below
        self._announced: dict[bytes, tuple[str, float]] = {}  # the node that announced a key, and when
        self._scanned: set[bytes] = set()  # returned by a scan of another node than the owner; often mere leftovers
        self._absent_since: dict[bytes, float] = {}
        self._former_owners: dict[int, tuple[str, float]] = {}  # by slot, and until when announcements are ignored
        self._is_overflowing = False

    def record_announced(self, keys: Collection[bytes], node_id: str) -> None:
        """Note that a node that does not own the slots of these keys has announced them."""
        now = time.monotonic()
        with self._lock:
            for key in keys:
                former = self._former_owners.get(key_slot(key))
                if former is None or former[0] != node_id or former[1] < now:
                    self._announced[key] = node_id, now
            self._is_overflowing = self._is_overflowing or len(self._announced) > _MAX_KEYS
            while len(self._announced) > _MAX_KEYS:
                del self._announced[next(iter(self._announced))]

    def record_scanned(self, keys: Iterable[bytes]) -> None:
        """Note that a node that does not own the slots of these keys has them."""
        with self._lock:
            self._scanned.update(keys)
            if len(self._scanned) > _MAX_KEYS:
                self._scanned.clear()
                self._is_overflowing = True

    def record_owners(self, before: SlotMap, after: SlotMap) -> None:
        """Note which nodes have just lost slots."""
        until = time.monotonic() + LATE_SECONDS
        with self._lock:
            for slot, (old, new) in enumerate(zip(before.owners, after.owners, strict=True)):
                if old != new and old is not None:
                    self._former_owners[slot] = old, until

    def take_moved(self, slots: bytes) -> tuple[list[bytes], bool]:
        """Return the recorded keys of slots that have moved, and forget them.

        `slots` has a byte for each slot. Also returns whether keys are missing, so that a scan is necessary.
        """
        with self._lock:
            moved = select_keys([*self._announced, *self._scanned], slots)
            for key in moved:
                self._announced.pop(key, None)
            self._scanned.difference_update(moved)
            is_incomplete, self._is_overflowing = self._is_overflowing, False
            return moved, is_incomplete

    def take_expired(self) -> list[bytes]:
        """Return the keys that have been moving for too long, and forget them."""
        now = time.monotonic()
        with self._lock:
            expired = [key for key, (_, at) in self._announced.items() if at < now - MAX_TRANSIT_SECONDS]
            for key in expired:
                del self._announced[key]
            for key in [key for key, since in self._absent_since.items() if since < now - 8 * SETTLING_SECONDS]:
                del self._absent_since[key]
            return expired

    def revise(self, commands: Sequence[RedisCommand], positions: Iterable[int], replies: list[Any]) -> None:
        """Replace the replies that make a key seem absent that may be moving.

        EXISTS finds it; all other commands fail with TryAgainError.
        """
        for position in positions:
            reply, command = replies[position], commands[position]
            asks_existence = command[0] in (b"TYPE", b"EXISTS")
            key = command_key(command)
            if key is None or not (asks_existence or self._announced):
                continue
            if reply not in _ABSENT_REPLIES:
                if asks_existence and (self._announced or self._absent_since):
                    self._record_present(key, reply)
                continue
            absence = self._judge(key) if asks_existence else "moving" if self._is_moving(key) else "absent"
            if absence == "moving" and command[0] == b"EXISTS":
                replies[position] = 1
            elif absence != "absent":
                replies[position] = TryAgainError("the key is moving to another node of the cluster; try again later")

    def _record_present(self, key: bytes, reply: Any) -> None:
        if isinstance(reply, bytes | int):
            with self._lock:
                self._announced.pop(key, None)
                self._absent_since.pop(key, None)

    def _is_moving(self, key: bytes) -> bool:
        announced = self._announced.get(key)
        return announced is not None and announced[0] != self._find_owner(key)

    def _judge(self, key: bytes) -> Absence:
        if self._is_moving(key):
            return "moving"
        if key not in self.listed:
            return "absent"
        now = time.monotonic()
        with self._lock:
            return "unsettled" if now - self._absent_since.setdefault(key, now) < SETTLING_SECONDS else "absent"

"""Keys of a cluster that are between two nodes, as its replicas show them.

While a slot moves key by key, the replica of its owner has lost the keys that have moved, and the replica of the new
node refuses to show them until it owns the slot. So a key that the owner's replica doesn't have is moving if another
node's replica has announced it. As that announcement may arrive later, a listed key counts as absent only if it has
been so for a moment. Replicas of Valkey 8 and newer redirect to each other (ASK), so they need none of this.

A key that had moved before the mount began was announced to no one: a scan finds it at the new node, as it finds mere
leftovers. It counts as moving once that node announces a listed key of the same slot. No replica knows that a move was
given up (CLUSTER SETSLOT STABLE). It shows when a key that had moved is created at the owner again, which a moving
slot does not allow; otherwise keys count as moving until nothing of their slot has moved for `MAX_TRANSIT_SECONDS`.

Thread-safe. The lock is a leaf; the index is queried while it is not held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
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
"""How long a slot is considered to be moving since a key of it was announced."""

STALE_REPLY_SECONDS = 5.0
"""How much later than others a reply may be processed: one that shows a key for longer than that is a newer one."""

_MAX_KEYS = 200_000  # that are remembered; more make all keys be scanned again after the next move
_ABSENT_REPLIES: tuple[Any, ...] = (None, 0, -2, b"", b"none", [], [b"0", []])

Absence = Literal["absent", "unsettled", "moving"]


class KeyNames(Protocol):
    """The index."""

    def __contains__(self, key: bytes) -> bool:
        """Return whether a key is listed."""


@dataclass(slots=True)
class _SlotMove:
    """A slot of which another node than its owner has announced keys."""

    node_id: str
    active_at: float  # of the last announcement
    is_certain: bool = False  # one of the keys was listed, so it was the owner's before


class KeyTransit:
    """The keys that another node than their slot's owner has named."""

    def __init__(self, find_owner: Callable[[bytes], str | None]) -> None:
        """Create a record; `find_owner` returns the node that owns a key's slot now."""
        self._find_owner = find_owner
        self.listed: KeyNames = frozenset()  # the index; a key that is not in it is absent at once
        self._lock = threading.Lock()  # guards all below
        self._announced: dict[bytes, str] = {}  # the node that announced a key
        self._missing_since: dict[bytes, float] = {}  # announced keys that the owner's replica doesn't have
        self._moves: dict[int, _SlotMove] = {}  # by slot
        self._given_up: list[bytes] = []  # keys of slots that are not moving any more
        # By slot, what a scan of another node than the owner returned, with the node; often mere leftovers.
        self._scanned: dict[int, dict[bytes, str]] = {}
        self._scanned_count = 0
        self._absent_since: dict[bytes, float] = {}
        self._former_owners: dict[int, tuple[str, float]] = {}  # by slot, and until when announcements are ignored
        self._is_overflowing = False

    def record_announced(self, keys: Collection[bytes], node_id: str) -> list[bytes]:
        """Note that a node that does not own the slots of these keys has announced them.

        Returns the keys that it has had for longer, and that are moving, as this shows.
        """
        now = time.monotonic()
        listed = {key for key in keys if key in self.listed}
        moving: list[bytes] = []
        with self._lock:
            for key in keys:
                slot = key_slot(key)
                former = self._former_owners.get(slot)
                if former is not None and former[0] == node_id and former[1] >= now:
                    continue
                self._announced[key] = node_id
                move = self._moves.get(slot)
                if move is None or move.node_id != node_id:
                    move = self._moves[slot] = _SlotMove(node_id, now)
                move.active_at = now
                if key in listed and not move.is_certain:
                    move.is_certain = True
                    moving += [each for each, node in self._scanned.get(slot, {}).items() if node == node_id]
            self._announce(dict.fromkeys(moving, node_id))
        return moving

    def _announce(self, keys: dict[bytes, str]) -> None:
        self._announced |= keys
        self._is_overflowing = self._is_overflowing or len(self._announced) > _MAX_KEYS
        while len(self._announced) > _MAX_KEYS:
            self._forget(next(iter(self._announced)))

    def _forget(self, key: bytes) -> None:
        self._announced.pop(key, None)
        self._missing_since.pop(key, None)

    def record_scanned(self, keys: Iterable[bytes], node_id: str) -> None:
        """Note that a node that does not own the slots of these keys has them."""
        with self._lock:
            for key in keys:
                slot = key_slot(key)
                known = self._scanned.setdefault(slot, {})
                self._scanned_count += key not in known
                known[key] = node_id
                move = self._moves.get(slot)
                if move is not None and move.is_certain and move.node_id == node_id:
                    self._announce({key: node_id})
            if self._scanned_count > _MAX_KEYS:
                self._scanned.clear()
                self._scanned_count = 0
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
            scanned = [slot for slot in self._scanned if slots[slot]]
            moved = select_keys(list(self._announced), slots)
            for key in moved:
                self._forget(key)
            for slot in scanned:
                keys = self._scanned.pop(slot)
                self._scanned_count -= len(keys)
                moved += keys
            for slot in [slot for slot in self._moves if slots[slot]]:
                del self._moves[slot]
            is_incomplete, self._is_overflowing = self._is_overflowing, False
            return moved, is_incomplete

    def take_expired(self) -> list[bytes]:
        """Return and forget the keys that have ceased to count as moving."""
        now = time.monotonic()
        with self._lock:
            for slot in [slot for slot, move in self._moves.items() if move.active_at < now - MAX_TRANSIT_SECONDS]:
                self._give_up(slot)
            expired, self._given_up = self._given_up, []
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
                since = self._missing_since.get(key)
                self._forget(key)
                self._absent_since.pop(key, None)
                if since is not None and since < time.monotonic() - STALE_REPLY_SECONDS:
                    self._give_up(key_slot(key))

    def _give_up(self, slot: int) -> None:
        """Consider a slot not to be moving. The lock is held."""
        self._moves.pop(slot, None)
        keys = [key for key in self._announced if key_slot(key) == slot]
        for key in keys:
            self._forget(key)
        self._given_up += keys

    def _is_moving(self, key: bytes) -> bool:
        announced = self._announced.get(key)
        return announced is not None and announced != self._find_owner(key)

    def _record_missing(self, key: bytes) -> None:
        with self._lock:
            if key in self._announced:
                self._missing_since.setdefault(key, time.monotonic())

    def _judge(self, key: bytes) -> Absence:
        if self._is_moving(key):
            self._record_missing(key)
            return "moving"
        if key not in self.listed:
            return "absent"
        now = time.monotonic()
        with self._lock:
            return "unsettled" if now - self._absent_since.setdefault(key, now) < SETTLING_SECONDS else "absent"

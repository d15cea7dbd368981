"""Keys that were renamed or unlinked in a way that looks like the first half of an editor's save (DESIGN.md 7).

A parked key is still in Redis, but not in the tree. Either something new is saved at its path (then that is one update
of the key), or its time passes and the removal becomes a change of its own. If the process dies, the key is there.

Whoever is about to put something at a path claims its targets first: what is claimed is not removed, and what is being
removed can't be claimed until that is done. Times are of a `PausableClock`.

Lock order: the lock here is held only to look into the table, or to wait for a removal, whose thread needs no claim.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition


class PausableClock:
    """Seconds that pass only as somebody says so: a process that was stopped for a while is not late afterwards."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        """So much later."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class PendingRemoval:
    """One parked key or field."""

    target: KeyRef
    path: bytes
    precondition: (
        Precondition  # what it held when it was parked: if that changes, neither update nor removal may go through
    )
    deadline: float  # by the clock, in seconds
    copy_path: bytes | None  # path in scratch where its content is now; None: the program unlinked it while it was open


class PendingRemovals:
    """The table of parked targets. Thread-safe."""

    def __init__(self, clock: PausableClock, wake_event: threading.Event) -> None:
        self._clock = clock
        self._wake_event = wake_event  # set whenever something begins to wait for its time
        self._condition = threading.Condition()
        self._pending: dict[KeyRef, PendingRemoval] = {}
        self._removing: set[KeyRef] = set()  # being removed from Redis at this moment
        self._claims: Counter[KeyRef] = Counter()

    def schedule(
        self, target: KeyRef, path: bytes, precondition: Precondition, delay_seconds: float, copy_path: bytes | None
    ) -> None:
        """Park a target for at most `seconds`."""
        self.add(PendingRemoval(target, path, precondition, self._clock.now + delay_seconds, copy_path))

    def __contains__(self, target: KeyRef) -> bool:
        return target in self._pending or target in self._removing

    def __bool__(self) -> bool:
        return bool(self._pending)

    def get(self, target: KeyRef) -> PendingRemoval | None:
        """What is parked at a target."""
        return self._pending.get(target)

    @contextmanager
    def claim(self, targets: Collection[KeyRef]) -> Iterator[None]:
        """Nothing of these is removed while the body runs; waits for removals that have begun."""
        with self._condition:
            self._condition.wait_for(lambda: self._removing.isdisjoint(targets))
            self._claims.update(targets)
        try:
            yield
        finally:
            with self._condition:
                self._claims -= Counter(targets)

    def cancel(self, target: KeyRef) -> PendingRemoval | None:
        """Take a target out, because something new has come to its place or comes now."""
        with self._condition:
            return self._pending.pop(target, None)

    def add(self, removal: PendingRemoval) -> None:
        """Park again what was taken: it waits on for its time."""
        with self._condition:
            self._pending[removal.target] = removal
        self._wake_event.set()

    def expire_now(self, removal: PendingRemoval) -> None:
        """What was to replace it is gone: it is due now."""
        self.add(replace(removal, deadline=self._clock.now))

    @contextmanager
    def take_expired(self, now: float | None, key_prefix: bytes = b"") -> Iterator[list[PendingRemoval]]:
        """Those whose time has come (`now` None: all) of keys that begin so, out of the table; the body removes them.

        Until its end they stay out of the tree, and nobody can claim them.
        """
        with self._condition:
            due = [
                each
                for each in self._pending.values()
                if (now is None or each.deadline <= now)
                and each.target.key.startswith(key_prefix)
                and not self._claims[each.target]
            ]
            for each in due:
                del self._pending[each.target]
            self._removing.update(each.target for each in due)
        try:
            yield due
        finally:
            with self._condition:
                self._removing.difference_update(each.target for each in due)
                self._condition.notify_all()

    def has_below(self, key_prefix: bytes) -> bool:
        """Whether a parked key lies below a directory, so that it is not gone yet."""
        with self._condition:
            return any(target.key.startswith(key_prefix) for target in self._pending)

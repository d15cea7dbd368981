"""Keys that were renamed or unlinked in a way that looks like the first half of an editor's save (DESIGN.md 7).

A parked key is still in Redis, but not in the tree. Either something new is saved at its path (then that is one update
of the key), or its time passes and the removal becomes a change of its own. If the process dies, the key is there.

Whoever is about to put something at a path claims its targets first: what is claimed is not removed, and what is being
removed can't be claimed until that is done. Times are of a `PatientClock`.

Lock order: the lock here is held only to look into the table, or to wait for a removal, whose thread needs no claim.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redisfuse.paths.grammar import Target
from redisfuse.transactions.precondition import Basis


class PatientClock:
    """Seconds that pass only as somebody says so: a process that was stopped for a while is not late afterwards."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        """So much later."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class Parked:
    """One parked key or field."""

    target: Target
    path: bytes
    basis: Basis  # what it held when it was parked: if that changes, neither update nor removal may go through
    until: float  # by the clock, in seconds
    copy: bytes | None  # path in scratch where its content is now; None: the program unlinked it while it was open


class Parking:
    """The table of parked targets. Thread-safe."""

    def __init__(self, clock: PatientClock, wake: threading.Event) -> None:
        self._clock = clock
        self._wake = wake  # set whenever something begins to wait for its time
        self._changed = threading.Condition()
        self._parked: dict[Target, Parked] = {}
        self._leaving: set[Target] = set()  # being removed from Redis at this moment
        self._claims: Counter[Target] = Counter()

    def park(self, target: Target, path: bytes, basis: Basis, seconds: float, copy: bytes | None) -> None:
        """Park a target for at most `seconds`."""
        self.put_back(Parked(target, path, basis, self._clock.now + seconds, copy))

    def __contains__(self, target: Target) -> bool:
        return target in self._parked or target in self._leaving

    def __bool__(self) -> bool:
        return bool(self._parked)

    def get(self, target: Target) -> Parked | None:
        """What is parked at a target."""
        return self._parked.get(target)

    @contextmanager
    def claimed(self, targets: Collection[Target]) -> Iterator[None]:
        """Nothing of these is removed while the body runs; waits for removals that have begun."""
        with self._changed:
            self._changed.wait_for(lambda: self._leaving.isdisjoint(targets))
            self._claims.update(targets)
        try:
            yield
        finally:
            with self._changed:
                self._claims -= Counter(targets)

    def take(self, target: Target) -> Parked | None:
        """Take a target out, because something new has come to its place or comes now."""
        with self._changed:
            return self._parked.pop(target, None)

    def put_back(self, parked: Parked) -> None:
        """Park again what was taken: it waits on for its time."""
        with self._changed:
            self._parked[parked.target] = parked
        self._wake.set()

    def hasten(self, parked: Parked) -> None:
        """What was to replace it is gone: it is due now."""
        self.put_back(replace(parked, until=self._clock.now))

    @contextmanager
    def due(self, now: float | None, prefix: bytes = b"") -> Iterator[list[Parked]]:
        """Those whose time has come (`now` None: all) of keys that begin so, out of the table; the body removes them.

        Until its end they stay out of the tree, and nobody can claim them.
        """
        with self._changed:
            due = [
                each
                for each in self._parked.values()
                if (now is None or each.until <= now)
                and each.target.key.startswith(prefix)
                and not self._claims[each.target]
            ]
            for each in due:
                del self._parked[each.target]
            self._leaving.update(each.target for each in due)
        try:
            yield due
        finally:
            with self._changed:
                self._leaving.difference_update(each.target for each in due)
                self._changed.notify_all()

    def in_directory(self, prefix: bytes) -> bool:
        """Whether a parked key lies below a directory, so that it is not gone yet."""
        with self._changed:
            return any(target.key.startswith(prefix) for target in self._parked)

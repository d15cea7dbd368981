"""Keys whose removal is delayed, as it may be the first half of a save.

See docs/editing.md. An editor that saves renames the old file to a backup name, or unlinks it, and creates a new one. A
key with a pending removal ("parked") is still in Redis, but not in the tree. Either new content is saved at its path,
which then is one update of the key, or its deadline passes and the removal becomes a change of its own. If the process
dies, the key is still in Redis.

A caller that is about to create or rename onto a path claims its targets first: a claimed target is not removed, and a
claim waits for a removal that has begun. Deadlines are times of a `PausableClock`.

Lock order: the lock here is a leaf. It is held only to access the table and, released by the condition, to wait for a
removal, whose thread needs no claim.
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
    """A clock that does not advance while the process is suspended.

    So no deadline passes meanwhile.
    """

    def __init__(self) -> None:
        self.now = 0.0  # seconds

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class PendingRemoval:
    """A key or field whose removal is pending."""

    target: KeyRef
    path: bytes
    precondition: Precondition  # its content when the removal was scheduled: if that has changed, it is not removed
    save_precondition: Precondition  # the state that new content may replace: what the program has read, or the same
    deadline: float  # seconds of the clock
    copy_path: bytes | None  # path of its copy in the memory filesystem; None: it was unlinked while it was open


class PendingRemovals:
    """The table of pending removals. Thread-safe."""

    def __init__(self, clock: PausableClock, wake_event: threading.Event) -> None:
        self._clock = clock
        self._wake_event = wake_event  # set whenever a deadline is added
        self._condition = threading.Condition()
        # Guarded by `_condition`; single look-ups don't need it:
        self._pending: dict[KeyRef, PendingRemoval] = {}
        self._removing: set[KeyRef] = set()  # their removals are being committed
        self._claims: Counter[KeyRef] = Counter()

    def schedule(
        self,
        target: KeyRef,
        path: bytes,
        precondition: Precondition,
        delay_seconds: float,
        copy_path: bytes | None,
        *,
        save_precondition: Precondition | None = None,
    ) -> None:
        """Add the removal of a target, due in `delay_seconds`.

        `save_precondition`: None is the precondition itself.
        """
        deadline = self._clock.now + delay_seconds
        self.add(PendingRemoval(target, path, precondition, save_precondition or precondition, deadline, copy_path))

    def __contains__(self, target: KeyRef) -> bool:
        return target in self._pending or target in self._removing

    def __bool__(self) -> bool:
        return bool(self._pending)

    def get(self, target: KeyRef) -> PendingRemoval | None:
        """Return the pending removal of a target."""
        return self._pending.get(target)

    @contextmanager
    def claim(self, targets: Collection[KeyRef]) -> Iterator[None]:
        """Prevent removals of these targets while the body runs.

        Waits for removals that have begun.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._removing.isdisjoint(targets))
            self._claims.update(targets)
        try:
            yield
        finally:
            with self._condition:
                self._claims -= Counter(targets)

    def cancel(self, target: KeyRef) -> PendingRemoval | None:
        """Remove and return the pending removal of a target that new content replaces."""
        with self._condition:
            return self._pending.pop(target, None)

    def follow_copy(self, old: bytes, new: bytes) -> None:
        """Follow the rename of a copy in the memory filesystem, or of a directory."""
        with self._condition:
            for target, removal in self._pending.items():
                path = removal.copy_path or b""
                if path == old or path.startswith(old + b"/"):
                    self._pending[target] = replace(removal, copy_path=new + path[len(old) :])

    def add(self, removal: PendingRemoval) -> None:
        """Add a pending removal with its own deadline."""
        with self._condition:
            self._pending[removal.target] = removal
        self._wake_event.set()

    @contextmanager
    def take_expired(self, now: float | None, key_prefix: bytes = b"") -> Iterator[list[PendingRemoval]]:
        """Take the removals that are due and whose keys have a prefix.

        They are due if their deadline is past at `now` (None: all). The body commits them. Until it ends they stay out
        of the tree, and a claim of them waits.
        """
        with self._condition:
            due = [
                removal
                for removal in self._pending.values()
                if (now is None or removal.deadline <= now)
                and removal.target.key.startswith(key_prefix)
                and not self._claims[removal.target]
            ]
            for removal in due:
                del self._pending[removal.target]
            self._removing.update(removal.target for removal in due)
        try:
            yield due
        finally:
            with self._condition:
                self._removing.difference_update(removal.target for removal in due)
                self._condition.notify_all()

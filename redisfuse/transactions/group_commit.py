"""Changes that arrive while another is on its way to the disk go on together: one reading, one fsync, one transaction.

A connection that watches keys is taken for as long as its fsync lasts, and there are few. So changes wait in one line,
and whoever is at its head does the work of all who have come by then (flat combining). One that comes alone waits for
nobody.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from redisfuse.transactions.mutation import PlanFunction
from redisfuse.transactions.state_reader import ReadRequest

MAX_REQUESTS_PER_BATCH = 64  # changes that go together
LEADER_WAIT_SECONDS = (
    0.0005  # seconds that a leader waits for those who went along last time: about what an fsync takes
)


def _create_acquired_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class CommitRequest:
    """One change to be made, and in the end its rows or its error."""

    reads: Sequence[ReadRequest]
    plan: PlanFunction
    change_ids: list[int] | None = None
    error: BaseException | None = None
    recorded_change_id: int | None = None  # its newest row, whatever became of it
    changed_keys: dict[bytes, bool | None] = field(default_factory=dict)  # for OnApplied: told by the thread that asked
    wakeup: threading.Lock = field(default_factory=_create_acquired_lock)  # opened once: it has its outcome, or leads
    is_leader: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether it has no outcome yet."""
        return self.change_ids is None and self.error is None

    @property
    def keys(self) -> set[bytes]:
        """The keys that it watches."""
        return {look.target.key for look in self.reads}

    def add_changed_keys(self, changed: Mapping[bytes, bool | None]) -> None:
        """Remember what was changed."""
        self.changed_keys.update(changed)


class CommitQueue:
    """Where requests wait. `work` settles every request that it is given, and does not raise."""

    def __init__(self, commit_batch: Callable[[list[CommitRequest]], None]) -> None:
        self._commit_batch = commit_batch
        self._request_queued = threading.Condition()  # its lock is held for a moment only
        self._queued: list[CommitRequest] = []
        self._has_leader = False
        self._last_batch_size = 1  # how many went together last time

    def submit(self, request: CommitRequest) -> None:
        """Return when the request has its outcome."""
        with self._request_queued:
            self._queued.append(request)
            request.is_leader = not self._has_leader
            self._has_leader = True
            self._request_queued.notify()
        if not request.is_leader:
            request.wakeup.acquire()
            if not request.is_leader:
                return
        company = self._take_batch(request)
        try:
            self._commit_batch(company)
        finally:
            self._promote_next_leader()
            for each in company:
                if each is not request:
                    each.wakeup.release()

    def _take_batch(self, leader: CommitRequest) -> list[CommitRequest]:
        """The leader and those who wait, in order; of two that concern one key only the first."""
        with self._request_queued:
            self._request_queued.wait_for(lambda: len(self._queued) >= self._last_batch_size, LEADER_WAIT_SECONDS)
            company, keys = [leader], set(leader.keys)
            for each in self._queued:
                if each is not leader and len(company) < MAX_REQUESTS_PER_BATCH and not keys & each.keys:
                    company.append(each)
                    keys |= each.keys
            self._queued = [each for each in self._queued if each not in company]
            self._last_batch_size = len(company)
        return company

    def _promote_next_leader(self) -> None:
        with self._request_queued:
            if not self._queued:
                self._has_leader = False
                return
            self._queued[0].is_leader = True
            self._queued[0].wakeup.release()

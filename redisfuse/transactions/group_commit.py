"""Group commit: concurrent operations share a read, an fsync and a transaction.

A channel that watches keys is occupied for the duration of the fsync, and there are few channels. So operations wait
in one queue, and the thread at its head, the leader, commits all that are queued by then (flat combining). A single
operation waits for nothing.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from redisfuse.journal.processes import CallingProcess
from redisfuse.transactions.mutation import ChangedKeys
from redisfuse.transactions.operation import Operation
from redisfuse.transactions.state_reader import ReadRequest

MAX_REQUESTS_PER_BATCH = 64
LEADER_WAIT_SECONDS = 0.0005  # how long a leader waits for as many requests as last time: about one fsync


def _create_acquired_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class CommitRequest:
    """An operation to be committed and, in the end, its change IDs or its error.

    One thread at a time uses it: the one that submitted it or, until `wakeup` is released, the leader.
    """

    operation: Operation
    process: CallingProcess | None = None  # that has asked for it
    reads: Sequence[ReadRequest] = field(init=False)
    change_ids: list[int] | None = None
    error: BaseException | None = None
    recorded_change_id: int | None = None  # its newest row, whatever the outcome
    changed_keys: ChangedKeys = field(default_factory=dict)
    wakeup: threading.Lock = field(default_factory=_create_acquired_lock)  # released once: it has an outcome, or leads
    is_leader: bool = False

    def __post_init__(self) -> None:
        self.reads = self.operation.reads()

    @property
    def is_pending(self) -> bool:
        """Whether it has no outcome yet."""
        return self.change_ids is None and self.error is None

    @property
    def keys(self) -> set[bytes]:
        """The keys that it watches."""
        return {request.target.key for request in self.reads}


class CommitQueue:
    """The queue of requests.

    Thread-safe; its lock is held only briefly, and no other lock is taken under it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all of the following
        self._queued: list[CommitRequest] = []
        self._has_leader = False
        self._last_batch_size = 1
        self._is_complete: threading.Lock | None = None  # released when as many are queued as last time

    def join(self, request: CommitRequest) -> list[CommitRequest]:
        """Queue the request, then wait until it has an outcome or is the leader.

        Returns the batch that the leader must commit (its own request first), after which it must call `finish`;
        or no requests, if another leader has committed this one.
        """
        with self._lock:
            self._queued.append(request)
            request.is_leader = not self._has_leader
            self._has_leader = True
            if self._is_complete is not None and len(self._queued) >= self._last_batch_size:
                self._is_complete.release()
                self._is_complete = None
        if not request.is_leader:
            request.wakeup.acquire()
            if not request.is_leader:
                return []
        return self._take_batch(request)

    def finish(self, batch: Sequence[CommitRequest]) -> None:
        """Make the next request the leader and wake the threads of this batch.

        The requests of the batch have their outcomes.
        """
        with self._lock:
            if self._queued:
                self._queued[0].is_leader = True
                self._queued[0].wakeup.release()
            else:
                self._has_leader = False
        for request in batch[1:]:
            request.wakeup.release()

    def _take_batch(self, leader: CommitRequest) -> list[CommitRequest]:
        """Dequeue the leader and the requests that can join it, in order.

        Of two requests that share a key only the first can.
        """
        if len(self._queued) < self._last_batch_size:
            self._wait_for_requests()
        with self._lock:
            if len(self._queued) == 1:
                self._queued, self._last_batch_size = [], 1
                return [leader]
            batch, keys = [leader], set(leader.keys)
            for request in self._queued:
                if request is not leader and len(batch) < MAX_REQUESTS_PER_BATCH and not keys & request.keys:
                    batch.append(request)
                    keys |= request.keys
            self._queued = [request for request in self._queued if request not in batch]
            self._last_batch_size = len(batch)
        return batch

    def _wait_for_requests(self) -> None:
        """Wait a moment for as many requests as last time."""
        with self._lock:
            if len(self._queued) >= self._last_batch_size:
                return
            is_complete = self._is_complete = _create_acquired_lock()
        is_complete.acquire(timeout=LEADER_WAIT_SECONDS)
        with self._lock:
            self._is_complete = None


def fail_requests(requests: Sequence[CommitRequest], error: BaseException) -> None:
    """Give the requests that have no outcome yet this error."""
    for request in requests:
        if request.is_pending:
            request.error = error

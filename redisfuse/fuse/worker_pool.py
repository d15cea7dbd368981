"""The threads that serve the kernel, as leader and followers.

One thread, the leader, reads requests; the others serve or wait for the lead. The leader answers requests from memory
itself and reads the next, so that a program that opens one file after the other costs no change of threads. Before an
operation blocks, or when a request arrives while it waits for the server, its thread promotes the follower that became
idle last, so that few threads serve few programs.
Threads are added while all are busy, up to a limit.

Lock: `_lock` guards the fields below it. Each follower waits for a lock of its own, which its promotion releases.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Worker(Protocol):
    """The loop of one thread.

    `run` returns when the session has ended. It calls `follow` when it has lost the lead.
    """

    def run(self) -> None: ...


class LeaderFollowerPool:
    """At most `max_threads` threads, of which one leads.

    Each thread calls `on_thread_end` when it ends.
    """

    def __init__(
        self,
        create_worker: Callable[[LeaderFollowerPool], Worker],
        max_threads: int,
        on_thread_end: Callable[[], None],
    ) -> None:
        self._create_worker = create_worker
        self._max_threads = max_threads
        self._on_thread_end = on_thread_end
        self.leader: object = None  # written under the lock; compared without it
        self._lock = threading.Lock()
        self._followers: list[tuple[object, threading.Lock]] = []
        self.threads: list[threading.Thread] = []
        self._is_shut_down = False

    def start(self) -> None:
        """Start the first thread. Raises RuntimeError if none can be started."""
        with self._lock:
            self._start_thread()

    def promote_follower(self, worker: object) -> None:
        """Let another thread lead, if `worker` leads; start one if all are busy."""
        if self.leader is worker:
            with self._lock:
                self._promote()
                if self.leader is None:
                    with contextlib.suppress(RuntimeError):  # out of threads: the next that becomes idle leads
                        self._start_thread()

    def follow(self, worker: object) -> None:
        """Return once `worker` leads."""
        with self._lock:
            if self.leader is None:
                self.leader = worker
                return
            promoted = threading.Lock()
            promoted.acquire()
            self._followers.append((worker, promoted))
        promoted.acquire()

    def shut_down(self, timeout: float, interrupt: Callable[[], None]) -> bool:
        """Wait until all threads have ended; return False after `timeout` seconds.

        `interrupt` is called every 50 ms meanwhile.
        """
        with self._lock:
            self._is_shut_down = True
            threads = list(self.threads)
        deadline = time.monotonic() + timeout
        while alive := [thread for thread in threads if thread.is_alive()]:
            if time.monotonic() >= deadline:
                return False
            interrupt()
            alive[0].join(0.05)
        return True

    def _start_thread(self) -> None:
        if not self._is_shut_down and len(self.threads) < self._max_threads:
            name = f"fuse-{len(self.threads)}"
            thread = threading.Thread(target=self._run_thread, name=name, daemon=True)
            thread.start()
            self.threads.append(thread)

    def _promote(self) -> None:
        self.leader = None
        if self._followers:
            self.leader, promoted = self._followers.pop()
            promoted.release()

    def _run_thread(self) -> None:
        worker = self._create_worker(self)
        try:
            worker.run()
        finally:
            with self._lock:
                if self.leader is worker:
                    self._promote()
            self._on_thread_end()

"""Keeping to one processor while requests come faster than they are answered.

Only one thread at a time runs Python. Where several are ready on different processors, each change from one to the next
wakes a processor and moves what its caches hold, and the same work takes twice the time (tests/benchmarks/RESULTS.md,
"several programs at once"). On one processor they take turns without that. But one program that waits for each of its
answers is served best on the processor on which it runs itself, which the kernel sees to if it may. So the process
keeps to one processor only while requests are found waiting when the last is answered. Which one is of no matter: the
kernel moves others away from it if they may run elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

REQUESTS_PER_DECISION = 128  # requests after which it is decided anew
MIN_DECISION_INTERVAL_SECONDS = 0.05  # between two decisions at least
MIN_BUSY_SHARE_TO_PIN, MIN_BUSY_SHARE_TO_STAY_PINNED = (
    0.6,
    0.5,
)  # of the requests, that were waiting: from which share on it is kept to one, and until which
_TASKS_DIR = "/proc/self/task"
_STAT_CPU_FIELD = 36  # the field of stat that says where a thread runs (proc(5)), counted behind the thread's name


class CpuPinning:
    """Counts the requests of a session. Called by one thread at a time: that which reads them."""

    def __init__(self) -> None:
        self._unpinned_cpus: set[int] | None = None  # the processors that were to choose from; None: they still are
        self._requests = self._idle_polls = 0
        self._last_decision = 0.0

    def on_idle(self) -> None:
        """There was no request."""
        self._idle_polls += 1

    def on_request(self) -> None:
        """There was one."""
        self._requests += 1
        if self._requests >= REQUESTS_PER_DECISION:
            now = time.monotonic()
            if now - self._last_decision >= MIN_DECISION_INTERVAL_SECONDS:
                self._last_decision = now
                self._adjust_pinning(1 - self._idle_polls / self._requests)
                self._requests = self._idle_polls = 0

    def _adjust_pinning(self, busy_share: float) -> None:
        before = self._unpinned_cpus
        if before is not None:
            if busy_share < MIN_BUSY_SHARE_TO_STAY_PINNED:
                self._unpinned_cpus = None
                _pin_threads(before)
        elif busy_share >= MIN_BUSY_SHARE_TO_PIN:
            processors = os.sched_getaffinity(0)
            if len(processors) > 1:
                self._unpinned_cpus = processors
                _pin_threads(processors & _current_cpu() or {min(processors)})


def _pin_threads(cpus: set[int]) -> None:
    """Let all threads of this process run there."""
    done: set[str] = set()
    with contextlib.suppress(OSError):  # no /proc here
        while tasks := set(os.listdir(_TASKS_DIR)) - done:  # they may have started others meanwhile
            for task in tasks:
                with contextlib.suppress(OSError):  # it has ended; or this is not allowed here
                    os.sched_setaffinity(int(task), cpus)
            done |= tasks


def _current_cpu() -> set[int]:
    """The processor on which this thread runs, if that can be found out."""
    with contextlib.suppress(OSError):
        return {int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[_STAT_CPU_FIELD])}
    return set()

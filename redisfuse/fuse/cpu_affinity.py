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

LOOK = 128  # requests after which it is decided anew
SECONDS = 0.05  # between two decisions at least
MOST, LEAST = 0.6, 0.5  # of the requests, that were waiting: from which share on it is kept to one, and until which
_TASKS = "/proc/self/task"
_PROCESSOR = 36  # the field of stat that says where a thread runs (proc(5)), counted behind the thread's name


class Affinity:
    """Counts the requests of a session. Called by one thread at a time: that which reads them."""

    def __init__(self) -> None:
        self._before: set[int] | None = None  # the processors that were to choose from; None: they still are
        self._requests = self._waits = 0
        self._decided = 0.0

    def waited(self) -> None:
        """There was no request."""
        self._waits += 1

    def asked(self) -> None:
        """There was one."""
        self._requests += 1
        if self._requests >= LOOK:
            now = time.monotonic()
            if now - self._decided >= SECONDS:
                self._decided = now
                self._decide(1 - self._waits / self._requests)
                self._requests = self._waits = 0

    def _decide(self, busy: float) -> None:
        before = self._before
        if before is not None:
            if busy < LEAST:
                self._before = None
                _keep_to(before)
        elif busy >= MOST:
            processors = os.sched_getaffinity(0)
            if len(processors) > 1:
                self._before = processors
                _keep_to(processors & _current() or {min(processors)})


def _keep_to(processors: set[int]) -> None:
    """Let all threads of this process run there."""
    done: set[str] = set()
    with contextlib.suppress(OSError):  # no /proc here
        while tasks := set(os.listdir(_TASKS)) - done:  # they may have started others meanwhile
            for task in tasks:
                with contextlib.suppress(OSError):  # it has ended; or this is not allowed here
                    os.sched_setaffinity(int(task), processors)
            done |= tasks


def _current() -> set[int]:
    """The processor on which this thread runs, if that can be found out."""
    with contextlib.suppress(OSError):
        return {int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[_PROCESSOR])}
    return set()

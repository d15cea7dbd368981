"""The threads that serve the kernel: Python's own, one more whenever all are busy, up to a bound.

Each runs the library's single-threaded session loop; the kernel gives each request to one of them. (The libraries' own
loops make threads that Python doesn't know: a thread state is then made for every callback, at half the speed; libfuse
2 makes and ends them without limit; both cancel them at the end.) The lock is held only
while a thread is being started.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from threading import get_ident


class Crew:
    def __init__(self, loop: Callable[[], object], most: int, ended: Callable[[], None]) -> None:
        """`loop` blocks until the session ends; `ended` is called by each thread when it has."""
        self._loop = loop
        self._most = most
        self._ended = ended
        self._busy: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ending = False

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        """Begin to serve. Raises RuntimeError if no thread can be started."""
        with self._lock:
            if self._ending or len(self._threads) >= self._most:
                return
            thread = threading.Thread(target=self._serve, name=f"fuse-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def enter(self) -> None:
        """Called at the start of each callback. If nobody is left to take the next request, somebody is added."""
        busy = self._busy
        busy.add(get_ident())
        if len(busy) >= len(self._threads) < self._most:
            with contextlib.suppress(RuntimeError):  # no more threads to be had: those that are must do
                self.start()

    def leave(self) -> None:
        self._busy.discard(get_ident())

    def end(self, exit_loop: Callable[[], None], patience: float, interrupt: bool) -> bool:
        """Wait until all have ended, for `patience` seconds at most; True if they have.

        Until then `exit_loop` is called now and then; with `interrupt`, signals take them out of their reads too (that
        needs a handler for SIGTERM to be set).
        """
        with self._lock:
            self._ending = True
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(0.05)
            while thread.is_alive() and time.monotonic() < deadline:
                exit_loop()
                if interrupt:
                    for other in self._threads:
                        if other.is_alive() and other.ident is not None:
                            with contextlib.suppress(ProcessLookupError):
                                signal.pthread_kill(other.ident, signal.SIGTERM)
                thread.join(0.05)
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        try:
            self._loop()
        finally:
            self._ended()

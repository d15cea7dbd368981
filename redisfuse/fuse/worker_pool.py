"""The threads that serve the kernel: Python's own, one more whenever all are busy, up to a bound.

One of them at a time reads requests: it has the turn. What can be answered from memory it answers itself and reads on,
so that a program which opens one known file after the other costs no change of threads. Before a callback may wait (for
the server, for a lock), it hands over: another thread gets the turn, so that requests are served side by side.
(The libraries' own loops make threads that Python doesn't know: a thread state is then made for every callback, at half
the speed; libfuse 2 makes and ends them without limit; both cancel them at the end. And they wake a thread for each
request, two of which then wait for the interpreter: for the release of one file and the open of the next.)

Locks: `_lock` is held for a few operations on what is below it, and while a thread is being started. Each idle thread
waits for a lock of its own, which who hands over opens. The last that became idle is the first to be called, so that
few threads serve few programs.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from threading import get_ident


class LeaderFollowerPool:
    def __init__(
        self, create_worker: Callable[[], Callable[[], bool]], max_threads: int, on_thread_end: Callable[[], None]
    ) -> None:
        """`server` makes, for one thread, what reads a request, answers it, and returns False once the session has
        ended; `ended` is called by each thread when it has."""
        self._create_worker = create_worker
        self._max_threads = max_threads
        self._on_thread_end = on_thread_end
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._leader = 0  # the thread that has the turn; 0: nobody
        self._followers: list[tuple[int, threading.Lock]] = []  # threads that wait for it
        self._is_shut_down = False

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        """Begin to serve. Raises RuntimeError if no thread can be started."""
        with self._lock:
            self._start_thread()

    def _start_thread(self) -> None:
        if self._is_shut_down or len(self._threads) >= self._max_threads:
            return
        thread = threading.Thread(target=self._run_thread, name=f"fuse-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def promote_follower(self) -> None:
        """Inside a callback, before it waits: let another thread read on. If nobody is left to, somebody is added."""
        if self._leader == get_ident():  # else it has, or this is the end of a session
            with self._lock:
                self._promote_next()
                if not self._leader:
                    with contextlib.suppress(RuntimeError):  # no more threads to be had: those that are must do
                        self._start_thread()

    def _promote_next(self) -> None:
        self._leader = 0
        if self._followers:
            self._leader, waiting = self._followers.pop()
            waiting.release()

    def shutdown(self, request_exit: Callable[[], None], timeout: float, send_signals: bool) -> bool:
        """Wait until all have ended, for `patience` seconds at most; True if they have.

        Until then `exit_loop` is called now and then; with `interrupt`, signals take them out of their reads too (that
        needs a handler for SIGTERM to be set).
        """
        with self._lock:
            self._is_shut_down = True
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(0.05)
            while thread.is_alive() and time.monotonic() < deadline:
                request_exit()
                if send_signals:
                    for other in self._threads:
                        if other.is_alive() and other.ident is not None:
                            with contextlib.suppress(ProcessLookupError):
                                signal.pthread_kill(other.ident, signal.SIGTERM)
                thread.join(0.05)
        return not any(thread.is_alive() for thread in self._threads)

    def _run_thread(self) -> None:
        me = get_ident()
        called = threading.Lock()
        called.acquire()
        try:
            serve = self._create_worker()
            while True:
                if self._leader != me:
                    self._become_leader(me, called)
                if not serve():
                    break
        finally:
            with self._lock:
                if self._leader == me:
                    self._promote_next()
            self._on_thread_end()

    def _become_leader(self, thread_id: int, wakeup: threading.Lock) -> None:
        with self._lock:
            if not self._leader:
                self._leader = thread_id
                return
            self._followers.append((thread_id, wakeup))
        wakeup.acquire()

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


class Crew:
    def __init__(self, server: Callable[[], Callable[[], bool]], most: int, ended: Callable[[], None]) -> None:
        """`server` makes, for one thread, what reads a request, answers it, and returns False once the session has
        ended; `ended` is called by each thread when it has."""
        self._server = server
        self._most = most
        self._ended = ended
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._reader = 0  # the thread that has the turn; 0: nobody
        self._idle: list[tuple[int, threading.Lock]] = []  # threads that wait for it
        self._ending = False

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        """Begin to serve. Raises RuntimeError if no thread can be started."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._ending or len(self._threads) >= self._most:
            return
        thread = threading.Thread(target=self._serve, name=f"fuse-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def hand_over(self) -> None:
        """Inside a callback, before it waits: let another thread read on. If nobody is left to, somebody is added."""
        if self._reader == get_ident():  # else it has, or this is the end of a session
            with self._lock:
                self._pass_on()
                if not self._reader:
                    with contextlib.suppress(RuntimeError):  # no more threads to be had: those that are must do
                        self._start()

    def _pass_on(self) -> None:
        self._reader = 0
        if self._idle:
            self._reader, waiting = self._idle.pop()
            waiting.release()

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
        me = get_ident()
        called = threading.Lock()
        called.acquire()
        try:
            serve = self._server()
            while True:
                if self._reader != me:
                    self._take_turn(me, called)
                if not serve():
                    break
        finally:
            with self._lock:
                if self._reader == me:
                    self._pass_on()
            self._ended()

    def _take_turn(self, me: int, called: threading.Lock) -> None:
        with self._lock:
            if not self._reader:
                self._reader = me
                return
            self._idle.append((me, called))
        called.acquire()

"""A few connections, kept for the next user. Those who find them all busy wait in line, up to a limit."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redisfuse.errors import UnavailableError
from redisfuse.server.dialogue import Dialogue


class Pool:
    """At most `most()` dialogues of one kind. Thread-safe; nothing is held while a connection is made or used.

    `make(seconds)` opens one within that time. Connections that were made before a fork are not used after it.
    """

    def __init__(self, most: Callable[[], int], make: Callable[[float], Dialogue]) -> None:
        self._most = most
        self._make = make
        self._changed = threading.Condition()
        self._idle: list[Dialogue] = []
        self._used = 0
        self._line: list[object] = []  # who waits, the first come first: else somebody could wait for ever
        self._process = os.getpid()
        self._closed = False

    @contextmanager
    def use(self, seconds: float, *, checked: bool = False) -> Iterator[Dialogue]:
        """A dialogue for the body of `with`, alone, within `seconds`; with `checked`, none that was hung up meanwhile.

        Raises UnavailableError when all stay busy, or what `make` raises.
        """
        dialogue = self._take(seconds, checked=checked)
        try:
            yield dialogue
        finally:
            dialogue.settle()
            self._give_back(dialogue)

    def _take(self, seconds: float, *, checked: bool) -> Dialogue:
        deadline = time.monotonic() + seconds
        with self._changed:
            self._leave_parent_behind()
            if not self._stand_in_line(seconds):
                raise UnavailableError(f"all connections were busy for {seconds:.1f} s (see --connections)")
            if self._closed:
                raise UnavailableError("the connections are closed: the mount is ending")
            self._used += 1
            while self._idle:
                dialogue = self._idle.pop()
                if not checked or dialogue.quiet():
                    return dialogue
                dialogue.close()
        try:
            return self._make(max(0.001, deadline - time.monotonic()))
        except BaseException:
            with self._changed:
                self._used -= 1
                self._changed.notify_all()
            raise

    def _stand_in_line(self, seconds: float) -> bool:
        """Wait until it is one's turn, the first come first; False if that takes too long."""
        ticket = object()
        self._line.append(ticket)
        try:
            return self._changed.wait_for(
                lambda: self._closed or (self._line[0] is ticket and self._used < self._most()), seconds
            )
        finally:
            self._line.remove(ticket)
            self._changed.notify_all()

    def _give_back(self, dialogue: Dialogue) -> None:
        with self._changed:
            self._used -= 1
            if not dialogue.closed and not self._closed and self._used + len(self._idle) < self._most():
                self._idle.append(dialogue)
            else:
                dialogue.close()
            self._changed.notify_all()

    def _leave_parent_behind(self) -> None:
        if os.getpid() != self._process:
            self._process = os.getpid()
            self._idle.clear()
            self._line.clear()
            self._used = 0

    def shrink(self) -> None:
        """Close kept connections that are more than `most()` now."""
        with self._changed:
            while self._idle and self._used + len(self._idle) > self._most():
                self._idle.pop().close()
            self._changed.notify_all()

    def forget(self) -> None:
        """Close the kept connections: one was lost, so the others are likely to be."""
        with self._changed:
            idle, self._idle = self._idle, []
        for dialogue in idle:
            dialogue.close()

    def close(self) -> None:
        """Close the kept connections, and every other one as it comes back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.forget()

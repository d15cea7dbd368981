"""What the main thread waits on while others serve: signals, `stop`, and the end of a thread."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Wakeups:
    """The pipe that the main thread waits on. Signals reach it only if it is made in the main thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.handles_signals = threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> Wakeups:
        if self.handles_signals:
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                    self._before[number] = signal.signal(number, lambda _number, _frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self.handles_signals:
            signal.set_wakeup_fd(self._wakeup)
        write, self._write = self._write, -1
        os.close(write)
        os.close(self._read)

    def wake(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # full (then it wakes anyway) or closed already
            os.write(self._write, what)

    def wait(self, timeout: float | None) -> bytes:
        """What came since, or nothing after `timeout` seconds."""
        ready, _, _ = select.select([self._read], [], [], timeout)
        return os.read(self._read, 512) if ready else b""

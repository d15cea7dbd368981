"""The pipe by which signals, `stop` and workers wake the main thread."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import Any

_EXIT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SelfPipe:
    """A pipe to wait on.

    Signals are written into it only if the main thread creates it.
    """

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.handles_signals = threading.current_thread() is threading.main_thread()
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup_fd = -1

    def __enter__(self) -> SelfPipe:
        if self.handles_signals:
            self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
            for number in _EXIT_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                    self._old_handlers[number] = signal.signal(number, lambda _number, _frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self.handles_signals:
            signal.set_wakeup_fd(self._old_wakeup_fd)
        write, self._write_fd = self._write_fd, -1
        os.close(write)
        os.close(self._read_fd)

    def wake(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # full, so that it wakes anyway, or closed
            os.write(self._write_fd, data)

    def wait(self, timeout: float | None) -> bytes:
        """Return the bytes written since, or none after `timeout` seconds."""
        ready, _, _ = select.select([self._read_fd], [], [], timeout)
        return os.read(self._read_fd, 512) if ready else b""

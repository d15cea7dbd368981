"""A descriptor with which one thread ends the wait of another."""

import contextlib
import os
import select


class Wakeup:
    """An eventfd(2) that is readable from `set` to `clear`.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor, to wait for with others."""
        return self._fd

    def set(self) -> None:
        """End the present or the next wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Let the next wait begin."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; return whether `set` was called."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def __del__(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

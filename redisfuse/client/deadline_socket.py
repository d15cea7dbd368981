"""A socket with a deadline for a whole reply, which counts its traffic."""

import select
import socket
import ssl
import struct
import time
from typing import Any

from redisfuse.client.stats import ClientStats

_TIMEVAL = struct.Struct("@ll")


class DeadlineSocket:
    """A socket with one deadline for all system calls up to the next one.

    `set_deadline` sets it. The kernel enforces the time-out of each wait (SO_RCVTIMEO and SO_SNDTIMEO of socket(7)):
    Python's own time-outs cost three system calls for each wait. To avoid setting the option before each wait, a wait
    may last up to a fifth longer than the time that remains. TLS sockets use Python's time-outs.
    """

    def __init__(self, inner_socket: socket.socket, stats: ClientStats, timeout: float) -> None:
        self._socket = inner_socket
        self.is_encrypted = isinstance(inner_socket, ssl.SSLSocket)
        self._stats = stats
        self._kernel_timeout_seconds = 0.0  # the value of the socket option
        self.receive_allowance: int | None = None  # bytes that may still be received; None: any number
        if not self.is_encrypted:
            inner_socket.settimeout(None)
        self.set_deadline(timeout)

    @property
    def wait_descriptor(self) -> int:
        """The descriptor that is readable once a reply has arrived.

        -1 with TLS, which may have read the reply already.
        """
        return -1 if self.is_encrypted else self._socket.fileno()

    def set_deadline(self, timeout: float) -> None:
        """Allow `timeout` seconds in total for what follows, up to the next call."""
        self._deadline = time.monotonic() + timeout

    def _apply_timeout(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        if self.is_encrypted:
            self._socket.settimeout(remaining)
        elif not remaining <= self._kernel_timeout_seconds <= 1.2 * remaining:
            self._kernel_timeout_seconds = 1.1 * remaining
            microseconds = max(int(self._kernel_timeout_seconds * 1e6), 1)  # 0 means no time-out
            timeval = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def recv_into(self, buffer: Any, *arguments: Any) -> int:
        """Call socket.recv_into, within the deadline."""
        self._apply_timeout()
        try:
            count = self._socket.recv_into(buffer, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None
        self._record_received(count)
        return count

    def recv(self, size: int, *arguments: Any) -> bytes:
        """Call socket.recv, within the deadline."""
        self._apply_timeout()
        try:
            data = self._socket.recv(size, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None
        self._record_received(len(data))
        return data

    def _record_received(self, count: int) -> None:
        self._stats.add(bytes_received=count)
        if self.receive_allowance is not None:
            self.receive_allowance -= count
            if self.receive_allowance < 0:
                raise ConnectionAbortedError("the server sent more than a reply may have")

    def sendall(self, data: Any, *arguments: Any) -> None:
        """Call socket.sendall, within the deadline."""
        self._apply_timeout()
        try:
            self._socket.sendall(data, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None

    def settimeout(self, _seconds: float | None) -> None:
        """Do nothing: the deadline applies."""

    def is_readable(self) -> bool:
        """Return whether bytes are available, or either side has closed the connection."""
        descriptor = self._socket.fileno()
        if descriptor < 0:  # closed by another thread
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def wait_readable(self, timeout: float, wakeup_fd: int) -> bool:
        """Wait until `is_readable`.

        Returns False after `timeout` seconds, or if only `wakeup_fd` is readable.
        """
        descriptor = self._socket.fileno()
        if descriptor < 0 or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(wakeup_fd, select.POLLIN)
        return any(ready == descriptor for ready, _ in poll.poll(timeout * 1000))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _normalize_socket_error(error: OSError) -> OSError:
    """Return a TimeoutError or a ConnectionError.

    An unreachable network and a broken TLS stream count as a lost connection.
    """
    if isinstance(error, BlockingIOError):  # the kernel's time-out has expired
        return TimeoutError("timed out")
    if isinstance(error, TimeoutError | ConnectionError):
        return error
    return ConnectionResetError(*error.args)

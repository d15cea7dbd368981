"""Reports to the service manager that started this process (sd_notify(3)).

systemd names its socket in NOTIFY_SOCKET for a unit of `Type=notify`. A state is one datagram of lines NAME=VALUE.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Self

SOCKET_VARIABLE = "NOTIFY_SOCKET"
SEND_TIMEOUT_SECONDS = 1.0
"""For a manager whose queue is full."""

log = logging.getLogger(__name__)


class ServiceManager:
    """The manager of this process, if it has one."""

    def __init__(self, address: str | None) -> None:
        """Create the manager of a socket: a path, or `@NAME` in the abstract namespace."""
        self._address = address

    @classmethod
    def from_environment(cls) -> Self:
        """Return the manager in NOTIFY_SOCKET, and unset that variable.

        Programs that this process starts must not report in its name.
        """
        return cls(os.environ.pop(SOCKET_VARIABLE, None))

    def ready(self, status: str) -> None:
        """Report that the service has started; `status` is one line."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Report that the service is about to end."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        message = "\n".join(assignments).encode("utf-8", "surrogateescape")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(SEND_TIMEOUT_SECONDS)
                channel.connect(address)
                channel.send(message)
        except OSError as error:
            log.warning("the service manager at %s can't be notified: %s", self._address, error.strerror or error)

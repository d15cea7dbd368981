"""Totals of what a client has exchanged with its server."""

import threading


class ClientStats:
    """Running totals since the client was created; thread-safe.

    Read by `redisfuse status` and by tests.
    """

    __slots__ = ("_lock", "bytes_received", "bytes_sent", "commands", "connects", "reconnects", "round_trips")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.commands = 0
        self.round_trips = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.connects = 0
        self.reconnects = 0

    def add(
        self,
        *,
        commands: int = 0,
        round_trips: int = 0,
        bytes_sent: int = 0,
        bytes_received: int = 0,
        connects: int = 0,
        reconnects: int = 0,
    ) -> None:
        """Add to the totals."""
        with self._lock:
            self.commands += commands
            self.round_trips += round_trips
            self.bytes_sent += bytes_sent
            self.bytes_received += bytes_received
            self.connects += connects
            self.reconnects += reconnects

    def snapshot(self) -> dict[str, int]:
        """Return all totals, by name, as of one moment."""
        with self._lock:
            return {name: getattr(self, name) for name in self.__slots__ if name != "_lock"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.snapshot()})"

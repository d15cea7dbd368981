"""A server that replies sanely to some commands and as a test wishes to the others: nonsense, or without end.

It pretends to hold three keys; unless a test says otherwise, they are strings of three bytes. Threads: one that
accepts, and one for each connection, which end when the server is closed.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self

from redisfuse.client.address import Address

Reply = bytes | Callable[[socket.socket, list[bytes]], None]
"""Bytes to send, or a function that sends something."""

INFO = (
    b"redis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:%b\r\nrole:master\r\nloading:0\r\nused_memory:1\r\n"
    b"maxmemory:0\r\ndb0:keys=3,expires=0,avg_ttl=0\r\n" % (b"a" * 40)
)


def bulk(data: bytes) -> bytes:
    """Return a bulk string."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    """Return an array of replies."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def flood(head: bytes, piece: bytes = b"x" * 65536, seconds: float = 15.0) -> Reply:
    """Return a reply that begins with `head` and does not end."""

    def send(connection: socket.socket, _command: list[bytes]) -> None:
        connection.sendall(head)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            connection.sendall(piece)

    return send


def endless_cursors(*items: bytes) -> Reply:
    """Return a reply to SCAN, HSCAN or SSCAN: always with the same items and another cursor."""
    cursors = iter(range(1, 1 << 62))
    return lambda connection, _command: connection.sendall(array(bulk(b"%d" % next(cursors)), array(*items)))


DEFAULT_REPLIES: dict[bytes, Reply] = {
    b"INFO": bulk(INFO),
    b"SCAN": array(bulk(b"0"), array(bulk(b"k1"), bulk(b"k2"), bulk(b"k3"))),
    b"TYPE": b"+string\r\n",
    **dict.fromkeys((b"STRLEN", b"DBSIZE", b"HLEN", b"SCARD", b"LLEN", b"ZCARD", b"XLEN"), b":3\r\n"),
    b"EXISTS": lambda connection, command: connection.sendall(b":%d\r\n" % (len(command) - 1)),
    b"PTTL": b":-1\r\n",
    b"GETRANGE": bulk(b"val"),
    b"PING": b"+PONG\r\n",
    b"TIME": array(bulk(b"1700000000"), bulk(b"0")),
    b"OBJECT": bulk(b"hashtable"),
}


class HostileServer:
    """A server on a free loopback port. `replies`: by command in upper case, in place of the sane ones."""

    def __init__(self, replies: dict[bytes, Reply] | None = None) -> None:
        self.replies = {**DEFAULT_REPLIES, **(replies or {})}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self.commands: list[bytes] = []  # the names of those received
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> Address:
        return Address.parse(self.url)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            is_resp3 = False
            while command := _read_command(file):
                name = command[0].upper()
                self.commands.append(name)
                if name == b"HELLO" and name not in self.replies:
                    is_resp3 = command[1:2] == [b"3"]
                    connection.sendall(_greet(is_resp3))
                elif name == b"SUBSCRIBE":
                    kind = b">3\r\n" if is_resp3 else b"*3\r\n"
                    connection.sendall(kind + bulk(b"subscribe") + bulk(command[1]) + b":1\r\n")
                else:
                    key = b"CLIENT TRACKING" if command[1:2] == [b"TRACKING"] else name
                    reply = self.replies.get(key, b"+OK\r\n")
                    if isinstance(reply, bytes):
                        connection.sendall(reply)
                    else:
                        reply(connection, command)

    def close(self) -> None:
        """Close all connections."""
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_command(file: BinaryIO) -> list[bytes]:
    """Return the next command; an empty list at the end of the connection."""
    line = file.readline()
    words = []
    for _ in range(int(line[1:]) if line else 0):
        length = int(file.readline()[1:])
        words.append(file.read(length + 2)[:-2])
    return words


def _greet(is_resp3: bool) -> bytes:
    pairs = (
        *(bulk(b"server"), bulk(b"redis"), bulk(b"version"), bulk(b"7.0.15"), bulk(b"proto"), b":3\r\n"),
        *(bulk(b"id"), b":1\r\n", bulk(b"mode"), bulk(b"standalone"), bulk(b"role"), bulk(b"master")),
        *(bulk(b"modules"), array()),
    )
    return (b"%%%d\r\n" % (len(pairs) // 2) if is_resp3 else b"*%d\r\n" % len(pairs)) + b"".join(pairs)

"""A redis-py connection that sends only what an allow-list names.

redis-py provides the sockets, TLS and authentication, nothing else. Its clients and pipelines retry commands, which
would run a write twice when a reply is lost (docs/libraries.md); its defaults send CLIENT SETINFO and more, which
leaves errors in the statistics of servers that do not know these commands.
"""

import contextlib
import socket
from collections.abc import Iterable
from typing import Any

from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from redisfuse.client.address import Address
from redisfuse.client.allowlist import CommandFilter, pack_commands, parse_commands
from redisfuse.client.connection_errors import check_tls_files, map_handshake_error
from redisfuse.client.deadline_socket import DeadlineSocket
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.reply_bounds import MAX_SCALAR_BYTES
from redisfuse.client.reply_errors import map_error_line
from redisfuse.client.stats import ClientStats
from redisfuse.errors import RedisFuseError

CLIENT_NAME = "redisfuse"
"""The connections' name in CLIENT LIST."""

_READ_BUFFER_BYTES = 131072
"""Bytes that one system call may read; with redis-py's 64 KiB, large values arrive at a fraction of the speed."""


class FilteredConnection(AbstractConnection):
    """A redis-py connection with an allow-list, a rate limit and a deadline.

    Created by `open_connection` only.
    """

    command_filter: CommandFilter
    stats: ClientStats
    token_bucket: TokenBucket
    handshake_timeout: float  # seconds for connecting and for the handshake
    via: tuple[str, int] | str | None = None  # the address or the socket to connect to, in place of the server's
    deadline_socket: DeadlineSocket

    def _connect(self) -> Any:
        if self.via is None:
            inner = super()._connect()  # type: ignore[no-untyped-call, safe-super]  # the next class in the MRO has it
        else:
            inner = self._wrap_socket(_connect_via(self.via, self.handshake_timeout))
        self.deadline_socket = DeadlineSocket(inner, self.stats, self.handshake_timeout)
        self.deadline_socket.receive_allowance = MAX_SCALAR_BYTES
        return self.deadline_socket

    def _wrap_socket(self, inner: socket.socket) -> socket.socket:
        """Return the socket to use in place of a connected one: TLS wraps it."""
        return inner

    def send_packed_command(
        self,
        command: Any,
        check_health: bool = True,  # noqa: ARG002  # redis-py's
        round_trips: int = 0,
    ) -> None:
        """Send packed commands if the allow-list names all of them.

        Unlike redis-py's method, it neither reconnects nor closes the connection after an error: the caller does.
        Raises ForbiddenCommandError (nothing was sent), and the built-in TimeoutError and ConnectionError.
        """
        if isinstance(command, str):
            packed = command.encode()
        else:
            packed = bytes(command) if isinstance(command, bytes | bytearray | memoryview) else b"".join(command)
        commands = parse_commands(packed)
        self.command_filter.check(commands)
        if self.token_bucket.rate:
            self.token_bucket.acquire(len(commands))
        self.deadline_socket.sendall(packed)
        self.stats.add(commands=len(commands), round_trips=round_trips, bytes_sent=len(packed))

    def send_streamed(self, head: list[bytes], size: int, chunks: Iterable[bytes], timeout: float) -> None:
        """Send one command whose last argument, of `size` bytes, is given in chunks.

        Each chunk must be sent within `timeout` seconds. Raises ForbiddenCommandError, OSError, ValueError if the
        chunks do not add up to `size`, and whatever `chunks` raises. After an error the server has received no whole
        command, and the connection is unusable: the caller closes it.
        """
        self.command_filter.check([head])
        self.token_bucket.acquire(1)
        self.stats.add(commands=1, bytes_sent=size)
        start = pack_commands([tuple(head)]).split(b"\r\n", 1)[1]
        self.deadline_socket.set_deadline(timeout)
        self.deadline_socket.sendall(b"*%d\r\n%b$%d\r\n" % (len(head) + 1, start, size))
        remaining = size
        for chunk in chunks:
            remaining -= len(chunk)
            if remaining < 0:
                break
            self.deadline_socket.set_deadline(timeout)
            self.deadline_socket.sendall(chunk)
            # A TLS stream may be readable because of TLS's own messages.
            if not self.deadline_socket.is_encrypted and self.deadline_socket.is_readable():
                raise BrokenPipeError("the server replied before it received the whole command")
        if remaining:
            raise ValueError("the chunks of a streamed argument do not add up to its size")
        self.deadline_socket.set_deadline(timeout)
        self.deadline_socket.sendall(b"\r\n")


class _TcpConnection(FilteredConnection, Connection):
    pass


class _TlsConnection(FilteredConnection, SSLConnection):
    def _wrap_socket(self, inner: socket.socket) -> socket.socket:
        try:
            wrapped: socket.socket = self._wrap_socket_with_ssl(inner)  # type: ignore[no-untyped-call]
        except BaseException:
            inner.close()
            raise
        return wrapped


class _UnixConnection(FilteredConnection, UnixDomainSocketConnection):
    host = ""  # redis-py does not set it, but reads it when it reports an error


def _connect_via(via: tuple[str, int] | str, timeout: float) -> socket.socket:
    """Connect to an address, or to the socket of a tunnel."""
    if isinstance(via, tuple):
        inner = socket.create_connection(via, timeout)
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return inner
    inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        inner.settimeout(timeout)
        inner.connect(via)
    except BaseException:
        inner.close()
        raise
    return inner


def _build_handshake_options() -> dict[str, Any]:
    """Return the options that keep redis-py from sending commands unasked.

    They depend on the installed version.
    """
    options: dict[str, Any] = {}
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py before 6.3
        return {"lib_name": None, "lib_version": None}
    options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    try:
        from redis.driver_info import DriverInfo  # noqa: F401
    except ImportError:  # redis-py before 7.2
        return {**options, "lib_name": None, "lib_version": None}
    return {**options, "driver_info": None}


_HANDSHAKE_OPTIONS = _build_handshake_options()


def open_connection(
    address: Address,
    command_filter: CommandFilter,
    *,
    timeout: float,
    stats: ClientStats,
    token_bucket: TokenBucket,
    resp3: bool = False,
) -> FilteredConnection:
    """Connect, authenticate and select the database, all within `timeout` seconds.

    `address` is of kind tcp, tls or unix. Raises UnavailableError, AccessError, TryAgainError, and UsageError if there
    is no such database.
    """
    options: dict[str, Any] = {
        **_HANDSHAKE_OPTIONS,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_read_size": _READ_BUFFER_BYTES,
        "protocol": 3 if resp3 else 2,
    }
    connection: FilteredConnection
    if address.kind == "unix":
        connection = _UnixConnection(path=address.unix_path, **options)  # type: ignore[no-untyped-call]
    elif address.tls is not None:
        check_tls_files(address.tls)
        tls = {f"ssl_{name}": getattr(address.tls, name) for name in type(address.tls).__slots__}
        connection = _TlsConnection(host=address.host, port=address.port, **tls, **options)
    else:
        connection = _TcpConnection(host=address.host, port=address.port, **options)  # type: ignore[no-untyped-call]
    connection.command_filter = command_filter
    connection.stats = stats
    connection.token_bucket = token_bucket
    connection.handshake_timeout = timeout
    connection.via = address.via
    try:
        connection.connect()  # type: ignore[no-untyped-call]
    except Exception as error:
        if isinstance(error, ConnectionError):
            error = _read_final_error(connection) or error
        connection.disconnect()  # type: ignore[no-untyped-call]
        raise map_handshake_error(error, address) from None  # its traceback could show the password
    connection.deadline_socket.receive_allowance = None  # from now on, `Channel` bounds each reply
    stats.add(connects=1)
    return connection


def _read_final_error(connection: FilteredConnection) -> RedisFuseError | None:
    """Return the error reply with which the server ended the handshake, if any."""
    with contextlib.suppress(OSError):
        connection.deadline_socket.set_deadline(0.2)
        line, end, _ = connection.deadline_socket.recv(4096).partition(b"\r\n")
        if line[:1] == b"-" and end:
            return map_error_line(line[1:].decode("utf-8", "replace"))
    return None

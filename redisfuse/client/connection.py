"""One connection to a server: redis-py's, with the allow-list in the way of everything that it sends.

redis-py is used for its sockets, TLS and logging in only. Its clients and pipelines retry commands, which makes a write
happen twice when an answer is lost (MEASURED.md, "Writing"); its defaults send CLIENT SETINFO and more, which leaves
errors behind on servers that do not know them.
"""

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable
from typing import Any

import redis
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from redisfuse.client.address import Address
from redisfuse.client.allowlist import CommandFilter, pack_commands, parse_commands
from redisfuse.client.reply_errors import map_error_line, map_redis_exception
from redisfuse.client.stats import ClientStats, TokenBucket
from redisfuse.errors import AccessError, RedisFuseError, ServerReplyError, UnavailableError, UsageError

CLIENT_NAME = "redisfuse"
"""What the connections are called in CLIENT LIST."""

_READ_BUFFER_BYTES = 131072
"""Bytes taken from the socket at once; with 64 KiB, redis-py's default, big values come at a fraction of the speed."""


_TIMEVAL = struct.Struct("@ll")


class DeadlineSocket:
    """A socket that counts, and keeps a deadline: what `set_deadline` gave is for all of an answer, not for each piece.

    The kernel keeps the time of each wait (SO_RCVTIMEO and SO_SNDTIMEO of socket(7)): Python's own time-outs take three
    system calls for each that is wanted. So that it need not be told before each wait, one may last up to a fifth
    longer than is left. (TLS keeps Python's.)
    """

    def __init__(self, inner_socket: socket.socket, stats: ClientStats, timeout: float) -> None:
        self._socket = inner_socket
        self.is_encrypted = isinstance(inner_socket, ssl.SSLSocket)
        self._stats = stats
        self._kernel_timeout_seconds = 0.0  # seconds that the kernel was told of last
        if not self.is_encrypted:
            inner_socket.settimeout(None)
        self.set_deadline(timeout)

    def set_deadline(self, timeout: float) -> None:
        """Give what follows, up to the next call, this long in all."""
        self._deadline = time.monotonic() + timeout

    def _apply_timeout(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        if self.is_encrypted:
            self._socket.settimeout(remaining)
        elif not remaining <= self._kernel_timeout_seconds <= 1.2 * remaining:
            self._kernel_timeout_seconds = 1.1 * remaining
            microseconds = max(int(self._kernel_timeout_seconds * 1e6), 1)  # 0 would be for ever
            limit = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def recv_into(self, buffer: Any, *arguments: Any) -> int:
        """socket.recv_into, within the deadline."""
        self._apply_timeout()
        try:
            count = self._socket.recv_into(buffer, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None
        self._stats.add(bytes_received=count)
        return count

    def recv(self, size: int, *arguments: Any) -> bytes:
        """socket.recv, within the deadline."""
        self._apply_timeout()
        try:
            data = self._socket.recv(size, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None
        self._stats.add(bytes_received=len(data))
        return data

    def sendall(self, data: Any, *arguments: Any) -> None:
        """socket.sendall, within the deadline."""
        self._apply_timeout()
        try:
            self._socket.sendall(data, *arguments)
        except OSError as error:
            raise _normalize_socket_error(error) from None
        self._stats.add(bytes_sent=len(data))

    def settimeout(self, _seconds: float | None) -> None:
        """Without effect: the deadline counts."""

    def is_readable(self) -> bool:
        """Whether something has come, or the other side has hung up."""
        descriptor = self._socket.fileno()
        if descriptor < 0:  # closed here, by another thread
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def wait_readable(self, timeout: float, wakeup_fd: int) -> bool:
        """Wait up to `seconds` until something has come, as `is_readable` says; False if not, or if `other` is first."""
        descriptor = self._socket.fileno()
        if descriptor < 0 or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(wakeup_fd, select.POLLIN)
        return any(found == descriptor for found, _ in poll.poll(timeout * 1000))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _normalize_socket_error(error: OSError) -> OSError:
    """A time-out, or else a ConnectionError: an unreachable network or a broken TLS stream is a lost connection too."""
    if isinstance(error, BlockingIOError):  # the kernel's time is up
        return TimeoutError("timed out")
    if isinstance(error, TimeoutError | ConnectionError):
        return error
    return ConnectionResetError(*error.args)


class FilteredConnection(AbstractConnection):
    """What redisfuse adds to a connection of redis-py. Made by `open_connection` only."""

    command_filter: CommandFilter
    stats: ClientStats
    token_bucket: TokenBucket
    handshake_timeout: float  # seconds for connecting and for the handshake
    deadline_socket: DeadlineSocket

    def _connect(self) -> Any:
        inner = super()._connect()  # type: ignore[no-untyped-call, safe-super]  # the next class in line has it
        self.deadline_socket = DeadlineSocket(inner, self.stats, self.handshake_timeout)
        return self.deadline_socket

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ARG002  # redis-py's face
        """Send commands, if the allow-list has every one of them; else ForbiddenCommandError, and nothing was sent.

        Unlike redis-py's, it never connects again by itself, and leaves hanging up to the caller. Raises TimeoutError,
        ConnectionError (the built-in ones).
        """
        if isinstance(command, str):
            packed = command.encode()
        else:
            packed = bytes(command) if isinstance(command, bytes | bytearray | memoryview) else b"".join(command)
        commands = parse_commands(packed)
        self.command_filter.check(commands)
        self.token_bucket.acquire(len(commands))
        self.stats.add(commands=len(commands))
        self.deadline_socket.sendall(packed)

    def send_streamed(self, head: list[bytes], size: int, chunks: Iterable[bytes], timeout: float) -> None:
        """Send one command whose last argument, of `size` bytes, comes in chunks; each has `seconds` to leave.

        Raises ForbiddenCommandError, OSError, ValueError when the chunks come to another size, or what `chunks` raises.
        The server has not seen a whole command then; the connection can't be used further: the caller closes it.
        """
        self.command_filter.check([head])
        self.token_bucket.acquire(1)
        self.stats.add(commands=1)
        start = pack_commands([tuple(head)]).split(b"\r\n", 1)[1]
        self.deadline_socket.set_deadline(timeout)
        self.deadline_socket.sendall(b"*%d\r\n%b$%d\r\n" % (len(head) + 1, start, size))
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            self.deadline_socket.set_deadline(timeout)
            self.deadline_socket.sendall(chunk)
            if (
                not self.deadline_socket.is_encrypted and self.deadline_socket.is_readable()
            ):  # TLS has messages of its own
                raise BrokenPipeError("the server answered before it had all")
        if left:
            raise ValueError("the chunks of a streamed argument do not come to its size")
        self.deadline_socket.set_deadline(timeout)
        self.deadline_socket.sendall(b"\r\n")


class _TcpConnection(FilteredConnection, Connection):
    pass


class _TlsConnection(FilteredConnection, SSLConnection):
    pass


class _UnixConnection(FilteredConnection, UnixDomainSocketConnection):
    host = ""  # which redis-py forgets here, and asks for when it reports an error


def _build_handshake_options() -> dict[str, Any]:
    """What keeps redis-py from sending commands of its own accord, as far as this version of it has them."""
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
    """A connection that is made, let in, and in its database; everything within `timeout` seconds.

    `address` is of kind tcp, tls or unix. Raises UnavailableError, AccessError, TryAgainError, UsageError (no such
    database).
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
        tls = {f"ssl_{name}": getattr(address.tls, name) for name in type(address.tls).__slots__}
        connection = _TlsConnection(host=address.host, port=address.port, **tls, **options)
    else:
        connection = _TcpConnection(host=address.host, port=address.port, **options)  # type: ignore[no-untyped-call]
    connection.command_filter = command_filter
    connection.stats = stats
    connection.token_bucket = token_bucket
    connection.handshake_timeout = timeout
    try:
        connection.connect()  # type: ignore[no-untyped-call]
    except Exception as error:
        if isinstance(error, ConnectionError):
            error = _read_final_error(connection) or error
        connection.disconnect()  # type: ignore[no-untyped-call]
        raise map_handshake_error(error, address) from None  # its traceback could show the password
    stats.add(connects=1)
    return connection


def _read_final_error(connection: FilteredConnection) -> RedisFuseError | None:
    """The error reply with which the server hung up on us while we were still greeting it."""
    with contextlib.suppress(OSError):
        connection.deadline_socket.set_deadline(0.2)
        line, end, _ = connection.deadline_socket.recv(4096).partition(b"\r\n")
        if line[:1] == b"-" and end:
            return map_error_line(line[1:].decode("utf-8", "replace"))
    return None


def map_handshake_error(error: Exception, address: Address) -> RedisFuseError:
    """Why a server could not be entered, in one line with what to do about it."""
    if isinstance(error, RedisFuseError):
        return error
    failure = map_connection_error(error, address)
    if isinstance(failure, ServerReplyError) and "DB index" in str(failure):
        return UsageError(f"the server at {address.endpoint} has no database {address.db}")
    if isinstance(failure, AccessError):
        return AccessError(f"{address.endpoint} lets nobody in like that: {failure}")
    return failure


_REPLY_ERRORS = (
    redis.exceptions.ResponseError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.BusyLoadingError,
)


def map_connection_error(error: Exception, address: Address) -> RedisFuseError:
    """The error of redis-py, or of a socket, as redisfuse's, without secrets."""
    if isinstance(error, RedisFuseError):
        return error
    words = " ".join(address.redact(str(error)).split())
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return UnavailableError(
            f"{address.endpoint} did not answer in time: it is down, hung or too slow (see --timeout)"
        )
    if isinstance(error, redis.exceptions.InvalidResponse):
        return UnavailableError(f"what answers at {address.endpoint} does not speak the Redis protocol")
    if isinstance(error, _REPLY_ERRORS):
        mapped = map_redis_exception(error)
        return type(mapped)(address.redact(str(mapped)))
    if "max number of clients" in words:
        return UnavailableError(f"{address.endpoint} has as many clients as it takes (maxclients)")
    reason = _explain_failure(words)
    return UnavailableError(f"no connection to {address.endpoint}: {reason}")


def _explain_failure(message: str) -> str:
    for sign, reason in (
        ("Connection refused", "nothing listens there; is the server running, and the port right?"),
        ("No such file", "there is no such socket; is the server running?"),
        ("Permission denied", "you may not use that socket"),
        ("Name or service not known", "no such host name"),
        ("not known", "no such host name"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate was not accepted (see --tls-ca)"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS there; try redis:// in place of rediss://"),
        ("closed by server", "it hung up; does it want TLS (rediss://)?"),
    ):
        if sign.lower() in message.lower():
            return reason
    return message

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
from redisfuse.client.allowlist import Guard, pack_commands, parse_commands
from redisfuse.client.reply_errors import error_of_reply, error_of_text
from redisfuse.client.stats import Brake, Counters
from redisfuse.errors import AccessError, RedisFuseError, ServerReplyError, UnavailableError, UsageError

NAME = "redisfuse"
"""What the connections are called in CLIENT LIST."""

_READ_SIZE = 131072
"""Bytes taken from the socket at once; with 64 KiB, redis-py's default, big values come at a fraction of the speed."""


_TIMEVAL = struct.Struct("@ll")


class Wire:
    """A socket that counts, and keeps a deadline: what `allow` gave is for all of an answer, not for each piece.

    The kernel keeps the time of each wait (SO_RCVTIMEO and SO_SNDTIMEO of socket(7)): Python's own time-outs take three
    system calls for each that is wanted. So that it need not be told before each wait, one may last up to a fifth
    longer than is left. (TLS keeps Python's.)
    """

    def __init__(self, inner: socket.socket, counters: Counters, seconds: float) -> None:
        self._inner = inner
        self.encrypted = isinstance(inner, ssl.SSLSocket)
        self._counters = counters
        self._told = 0.0  # seconds that the kernel was told of last
        if not self.encrypted:
            inner.settimeout(None)
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Give what follows, up to the next call, this long in all."""
        self._deadline = time.monotonic() + seconds

    def _limit(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        if self.encrypted:
            self._inner.settimeout(remaining)
        elif not remaining <= self._told <= 1.2 * remaining:
            self._told = 1.1 * remaining
            microseconds = max(int(self._told * 1e6), 1)  # 0 would be for ever
            limit = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
            self._inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def recv_into(self, buffer: Any, *arguments: Any) -> int:
        """socket.recv_into, within the deadline."""
        self._limit()
        try:
            count = self._inner.recv_into(buffer, *arguments)
        except OSError as error:
            raise _plain(error) from None
        self._counters.add(bytes_received=count)
        return count

    def recv(self, size: int, *arguments: Any) -> bytes:
        """socket.recv, within the deadline."""
        self._limit()
        try:
            data = self._inner.recv(size, *arguments)
        except OSError as error:
            raise _plain(error) from None
        self._counters.add(bytes_received=len(data))
        return data

    def sendall(self, data: Any, *arguments: Any) -> None:
        """socket.sendall, within the deadline."""
        self._limit()
        try:
            self._inner.sendall(data, *arguments)
        except OSError as error:
            raise _plain(error) from None
        self._counters.add(bytes_sent=len(data))

    def settimeout(self, _seconds: float | None) -> None:
        """Without effect: the deadline counts."""

    def readable(self) -> bool:
        """Whether something has come, or the other side has hung up."""
        descriptor = self._inner.fileno()
        if descriptor < 0:  # closed here, by another thread
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, seconds: float, other: int) -> bool:
        """Wait up to `seconds` until something has come, as `readable` says; False if not, or if `other` is first."""
        descriptor = self._inner.fileno()
        if descriptor < 0 or (isinstance(self._inner, ssl.SSLSocket) and self._inner.pending()):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(other, select.POLLIN)
        return any(found == descriptor for found, _ in poll.poll(seconds * 1000))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _plain(error: OSError) -> OSError:
    """A time-out, or else a ConnectionError: an unreachable network or a broken TLS stream is a lost connection too."""
    if isinstance(error, BlockingIOError):  # the kernel's time is up
        return TimeoutError("timed out")
    if isinstance(error, TimeoutError | ConnectionError):
        return error
    return ConnectionResetError(*error.args)


class GuardedConnection(AbstractConnection):
    """What redisfuse adds to a connection of redis-py. Made by `open_connection` only."""

    guard: Guard
    counters: Counters
    brake: Brake
    patience: float  # seconds for connecting and for the handshake
    wire: Wire

    def _connect(self) -> Any:
        inner = super()._connect()  # type: ignore[no-untyped-call, safe-super]  # the next class in line has it
        self.wire = Wire(inner, self.counters, self.patience)
        return self.wire

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
        self.guard.check(commands)
        self.brake.take(len(commands))
        self.counters.add(commands=len(commands))
        self.wire.sendall(packed)

    def send_streamed(self, head: list[bytes], size: int, chunks: Iterable[bytes], seconds: float) -> None:
        """Send one command whose last argument, of `size` bytes, comes in chunks; each has `seconds` to leave.

        Raises ForbiddenCommandError, OSError, ValueError when the chunks come to another size, or what `chunks` raises.
        The server has not seen a whole command then; the connection can't be used further: the caller closes it.
        """
        self.guard.check([head])
        self.brake.take(1)
        self.counters.add(commands=1)
        start = pack_commands([tuple(head)]).split(b"\r\n", 1)[1]
        self.wire.allow(seconds)
        self.wire.sendall(b"*%d\r\n%b$%d\r\n" % (len(head) + 1, start, size))
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            self.wire.allow(seconds)
            self.wire.sendall(chunk)
            if not self.wire.encrypted and self.wire.readable():  # TLS has messages of its own
                raise BrokenPipeError("the server answered before it had all")
        if left:
            raise ValueError("the chunks of a streamed argument do not come to its size")
        self.wire.allow(seconds)
        self.wire.sendall(b"\r\n")


class _TcpConnection(GuardedConnection, Connection):
    pass


class _TlsConnection(GuardedConnection, SSLConnection):
    pass


class _UnixConnection(GuardedConnection, UnixDomainSocketConnection):
    host = ""  # which redis-py forgets here, and asks for when it reports an error


def _quiet_options() -> dict[str, Any]:
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


_QUIET = _quiet_options()


def open_connection(
    address: Address,
    guard: Guard,
    *,
    timeout: float,
    counters: Counters,
    brake: Brake,
    resp3: bool = False,
) -> GuardedConnection:
    """A connection that is made, let in, and in its database; everything within `timeout` seconds.

    `address` is of kind tcp, tls or unix. Raises UnavailableError, AccessError, TryAgainError, UsageError (no such
    database).
    """
    options: dict[str, Any] = {
        **_QUIET,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_read_size": _READ_SIZE,
        "protocol": 3 if resp3 else 2,
    }
    connection: GuardedConnection
    if address.kind == "unix":
        connection = _UnixConnection(path=address.unix_path, **options)  # type: ignore[no-untyped-call]
    elif address.tls is not None:
        tls = {f"ssl_{name}": getattr(address.tls, name) for name in type(address.tls).__slots__}
        connection = _TlsConnection(host=address.host, port=address.port, **tls, **options)
    else:
        connection = _TcpConnection(host=address.host, port=address.port, **options)  # type: ignore[no-untyped-call]
    connection.guard = guard
    connection.counters = counters
    connection.brake = brake
    connection.patience = timeout
    try:
        connection.connect()  # type: ignore[no-untyped-call]
    except Exception as error:
        if isinstance(error, ConnectionError):
            error = _last_words(connection) or error
        connection.disconnect()  # type: ignore[no-untyped-call]
        raise connecting_error(error, address) from None  # its traceback could show the password
    counters.add(connects=1)
    return connection


def _last_words(connection: GuardedConnection) -> RedisFuseError | None:
    """The error reply with which the server hung up on us while we were still greeting it."""
    with contextlib.suppress(OSError):
        connection.wire.allow(0.2)
        line, end, _ = connection.wire.recv(4096).partition(b"\r\n")
        if line[:1] == b"-" and end:
            return error_of_text(line[1:].decode("utf-8", "replace"))
    return None


def connecting_error(error: Exception, address: Address) -> RedisFuseError:
    """Why a server could not be entered, in one line with what to do about it."""
    if isinstance(error, RedisFuseError):
        return error
    failure = connection_error(error, address)
    if isinstance(failure, ServerReplyError) and "DB index" in str(failure):
        return UsageError(f"the server at {address.place} has no database {address.db}")
    if isinstance(failure, AccessError):
        return AccessError(f"{address.place} lets nobody in like that: {failure}")
    return failure


_REPLIES = (
    redis.exceptions.ResponseError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.BusyLoadingError,
)


def connection_error(error: Exception, address: Address) -> RedisFuseError:
    """The error of redis-py, or of a socket, as redisfuse's, without secrets."""
    if isinstance(error, RedisFuseError):
        return error
    words = " ".join(address.scrub(str(error)).split())
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return UnavailableError(f"{address.place} did not answer in time: it is down, hung or too slow (see --timeout)")
    if isinstance(error, redis.exceptions.InvalidResponse):
        return UnavailableError(f"what answers at {address.place} does not speak the Redis protocol")
    if isinstance(error, _REPLIES):
        mapped = error_of_reply(error)
        return type(mapped)(address.scrub(str(mapped)))
    if "max number of clients" in words:
        return UnavailableError(f"{address.place} has as many clients as it takes (maxclients)")
    reason = _reason(words)
    return UnavailableError(f"no connection to {address.place}: {reason}")


def _reason(words: str) -> str:
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
        if sign.lower() in words.lower():
            return reason
    return words

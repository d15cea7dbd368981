"""A pipelined connection: commands out, replies in.

A channel never sends anything twice. hiredis parses the replies directly: redis-py's reader recurses once for each push
message, and closes the connection when a reply is LOADING. One thread at a time uses a channel; only `close` may be
called from another thread, and ends its wait.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, BinaryIO, NoReturn, Protocol

import hiredis

from redisfuse.client.address import Address
from redisfuse.client.allowlist import pack_commands
from redisfuse.client.connection import FilteredConnection
from redisfuse.client.connection_errors import map_channel_error
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.connection_state import (
    STATE_RESET_COMMANDS,
    STATEFUL_COMMANDS,
    is_left_in_multi,
    iter_in_multi,
)
from redisfuse.client.message_reader import InvalidMessageError, MessageReader
from redisfuse.client.reply_bounds import (
    MAX_ELEMENT_BYTES,
    MAX_PUSH_BYTES,
    MAX_SCALAR_BYTES,
    are_valid,
    max_reply_bytes,
)
from redisfuse.errors import (
    ConnectionLostError,
    ForbiddenCommandError,
    RedisFuseError,
    ReplyTooLargeError,
    UnavailableError,
)

CommandArgument = bytes | str | int
WaitHook = Callable[[int], None]
"""Called before a thread waits, with the descriptor that becomes readable then; -1: there is none."""
RedisCommand = Sequence[CommandArgument]

_READABLE_TIMEOUT_SECONDS = 0.05  # for a message of which a part has arrived


class CommandExecutor(Protocol):
    """Executes commands in one round trip."""

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies, errors among them as values."""


class Channel:
    """One connection. A method that raises UnavailableError has closed it for good.

    `receive` and `execute` return error replies as values (RedisFuseError objects).
    """

    def __init__(
        self, connection: FilteredConnection, address: Address, timeout: float, *, resp3: bool = False
    ) -> None:
        self._connection = connection
        self._socket = connection.deadline_socket
        self._address = address
        self.timeout = timeout  # seconds; may be changed between commands
        self.wait_hook: WaitHook | None = None
        self.connection_id: ConnectionId | None = None  # known of channels that may write
        self.generation = 0  # the connector's when it was opened
        self._resp3 = resp3
        self._reader = MessageReader(connection.deadline_socket)
        self._buffered_pushes: deque[list[Any]] = deque()
        self._buffered_replies: deque[Any] = deque()
        # Of the commands whose replies were not returned yet; QUEUED for those in a transaction.
        self._pending_names: deque[bytes] = deque()
        self._unrequested_limit = MAX_PUSH_BYTES if resp3 else MAX_SCALAR_BYTES  # bytes of an unrequested message
        self._reader.max_message_bytes = self._unrequested_limit
        self._reset_command = b""
        self.closed = False
        self.is_asking = False  # whether ASKING precedes each command and each MULTI

    @property
    def endpoint(self) -> tuple[str, int]:
        """The host and port of the server; empty and 0 for a Unix socket."""
        return self._address.host, self._address.port

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, commands: Iterable[RedisCommand]) -> None:
        """Send commands in one write.

        Raises ForbiddenCommandError (nothing was sent), UnavailableError.
        """
        self._send_tracked([tuple(command) for command in commands])

    def _send_tracked(self, commands: Sequence[tuple[CommandArgument, ...]]) -> bool:
        """Send commands; return whether any of them affects the state of the connection."""
        self._require_open()
        self._socket.set_deadline(self.timeout)
        try:
            self._connection.send_packed_command(pack_commands(commands), round_trips=1)
        except ConnectionError as error:
            self._fail(self._read_final_error() or error)
        except OSError as error:
            self._fail(error)
        names = [_normalize_name(command[0]) for command in commands]
        return self._expect_replies(names, max_reply_bytes(names, commands))

    def send_streamed(self, head: RedisCommand, size: int, chunks: Iterable[bytes]) -> None:
        """Send one command whose last argument is given in chunks.

        The argument has `size` bytes: `SET key` and 200 MB. After any error the server has not received the whole
        command, so did not run it, and the channel is closed. Raises UnavailableError, TooLargeError and the like if
        the server rejected the command before its end, ValueError if the chunks do not add up to `size`, and whatever
        `chunks` raises.
        """
        self._require_open()
        words = [word if isinstance(word, bytes) else str(word).encode() for word in head]
        try:
            self._connection.stats.add(round_trips=1)
            self._connection.send_streamed(words, size, chunks, self.timeout)
        except ForbiddenCommandError:
            raise
        except ConnectionError as error:
            self._fail(self._read_final_error() or error)
        except TimeoutError as error:
            self._fail(error)
        except BaseException:
            self.close()
            raise
        self._expect_replies([_normalize_name(words[0])], MAX_ELEMENT_BYTES)

    def _read_final_error(self) -> RedisFuseError | None:
        """Return why the server closed the connection, as far as it can still be read.

        That is an error reply, as for an excessive length, or the alert of TLS with which the stream ends.
        """
        try:
            while True:
                reply = self.receive(1.0)
                if isinstance(reply, RedisFuseError):
                    return reply
        except ConnectionLostError as error:
            return error
        except UnavailableError:
            return None

    def _expect_replies(self, names: list[bytes], max_bytes: int) -> bool:
        """Expect the replies to commands that were sent.

        None of them has more than `max_bytes` bytes. Returns whether any of the commands affects the state of the
        connection.
        """
        if not self._pending_names:
            self._reader.max_message_bytes = self._unrequested_limit
        self._reader.max_message_bytes = max(self._reader.max_message_bytes, max_bytes)
        if self._reset_command != b"DISCARD" and STATEFUL_COMMANDS.isdisjoint(names):
            self._pending_names.extend(names)
            return False
        for name in names:
            if name == b"SUBSCRIBE" and self._resp3:
                continue  # its only reply is a push message
            is_queued = self._reset_command == b"DISCARD" and name not in STATE_RESET_COMMANDS
            self._pending_names.append(b"QUEUED" if is_queued else name)
            self._reset_command = STATE_RESET_COMMANDS.get(name, self._reset_command)
        return True

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next reply, within `timeout` seconds (default: the channel's).

        Push messages are buffered.
        """
        self._require_open()
        while not self._buffered_replies:
            self._buffer_message(self.timeout if timeout is None else timeout)
        return self._take_reply()

    def try_receive(self, timeout: float) -> tuple[Any] | None:
        """Return the next reply, in a tuple.

        None after `timeout` seconds without a message; the channel stays usable then.
        """
        self._require_open()
        while not self._buffered_replies:
            try:
                self._buffer_message(timeout, keep_open_on_timeout=True)
            except TimeoutError:
                if not self._socket.is_readable():
                    return None
                timeout = _READABLE_TIMEOUT_SECONDS  # this thread was late, not the message
        return (self._take_reply(),)

    def _buffer_message(self, timeout: float, *, keep_open_on_timeout: bool = False) -> None:
        self._socket.set_deadline(timeout)
        message = self._read_message(keep_open_on_timeout=keep_open_on_timeout)
        if isinstance(message, hiredis.PushNotification):
            self._buffered_pushes.append(message)
        else:
            self._buffered_replies.append(message)

    def _take_reply(self) -> Any:
        reply = self._buffered_replies.popleft()
        if self._pending_names:
            self._check_replies([self._pending_names.popleft()], [reply])
        elif not isinstance(reply, RedisFuseError):
            self._fail(InvalidMessageError("a reply without a command"))
        return reply

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send commands and return all of their replies.

        Closes the channel if a reply to EXEC or DISCARD does not say that the server has left MULTI.
        """
        if self.is_asking:
            return self._execute_asking(commands)
        return self._execute(commands)

    def _execute_asking(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Execute commands, each after ASKING; inside MULTI, that before MULTI counts."""
        names = [_normalize_name(command[0]) for command in commands]
        expanded: list[RedisCommand] = []
        positions: list[int] = []
        for command, is_in_multi in zip(commands, iter_in_multi(names, self._reset_command), strict=True):
            if not is_in_multi:
                expanded.append((b"ASKING",))
            positions.append(len(expanded))
            expanded.append(command)
        replies = self._execute(expanded)
        return [replies[position] for position in positions]

    def _execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        is_stateful = self._send_tracked([tuple(command) for command in commands])
        replies = self.receive_many(len(commands))
        if is_stateful and is_left_in_multi([_normalize_name(command[0]) for command in commands], replies):
            self.close()
        return replies

    def receive_many(self, count: int) -> list[Any]:
        """Return the next `count` replies."""
        replies: list[Any] = []
        names = self._pending_names
        if not (self._resp3 or self._buffered_replies) and len(names) == count:
            try:
                while len(replies) < count:  # without push messages, take all complete replies at once
                    if self.wait_hook is not None:
                        self.wait_hook(self._socket.wait_descriptor)
                    self._socket.set_deadline(self.timeout)
                    replies += self._reader.read_available()
            except (OSError, InvalidMessageError, ReplyTooLargeError) as error:
                self._fail(error)
            if len(replies) > count:
                self._fail(InvalidMessageError("more replies than commands"))
            self._check_replies(names, replies)
            names.clear()
            return replies
        return [self.receive() for _ in range(count)]

    def _check_replies(self, names: Collection[bytes], replies: Sequence[Any]) -> None:
        if not are_valid(names, replies) and not is_left_in_multi(names, replies):
            self._fail(InvalidMessageError("a reply that its command never returns"))

    def take_push(self) -> list[Any] | None:
        """Return a push message that was received before a reply, or None."""
        return self._buffered_pushes.popleft() if self._buffered_pushes else None

    def receive_push(self, timeout: float, *, wakeup_fd: int | None = None) -> list[Any] | None:
        """Return the next RESP3 push message; None after `timeout` seconds without one.

        Replies are buffered. `wakeup_fd`: a descriptor that ends the wait when it becomes readable.
        """
        self._require_open()
        if wakeup_fd is not None:
            push = self.receive_push(0)
            return (
                self.receive_push(timeout) if push is None and self._socket.wait_readable(timeout, wakeup_fd) else push
            )
        push = self.take_push()
        if push is not None:
            return push
        if timeout <= 0 and self._socket.is_readable():
            timeout = _READABLE_TIMEOUT_SECONDS
        self._socket.set_deadline(timeout)
        while True:
            try:
                reply = self._read_message(keep_open_on_timeout=True)
            except TimeoutError:
                return None  # the reader keeps an incomplete message
            if isinstance(reply, hiredis.PushNotification):
                return reply
            self._buffered_replies.append(reply)

    def _read_message(self, *, keep_open_on_timeout: bool = False) -> Any:
        """Return the next reply or push message.

        `keep_open_on_timeout`: raise TimeoutError, and stay usable.
        """
        try:
            return self._reader.read()
        except TimeoutError as error:
            if keep_open_on_timeout:
                raise
            self._fail(error)
        except (OSError, InvalidMessageError, ReplyTooLargeError) as error:
            self._fail(error)

    def download(self, file: BinaryIO, command: RedisCommand, max_bytes: int | None = None) -> int:
        """Write the bulk string that a command returns to `file`, as it arrives.

        Returns its length in bytes. Memory use is constant. Raises NotFoundError if the reply is nil, the mapped error
        of an error reply, and ReplyTooLargeError if it has more than `max_bytes` bytes. If writing the file fails,
        closes the channel and raises the file's error.
        """
        self.send([command])
        if self.wait_hook is not None:
            self.wait_hook(-1)
        self._socket.set_deadline(self.timeout)
        try:
            received, size = self._reader.read_bulk_header()
            if max_bytes is not None and isinstance(size, int) and size > max_bytes:
                self._fail(ReplyTooLargeError())
            if isinstance(size, RedisFuseError):
                self._pending_names.clear()
                raise size
            remaining = size
            while remaining:
                chunk = received[:remaining]
                file.write(chunk)
                remaining -= len(chunk)
                received = received[len(chunk) :] if remaining == 0 else self._read_bytes()
            while len(received) < 2:
                received += self._read_bytes()
            if received != b"\r\n":
                raise InvalidMessageError("a bulk string without its terminator")
        except (TimeoutError, ConnectionError, InvalidMessageError) as error:
            self._fail(error)
        except RedisFuseError:
            raise
        except BaseException:
            self.close()
            raise
        self._pending_names.clear()
        return size

    def _read_bytes(self) -> bytes:
        self._socket.set_deadline(self.timeout)
        return self._reader.read_bytes()

    # -- reuse and closing --------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether the channel is open, without a pending reply, WATCH or MULTI."""
        return not (self.closed or self._pending_names or self._buffered_replies or self._reset_command)

    def reset(self) -> None:
        """Cancel a WATCH or an open MULTI, so that the channel can be reused.

        Closes the channel if that fails.
        """
        if self.closed or self.is_idle:
            return
        if self._pending_names or self._buffered_replies:
            self.close()
            return
        with contextlib.suppress(UnavailableError):
            if self.execute([(self._reset_command,)])[0] != b"OK":  # QUEUED: the connection is inside MULTI
                self.close()

    def is_healthy(self) -> bool:
        """Return whether the idle channel has received nothing.

        The end of the connection counts as received.
        """
        return not self.closed and not self._socket.is_readable()

    def close(self) -> None:
        """Close the connection. A wait in another thread ends with UnavailableError."""
        self.closed = True
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def _require_open(self) -> None:
        if self.closed:
            raise ConnectionLostError(f"the connection to {self._address.endpoint} was closed")

    def _fail(self, error: Exception) -> NoReturn:
        """Close the channel, and raise the error as one of redisfuse."""
        closed = self.closed
        self.close()
        self._reader.discard()
        raise map_channel_error(error, self._address, was_closed=closed) from None


@functools.lru_cache(1024)
def _normalize_name(name: CommandArgument) -> bytes:
    return (name if isinstance(name, bytes) else str(name).encode()).upper()

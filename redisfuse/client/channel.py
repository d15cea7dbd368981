"""A conversation on one connection: commands out, answers in. Nothing is ever sent twice here.

Answers are parsed by hiredis directly: redis-py's reading recurses once for each push message, and hangs up when an
answer says LOADING. One thread at a time uses a Dialogue, except that close() may come from another and ends its wait.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NoReturn

import hiredis
import redis

from redisfuse.client.address import Address
from redisfuse.client.allowlist import pack_commands
from redisfuse.client.connection import FilteredConnection, map_connection_error
from redisfuse.client.reply_errors import map_error_line
from redisfuse.errors import ConnectionLostError, ForbiddenCommandError, NotFoundError, RedisFuseError, UnavailableError

CommandArgument = bytes | str | int
RedisCommand = Sequence[CommandArgument]

_RECEIVE_BUFFER_BYTES = 131072  # bytes taken from the socket at once
_MAX_HEADER_BYTES = 64 * 1024  # bytes; an error reply is a line


class Channel:
    """One connection. After any UnavailableError that a method raises, it is closed and can't be used any more.

    Error replies of the server are values (RedisFuseError objects) in what receive() and exchange() return.
    """

    def __init__(
        self, connection: FilteredConnection, address: Address, timeout: float, *, resp3: bool = False
    ) -> None:
        self._connection = connection
        self._socket = connection.deadline_socket
        self._address = address
        self.timeout = timeout  # seconds; may be changed between commands
        self._resp3 = resp3
        self._reader = hiredis.Reader(
            replyError=map_error_line,
            notEnoughData=Ellipsis,
            errors="backslashreplace",
        )
        self._receive_buffer = bytearray(_RECEIVE_BUFFER_BYTES)
        self._buffered_pushes: deque[list[Any]] = deque()
        self._buffered_replies: deque[Any] = deque()
        self._pending_reply_count = 0
        self._reset_command = b""
        self.closed = False

    # -- out ----------------------------------------------------------------------------------------------------------

    def send(self, commands: Iterable[RedisCommand]) -> None:
        """Send commands at once. Raises ForbiddenCommandError (nothing was sent), UnavailableError."""
        tuples = [tuple(command) for command in commands]
        self._send_packed(pack_commands(tuples))
        if _STATEFUL_COMMANDS.isdisjoint({_normalize_name(command[0]) for command in tuples}):
            self._pending_reply_count += len(tuples)
        else:
            for command in tuples:
                self._track_command(command[0])

    def send_streamed(self, head: RedisCommand, size: int, chunks: Iterable[bytes]) -> None:
        """Send one command whose last argument, of `size` bytes, comes in chunks: `SET key` and 200 MB.

        Whatever it raises, the server has not seen the whole command, so did not run it, and this is closed:
        UnavailableError, TooLargeError and the like if the server refused it half-way, ValueError if the chunks come to
        another size, and what `chunks` itself raises.
        """
        self._require_open()
        words = [word if isinstance(word, bytes) else str(word).encode() for word in head]
        try:
            self._connection.stats.add(round_trips=1)
            self._connection.send_streamed(words, size, chunks, self.timeout)
        except ForbiddenCommandError:
            raise
        except ConnectionError as error:
            answer = self._read_final_error()
            self._fail(answer or error)
        except TimeoutError as error:
            self._fail(error)
        except BaseException:
            self.close()
            raise
        self._track_command(words[0])

    def _read_final_error(self) -> RedisFuseError | None:
        """The error reply that the server gave before it hung up, if any, as it does for a length too large."""
        with contextlib.suppress(UnavailableError):
            while True:
                answer = self.receive(1.0)
                if isinstance(answer, RedisFuseError):
                    return answer
        return None

    def _send_packed(self, packed: bytes) -> None:
        self._require_open()
        self._socket.set_deadline(self.timeout)
        try:
            self._connection.send_packed_command(packed)
        except ConnectionError as error:
            answer = self._read_final_error()
            self._fail(answer or error)
        except OSError as error:
            self._fail(error)
        self._connection.stats.add(round_trips=1)

    def _track_command(self, command_name: CommandArgument) -> None:
        name = _normalize_name(command_name)
        if name == b"SUBSCRIBE" and self._resp3:
            return  # its only answer is a push
        self._pending_reply_count += 1
        if name in _STATE_RESET_COMMANDS:
            self._reset_command = _STATE_RESET_COMMANDS[name]

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Any:
        """The next answer, waited for up to `timeout` seconds (else the limits'). Pushes are kept for receive_push."""
        self._require_open()
        while not self._buffered_replies:
            self._socket.set_deadline(self.timeout if timeout is None else timeout)
            answer = self._read_message()
            if isinstance(answer, hiredis.PushNotification):
                self._buffered_pushes.append(answer)
            else:
                self._buffered_replies.append(answer)
        self._pending_reply_count -= 1
        return self._buffered_replies.popleft()

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send commands and wait for all of their answers."""
        self.send(commands)
        answers: list[Any] = []
        if not (self._resp3 or self._buffered_replies):  # nothing can be between: take what has come all at once
            while len(answers) < len(commands):
                self._socket.set_deadline(self.timeout)
                answers.append(self._read_message())
                answers += self._pop_complete_messages()
            self._pending_reply_count -= len(commands)
            if len(answers) > len(commands):
                self._fail(hiredis.ProtocolError("more answers than questions"))
            return answers
        return [self.receive() for _ in commands]

    def receive_push(self, timeout: float, *, wakeup_fd: int | None = None) -> list[Any] | None:
        """The next RESP3 push message; None if none comes within `timeout` seconds. Answers are kept for receive().

        `unless`: a descriptor; when that is readable, it is not waited any longer.
        """
        self._require_open()
        if wakeup_fd is not None:
            push = self.receive_push(0)
            return (
                self.receive_push(timeout) if push is None and self._socket.wait_readable(timeout, wakeup_fd) else push
            )
        if self._buffered_pushes:
            return self._buffered_pushes.popleft()
        self._socket.set_deadline(timeout if timeout > 0 else 0.05 if self._socket.is_readable() else 0)
        while True:
            try:
                answer = self._read_message(keep_open_on_timeout=True)
            except TimeoutError:
                return None  # half a message stays in the reader
            if isinstance(answer, hiredis.PushNotification):
                return answer
            self._buffered_replies.append(answer)

    def _read_message(self, *, keep_open_on_timeout: bool = False) -> Any:
        """The next answer or push. With `patient`, a time-out is TimeoutError, and no end."""
        reader = self._reader
        try:
            while (answer := reader.gets()) is Ellipsis:
                count = self._socket.recv_into(self._receive_buffer)
                if not count:
                    raise ConnectionResetError("Connection closed by server.")
                reader.feed(self._receive_buffer, 0, count)  # type: ignore[arg-type]  # any buffer is taken
        except TimeoutError as error:
            if keep_open_on_timeout:
                raise
            self._fail(error)
        except (OSError, hiredis.ProtocolError) as error:
            self._fail(error)
        return answer

    def _pop_complete_messages(self) -> list[Any]:
        """The answers that have come whole by now."""
        try:
            return list(iter(self._reader.gets, Ellipsis))
        except hiredis.ProtocolError as error:
            self._fail(error)

    def download(self, file: BinaryIO, command: RedisCommand) -> int:
        """Ask for one bulk string and write it to `file` as it comes, in constant memory; returns its length in bytes.

        Raises NotFoundError if the answer is nil, the mapped error if it is an error reply. When the file can't be
        written, that error passes, and this is closed.
        """
        self.send([command])
        try:
            received, size = self._read_bulk_header()
            if isinstance(size, RedisFuseError):
                self._pending_reply_count -= 1
                raise size
            left = size
            while left:
                piece = received[:left]
                file.write(piece)
                left -= len(piece)
                received = received[len(piece) :] if left == 0 else self._read_bytes()
            while len(received) < 2:
                received += self._read_bytes()
            if received != b"\r\n":
                raise hiredis.ProtocolError("a bulk string that does not end")
        except (TimeoutError, ConnectionError, hiredis.ProtocolError) as error:
            self._fail(error)
        except RedisFuseError:
            raise
        except BaseException:
            self.close()
            raise
        self._pending_reply_count -= 1
        return size

    def _read_bulk_header(self) -> tuple[bytes, "int | RedisFuseError"]:
        received = self._read_bytes()
        while b"\r\n" not in received:
            if len(received) > _MAX_HEADER_BYTES:
                raise hiredis.ProtocolError("no end of line")
            received += self._read_bytes()
        line, _, rest = received.partition(b"\r\n")
        if line[:1] == b"-":
            return rest, map_error_line(line[1:].decode("utf-8", "backslashreplace"))
        if line in (b"$-1", b"_"):
            return rest, NotFoundError("no such key or field")
        if line[:1] != b"$" or not line[1:].isdigit():
            raise hiredis.ProtocolError("not a bulk string")
        return rest, int(line[1:])

    def _read_bytes(self) -> bytes:
        self._socket.set_deadline(self.timeout)
        count = self._socket.recv_into(self._receive_buffer)
        if not count:
            raise ConnectionResetError("Connection closed by server.")
        return bytes(memoryview(self._receive_buffer)[:count])

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and neither answers are awaited nor a transaction or WATCH is under way."""
        return not (self.closed or self._pending_reply_count or self._buffered_replies or self._reset_command)

    def reset(self) -> None:
        """Make it fit for another user: drop a WATCH or an unfinished MULTI, or close it if it can't be."""
        if self.closed or self.is_idle:
            return
        if self._pending_reply_count or self._buffered_replies:
            self.close()
            return
        with contextlib.suppress(UnavailableError):
            answer = self.execute([(self._reset_command,)])[0]
            if isinstance(answer, RedisFuseError):
                self.close()

    def is_healthy(self) -> bool:
        """Whether nothing has come unasked, the end of the connection included: what a kept connection must be."""
        return not self.closed and not self._socket.is_readable()

    def close(self) -> None:
        """Hang up. A wait in another thread ends with UnavailableError."""
        self.closed = True
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def _require_open(self) -> None:
        if self.closed:
            raise ConnectionLostError(f"the connection to {self._address.endpoint} was closed")

    def _fail(self, error: Exception) -> NoReturn:
        closed = self.closed
        self.close()
        if isinstance(error, RedisFuseError):
            raise error
        if isinstance(error, hiredis.ProtocolError):
            raise UnavailableError(f"{self._address.endpoint} answered garbage: the connection was dropped") from None
        if closed or not isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
            raise ConnectionLostError(f"the connection to {self._address.endpoint} was lost") from None
        raise map_connection_error(error, self._address) from None


@functools.lru_cache(1024)
def _normalize_name(word: CommandArgument) -> bytes:
    return (word if isinstance(word, bytes) else str(word).encode()).upper()


_STATE_RESET_COMMANDS = {b"WATCH": b"UNWATCH", b"MULTI": b"DISCARD", b"EXEC": b"", b"DISCARD": b"", b"UNWATCH": b""}
"""Commands that begin or end a state of the connection, and what ends that state."""

_STATEFUL_COMMANDS = frozenset({b"SUBSCRIBE", *_STATE_RESET_COMMANDS})

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
from redisfuse.client.connection import GuardedConnection, connection_error
from redisfuse.client.reply_errors import error_of_text
from redisfuse.errors import ConnectionLostError, ForbiddenCommandError, NotFoundError, RedisFuseError, UnavailableError

Argument = bytes | str | int
Command = Sequence[Argument]

_BUFFER = 131072  # bytes taken from the socket at once
_LONGEST_HEADER = 64 * 1024  # bytes; an error reply is a line


class Dialogue:
    """One connection. After any UnavailableError that a method raises, it is closed and can't be used any more.

    Error replies of the server are values (RedisFuseError objects) in what receive() and exchange() return.
    """

    def __init__(self, connection: GuardedConnection, address: Address, timeout: float, *, resp3: bool = False) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._address = address
        self.timeout = timeout  # seconds; may be changed between commands
        self._resp3 = resp3
        self._reader = hiredis.Reader(
            replyError=error_of_text,
            notEnoughData=Ellipsis,
            errors="backslashreplace",
        )
        self._buffer = bytearray(_BUFFER)
        self._pushes: deque[list[Any]] = deque()
        self._replies: deque[Any] = deque()
        self._awaited = 0
        self._transaction = b""
        self.closed = False

    # -- out ----------------------------------------------------------------------------------------------------------

    def send(self, commands: Iterable[Command]) -> None:
        """Send commands at once. Raises ForbiddenCommandError (nothing was sent), UnavailableError."""
        tuples = [tuple(command) for command in commands]
        self._send_packed(pack_commands(tuples))
        if _STATEFUL.isdisjoint({_name(command[0]) for command in tuples}):
            self._awaited += len(tuples)
        else:
            for command in tuples:
                self._note(command[0])

    def send_streamed(self, head: Command, size: int, chunks: Iterable[bytes]) -> None:
        """Send one command whose last argument, of `size` bytes, comes in chunks: `SET key` and 200 MB.

        Whatever it raises, the server has not seen the whole command, so did not run it, and this is closed:
        UnavailableError, TooLargeError and the like if the server refused it half-way, ValueError if the chunks come to
        another size, and what `chunks` itself raises.
        """
        self._require_open()
        words = [word if isinstance(word, bytes) else str(word).encode() for word in head]
        try:
            self._connection.counters.add(round_trips=1)
            self._connection.send_streamed(words, size, chunks, self.timeout)
        except ForbiddenCommandError:
            raise
        except ConnectionError as error:
            answer = self._last_words()
            self._fail(answer or error)
        except TimeoutError as error:
            self._fail(error)
        except BaseException:
            self.close()
            raise
        self._note(words[0])

    def _last_words(self) -> RedisFuseError | None:
        """The error reply that the server gave before it hung up, if any, as it does for a length too large."""
        with contextlib.suppress(UnavailableError):
            while True:
                answer = self.receive(1.0)
                if isinstance(answer, RedisFuseError):
                    return answer
        return None

    def _send_packed(self, packed: bytes) -> None:
        self._require_open()
        self._wire.allow(self.timeout)
        try:
            self._connection.send_packed_command(packed)
        except ConnectionError as error:
            answer = self._last_words()
            self._fail(answer or error)
        except OSError as error:
            self._fail(error)
        self._connection.counters.add(round_trips=1)

    def _note(self, word: Argument) -> None:
        name = _name(word)
        if name == b"SUBSCRIBE" and self._resp3:
            return  # its only answer is a push
        self._awaited += 1
        if name in _NOTED:
            self._transaction = _NOTED[name]

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Any:
        """The next answer, waited for up to `timeout` seconds (else the limits'). Pushes are kept for receive_push."""
        self._require_open()
        while not self._replies:
            self._wire.allow(self.timeout if timeout is None else timeout)
            answer = self._next()
            if isinstance(answer, hiredis.PushNotification):
                self._pushes.append(answer)
            else:
                self._replies.append(answer)
        self._awaited -= 1
        return self._replies.popleft()

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and wait for all of their answers."""
        self.send(commands)
        answers: list[Any] = []
        if not (self._resp3 or self._replies):  # nothing can be between: take what has come all at once
            while len(answers) < len(commands):
                self._wire.allow(self.timeout)
                answers.append(self._next())
                answers += self._complete()
            self._awaited -= len(commands)
            if len(answers) > len(commands):
                self._fail(hiredis.ProtocolError("more answers than questions"))
            return answers
        return [self.receive() for _ in commands]

    def receive_push(self, timeout: float, *, unless: int | None = None) -> list[Any] | None:
        """The next RESP3 push message; None if none comes within `timeout` seconds. Answers are kept for receive().

        `unless`: a descriptor; when that is readable, it is not waited any longer.
        """
        self._require_open()
        if unless is not None:
            push = self.receive_push(0)
            return self.receive_push(timeout) if push is None and self._wire.wait(timeout, unless) else push
        if self._pushes:
            return self._pushes.popleft()
        self._wire.allow(timeout if timeout > 0 else 0.05 if self._wire.readable() else 0)
        while True:
            try:
                answer = self._next(patient=True)
            except TimeoutError:
                return None  # half a message stays in the reader
            if isinstance(answer, hiredis.PushNotification):
                return answer
            self._replies.append(answer)

    def _next(self, *, patient: bool = False) -> Any:
        """The next answer or push. With `patient`, a time-out is TimeoutError, and no end."""
        reader = self._reader
        try:
            while (answer := reader.gets()) is Ellipsis:
                count = self._wire.recv_into(self._buffer)
                if not count:
                    raise ConnectionResetError("Connection closed by server.")
                reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # any buffer is taken
        except TimeoutError as error:
            if patient:
                raise
            self._fail(error)
        except (OSError, hiredis.ProtocolError) as error:
            self._fail(error)
        return answer

    def _complete(self) -> list[Any]:
        """The answers that have come whole by now."""
        try:
            return list(iter(self._reader.gets, Ellipsis))
        except hiredis.ProtocolError as error:
            self._fail(error)

    def fetch_into(self, file: BinaryIO, command: Command) -> int:
        """Ask for one bulk string and write it to `file` as it comes, in constant memory; returns its length in bytes.

        Raises NotFoundError if the answer is nil, the mapped error if it is an error reply. When the file can't be
        written, that error passes, and this is closed.
        """
        self.send([command])
        try:
            received, size = self._bulk_header()
            if isinstance(size, RedisFuseError):
                self._awaited -= 1
                raise size
            left = size
            while left:
                piece = received[:left]
                file.write(piece)
                left -= len(piece)
                received = received[len(piece) :] if left == 0 else self._some()
            while len(received) < 2:
                received += self._some()
            if received != b"\r\n":
                raise hiredis.ProtocolError("a bulk string that does not end")
        except (TimeoutError, ConnectionError, hiredis.ProtocolError) as error:
            self._fail(error)
        except RedisFuseError:
            raise
        except BaseException:
            self.close()
            raise
        self._awaited -= 1
        return size

    def _bulk_header(self) -> tuple[bytes, "int | RedisFuseError"]:
        received = self._some()
        while b"\r\n" not in received:
            if len(received) > _LONGEST_HEADER:
                raise hiredis.ProtocolError("no end of line")
            received += self._some()
        line, _, rest = received.partition(b"\r\n")
        if line[:1] == b"-":
            return rest, error_of_text(line[1:].decode("utf-8", "backslashreplace"))
        if line in (b"$-1", b"_"):
            return rest, NotFoundError("no such key or field")
        if line[:1] != b"$" or not line[1:].isdigit():
            raise hiredis.ProtocolError("not a bulk string")
        return rest, int(line[1:])

    def _some(self) -> bytes:
        self._wire.allow(self.timeout)
        count = self._wire.recv_into(self._buffer)
        if not count:
            raise ConnectionResetError("Connection closed by server.")
        return bytes(memoryview(self._buffer)[:count])

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it is open, and neither answers are awaited nor a transaction or WATCH is under way."""
        return not (self.closed or self._awaited or self._replies or self._transaction)

    def settle(self) -> None:
        """Make it fit for another user: drop a WATCH or an unfinished MULTI, or close it if it can't be."""
        if self.closed or self.idle:
            return
        if self._awaited or self._replies:
            self.close()
            return
        with contextlib.suppress(UnavailableError):
            answer = self.exchange([(self._transaction,)])[0]
            if isinstance(answer, RedisFuseError):
                self.close()

    def quiet(self) -> bool:
        """Whether nothing has come unasked, the end of the connection included: what a kept connection must be."""
        return not self.closed and not self._wire.readable()

    def close(self) -> None:
        """Hang up. A wait in another thread ends with UnavailableError."""
        self.closed = True
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def _require_open(self) -> None:
        if self.closed:
            raise ConnectionLostError(f"the connection to {self._address.place} was closed")

    def _fail(self, error: Exception) -> NoReturn:
        closed = self.closed
        self.close()
        if isinstance(error, RedisFuseError):
            raise error
        if isinstance(error, hiredis.ProtocolError):
            raise UnavailableError(f"{self._address.place} answered garbage: the connection was dropped") from None
        if closed or not isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
            raise ConnectionLostError(f"the connection to {self._address.place} was lost") from None
        raise connection_error(error, self._address) from None


@functools.lru_cache(1024)
def _name(word: Argument) -> bytes:
    return (word if isinstance(word, bytes) else str(word).encode()).upper()


_NOTED = {b"WATCH": b"UNWATCH", b"MULTI": b"DISCARD", b"EXEC": b"", b"DISCARD": b"", b"UNWATCH": b""}
"""Commands that begin or end a state of the connection, and what ends that state."""

_STATEFUL = frozenset({b"SUBSCRIBE", *_NOTED})

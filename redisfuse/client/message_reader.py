"""Reads messages from a socket with hiredis, each within a limit of bytes."""

from typing import Any

import hiredis

from redisfuse.client.deadline_socket import DeadlineSocket
from redisfuse.client.reply_errors import map_error_line
from redisfuse.errors import NotFoundError, RedisFuseError, ReplyTooLargeError

_RECEIVE_BUFFER_BYTES = 131072  # most bytes of one read from the socket
_MAX_HEADER_BYTES = 64 * 1024  # of a bulk string's header, or of an error reply, which is one line

_PARSER_ERRORS = (hiredis.ProtocolError, MemoryError, TypeError, ValueError)
"""Errors of hiredis: for bytes that are not a message, an impossible length, and maps with a list as key."""


class InvalidMessageError(Exception):
    """The peer sent something that is not a message, or not the expected one."""


class MessageReader:
    """The incoming messages of one connection.

    An error leaves it unusable, except a TimeoutError.
    """

    def __init__(self, socket: DeadlineSocket) -> None:
        self._socket = socket
        self._parser = _create_parser()
        self._receive_buffer = bytearray(_RECEIVE_BUFFER_BYTES)
        self._incomplete_bytes = 0  # received of a message that is not complete
        self.max_message_bytes = 0

    def read(self) -> Any:
        """Return the next message.

        Error replies are RedisFuseError objects, push messages hiredis.PushNotification. Raises OSError,
        InvalidMessageError, ReplyTooLargeError. After a TimeoutError, the next call continues with the same message.
        """
        # No local variable refers to the parser: the traceback of an error would keep what was received of a message.
        try:
            while (message := self._parser.gets()) is Ellipsis:
                count = self._socket.recv_into(self._receive_buffer)
                if not count:
                    raise ConnectionResetError("Connection closed by server.")
                self._incomplete_bytes += count
                if self._incomplete_bytes > self.max_message_bytes:
                    raise ReplyTooLargeError("a reply was longer than requested")
                self._parser.feed(self._receive_buffer, 0, count)  # type: ignore[arg-type]  # any buffer is accepted
        except _PARSER_ERRORS as error:
            raise InvalidMessageError(str(error)) from None
        self._incomplete_bytes = 0
        return message

    def read_available(self) -> list[Any]:
        """Return the next message, and those after it that have been received completely.

        Raises as `read` does.
        """
        messages = [self.read()]
        gets = self._parser.gets
        try:
            while (message := gets()) is not Ellipsis:
                messages.append(message)
        except _PARSER_ERRORS as error:
            raise InvalidMessageError(str(error)) from None
        return messages

    def discard(self) -> None:
        """Release the memory of an incomplete message."""
        self._parser = _create_parser()

    # -- streamed bulk strings: only between two messages --------------------------------------------------------------

    def read_bulk_header(self) -> tuple[bytes, int | RedisFuseError]:
        """Return the size of a bulk string, or the error in its place.

        The first bytes that follow come before it. Raises OSError, InvalidMessageError.
        """
        received = self.read_bytes()
        while b"\r\n" not in received:
            if len(received) > _MAX_HEADER_BYTES:
                raise InvalidMessageError("a header without an end of line")
            received += self.read_bytes()
        line, _, rest = received.partition(b"\r\n")
        if line[:1] == b"-":
            return rest, map_error_line(line[1:].decode("utf-8", "backslashreplace"))
        if line in (b"$-1", b"_"):
            return rest, NotFoundError("no such key or field")
        if line[:1] != b"$" or not line[1:].isdigit():
            raise InvalidMessageError("not a bulk string")
        return rest, int(line[1:])

    def read_bytes(self) -> bytes:
        """Return what one read from the socket returns. Raises OSError."""
        count = self._socket.recv_into(self._receive_buffer)
        if not count:
            raise ConnectionResetError("Connection closed by server.")
        return bytes(memoryview(self._receive_buffer)[:count])


def _create_parser() -> hiredis.Reader:
    return hiredis.Reader(replyError=map_error_line, notEnoughData=Ellipsis, errors="backslashreplace")

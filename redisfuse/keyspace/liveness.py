"""The tracking connection, whose server must answer each second.

While a network is silent, no message about a change arrives, and nothing else shows that. So commands on the connection
are also a test: without an answer for `MAX_SILENCE_SECONDS`, the listener is notified, and cached values are no longer
valid. The connection stays open, since no message is lost if the server answers within the time-out.

Thread: the tracking thread only.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisCommand

PING_INTERVAL_SECONDS = 1.0  # between two commands on the connection
MAX_SILENCE_SECONDS = 2.0  # since the last message


class SilenceListener(Protocol):
    """Receives the begin and the end of a silence."""

    def on_silence(self, seconds: float) -> None:
        """Handle a server that has not answered for `seconds`: changes may be missing."""

    def on_answer(self) -> None:
        """Handle an answer after a silence: all changes up to it were delivered."""


class LiveChannel:
    """A channel that notifies its listener when the server is silent."""

    def __init__(self, channel: Channel, listener: SilenceListener) -> None:
        self._channel = channel
        self._listener = listener
        self._last_message_at = time.monotonic()
        self.is_silent = False

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send commands and return all of their replies.

        Raises UnavailableError after the channel's time-out.
        """
        self._channel.send(commands)
        return [self._receive() for _ in commands]

    def _receive(self) -> Any:
        started_at = time.monotonic()
        earliest = started_at + MAX_SILENCE_SECONDS - PING_INTERVAL_SECONDS  # this process may have been busy
        patience = max(earliest, self._last_message_at + MAX_SILENCE_SECONDS) - started_at
        if not self.is_silent and patience < self._channel.timeout:
            reply = self._channel.try_receive(patience)
            if reply is not None:
                self._last_message_at = time.monotonic()
                return reply[0]
            self.is_silent = True
            self._listener.on_silence(MAX_SILENCE_SECONDS)
        remaining = started_at + self._channel.timeout - time.monotonic()
        reply = self._channel.receive(max(0.001, remaining))
        self._last_message_at = time.monotonic()
        return reply

    def take_push(self) -> list[Any] | None:
        """Return a push message that came before the last reply, as `Channel.take_push`."""
        return self._channel.take_push()

    def receive_push(self, timeout: float, *, wakeup_fd: int | None = None) -> list[Any] | None:
        """Return the next push message, as `Channel.receive_push`."""
        push = self._channel.receive_push(timeout, wakeup_fd=wakeup_fd)
        if push is not None:
            self._last_message_at = time.monotonic()
        return push

    def end_silence(self) -> None:
        """Notify the listener of an answer.

        Call it when all messages that came before the answer were delivered.
        """
        self.is_silent = False
        self._listener.on_answer()

"""Commands as they are sent, small or streamed, and one transaction of them. Nothing here is ever sent twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.journal.states import CHUNK, Content
from redisfuse.server.server import Dialogue

Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `content`, if there is one, is the last argument; a large one is sent in pieces.

    `size` is about how many bytes it sends.
    """

    words: tuple[Argument, ...]
    content: Content | None = None

    @classmethod
    def of(cls, *words: Argument) -> "Command":
        """A command whose words are all small."""
        return cls(words)

    @property
    def streamed(self) -> bool:
        """Whether the last argument is too large to be held in memory whole."""
        return self.content is not None and self.content.size > CHUNK

    @property
    def removes(self) -> bool:
        """Whether it only takes data away."""
        return self.words[0] in ("UNLINK", "DEL", "HDEL")

    @property
    def size(self) -> int:
        """Bytes to send, about."""
        sent = sum(len(word) if isinstance(word, bytes) else 8 for word in self.words)
        return sent + (self.content.size if self.content is not None else 0)

    @property
    def whole(self) -> tuple[Argument, ...]:
        """All its words, the content's bytes among them."""
        return self.words if self.content is None else (*self.words, self.content.read())


def value(reply: Any) -> Any:
    """The reply, or its error raised."""
    if isinstance(reply, RedisFuseError):
        raise reply
    return reply


class NotAppliedError(RedisFuseError):
    """The server refused the transaction as a whole: nothing of it was done. `reason` is its first error reply."""

    def __init__(self, reason: RedisFuseError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def transact(dialogue: Dialogue, commands: Sequence[Command]) -> list[Any] | None:
    """MULTI, the commands, EXEC: their replies (errors among them as values), or None if a watched key had changed.

    One round trip. Raises NotAppliedError if nothing was done; UnavailableError if the answer never came, so that
    nobody knows.
    """
    if any(command.streamed for command in commands):
        replies = _exchange_streamed(dialogue, commands)
    else:
        replies = dialogue.exchange([("MULTI",), *(command.whole for command in commands), ("EXEC",)])
    outcome = replies[-1]
    if isinstance(outcome, RedisFuseError):
        # An error while queueing says why; EXEC's own reply is then only EXECABORT.
        raise NotAppliedError(next(reply for reply in replies if isinstance(reply, RedisFuseError)))
    if outcome is None:
        return None
    if not isinstance(outcome, list) or len(outcome) != len(commands):
        raise UnavailableError("the server's answer to EXEC makes no sense")
    return outcome


def _exchange_streamed(dialogue: Dialogue, commands: Sequence[Command]) -> list[Any]:
    """As exchange, one command at a time: before EXEC is sent, no failure leaves a doubt."""
    replies: list[Any] = []
    try:
        replies += dialogue.exchange([("MULTI",)])
        for command in commands:
            value(replies[-1])
            if command.streamed and command.content is not None:
                dialogue.send_streamed(command.words, command.content.size, command.content.chunks())
                replies.append(dialogue.receive())
            else:
                replies += dialogue.exchange([command.whole])
    except RedisFuseError as error:
        raise NotAppliedError(error) from None
    return replies + dialogue.exchange([("EXEC",)])


def batches(commands: Iterable[Command], most: int, most_bytes: int) -> Iterable[list[Command]]:
    """The commands in lists of at most `most`, and of about at most `most_bytes`."""
    batch: list[Command] = []
    size = 0
    for command in commands:
        if batch and (len(batch) >= most or size + command.size > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(command)
        size += command.size
    if batch:
        yield batch

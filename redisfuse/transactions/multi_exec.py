"""Commands as they are sent, small or streamed, and one transaction of them. Nothing here is ever sent twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import Dialogue
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.journal.models import Content

Argument = bytes | str | int

MOST_AT_ONCE = 100  # commands of a series


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `content`, if there is one, is the last argument; a large one is sent in pieces.

    Or, with `series`, as many commands as that makes, for one thing: they are made while they are sent, and have one
    reply, the first error among theirs or else the last. `words` are then only what it is called.
    """

    words: tuple[Argument, ...]
    content: Content | None = None
    series: Callable[[], Iterator["Command"]] | None = None

    @classmethod
    def of(cls, *words: Argument) -> "Command":
        """A command whose words are all small."""
        return cls(words)

    @property
    def streamed(self) -> bool:
        """Whether it is too large to be held in memory whole."""
        return self.series is not None or (self.content is not None and self.content.size > CHUNK_BYTES)

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


class NoTransactionError(RedisFuseError):
    """The server refused MULTI, and so did each command on its own. `replies`: theirs."""

    def __init__(self, reason: RedisFuseError, replies: list[Any]) -> None:
        super().__init__(str(reason))
        self.replies = replies


def transact(dialogue: Dialogue, commands: Sequence[Command]) -> list[Any] | None:
    """MULTI, the commands, EXEC: their replies (errors among them as values), or None if a watched key had changed.

    One round trip. Raises NotAppliedError if nothing was done; NoTransactionError if it was done, but unguarded;
    UnavailableError if the answer never came, so that nobody knows.
    """
    if any(command.streamed for command in commands):
        counts = _queue_one_by_one(dialogue, commands)
        replies = dialogue.exchange([("EXEC",)])
    else:
        counts = [1] * len(commands)
        replies = dialogue.exchange([("MULTI",), *(command.whole for command in commands), ("EXEC",)])
    outcome = replies[-1]
    if len(replies) > 1 and isinstance(replies[0], RedisFuseError):
        dialogue.close()
        if isinstance(outcome, RedisFuseError) and b"QUEUED" not in replies:
            raise NoTransactionError(replies[0], replies[1:-1])
        raise UnavailableError("the server's answer to MULTI makes no sense")
    if isinstance(outcome, RedisFuseError):
        # An error while queueing says why; EXEC's own reply is then only EXECABORT.
        raise NotAppliedError(next(reply for reply in replies if isinstance(reply, RedisFuseError)))
    if outcome is None:
        return None
    if not isinstance(outcome, list) or len(outcome) != sum(counts):
        raise UnavailableError("the server's answer to EXEC makes no sense")
    each = iter(outcome)
    return [_one_reply(list(islice(each, count))) for count in counts]


def _queue_one_by_one(dialogue: Dialogue, commands: Sequence[Command]) -> list[int]:
    """MULTI and the commands, each answered before the next is sent: no failure leaves a doubt. How many each was."""
    counts: list[int] = []
    try:
        value(dialogue.exchange([("MULTI",)])[0])
        for command in commands:
            counts.append(_queue(dialogue, command))
    except RedisFuseError as error:
        raise NotAppliedError(error) from None
    return counts


def _queue(dialogue: Dialogue, command: Command) -> int:
    if command.series is not None:
        count = 0
        for batch in batched(command.series(), MOST_AT_ONCE, max_weight=CHUNK_BYTES, weigh=command_size):
            for reply in dialogue.exchange([each.whole for each in batch]):
                value(reply)
            count += len(batch)
        return count
    if command.streamed and command.content is not None:
        dialogue.send_streamed(command.words, command.content.size, command.content.chunks())
        value(dialogue.receive())
    else:
        value(dialogue.exchange([command.whole])[0])
    return 1


def command_size(command: Command) -> int:
    """Return about how many bytes a command sends."""
    return command.size


def _one_reply(replies: Sequence[Any]) -> Any:
    return next((reply for reply in replies if isinstance(reply, RedisFuseError)), replies[-1] if replies else None)

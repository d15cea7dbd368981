"""Commands as they are sent, small or streamed, and one transaction of them. Nothing here is ever sent twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.client.client import Channel
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.journal.models import Blob

CommandArgument = bytes | str | int

MAX_COMMANDS_PER_PIPELINE = 100  # commands of a series


@dataclass(frozen=True, slots=True)
class WriteCommand:
    """One command. `last_arg`, if there is one, is the last argument; a large one is sent in pieces.

    Or, with `expand`, as many commands as that makes, for one thing: they are made while they are sent, and have one
    reply, the first error among theirs or else the last. `args` are then only what it is called.
    """

    args: tuple[CommandArgument, ...]
    last_arg: Blob | None = None
    expand: Callable[[], Iterator["WriteCommand"]] | None = None

    @classmethod
    def from_args(cls, *args: CommandArgument) -> "WriteCommand":
        """A command whose words are all small."""
        return cls(args)

    @property
    def is_streamed(self) -> bool:
        """Whether it is too large to be held in memory whole."""
        return self.expand is not None or (self.last_arg is not None and self.last_arg.size > CHUNK_BYTES)

    @property
    def is_removal(self) -> bool:
        """Whether it only takes data away."""
        return self.args[0] in ("UNLINK", "DEL", "HDEL")

    @property
    def approximate_bytes(self) -> int:
        """Bytes to send, about."""
        sent = sum(len(word) if isinstance(word, bytes) else 8 for word in self.args)
        return sent + (self.last_arg.size if self.last_arg is not None else 0)

    @property
    def full_args(self) -> tuple[CommandArgument, ...]:
        """All its words, the content's bytes among them."""
        return self.args if self.last_arg is None else (*self.args, self.last_arg.read())


def unwrap_reply(reply: Any) -> Any:
    """The reply, or its error raised."""
    if isinstance(reply, RedisFuseError):
        raise reply
    return reply


class TransactionRejectedError(RedisFuseError):
    """The server refused the transaction as a whole: nothing of it was done. `reason` is its first error reply."""

    def __init__(self, reason: RedisFuseError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class MultiRefusedError(RedisFuseError):
    """The server refused MULTI, and so did each command on its own. `replies`: theirs."""

    def __init__(self, reason: RedisFuseError, replies: list[Any]) -> None:
        super().__init__(str(reason))
        self.replies = replies


def run_multi_exec(channel: Channel, commands: Sequence[WriteCommand]) -> list[Any] | None:
    """MULTI, the commands, EXEC: their replies (errors among them as values), or None if a watched key had changed.

    One round trip. Raises NotAppliedError if nothing was done; NoTransactionError if it was done, but unguarded;
    UnavailableError if the answer never came, so that nobody knows.
    """
    if any(command.is_streamed for command in commands):
        counts = _queue_individually(channel, commands)
        replies = channel.execute([("EXEC",)])
    else:
        counts = [1] * len(commands)
        replies = channel.execute([("MULTI",), *(command.full_args for command in commands), ("EXEC",)])
    outcome = replies[-1]
    if len(replies) > 1 and isinstance(replies[0], RedisFuseError):
        channel.close()
        if isinstance(outcome, RedisFuseError) and b"QUEUED" not in replies:
            raise MultiRefusedError(replies[0], replies[1:-1])
        raise UnavailableError("the server's answer to MULTI makes no sense")
    if isinstance(outcome, RedisFuseError):
        # An error while queueing says why; EXEC's own reply is then only EXECABORT.
        raise TransactionRejectedError(next(reply for reply in replies if isinstance(reply, RedisFuseError)))
    if outcome is None:
        return None
    if not isinstance(outcome, list) or len(outcome) != sum(counts):
        raise UnavailableError("the server's answer to EXEC makes no sense")
    each = iter(outcome)
    return [_select_reply(list(islice(each, count))) for count in counts]


def _queue_individually(channel: Channel, commands: Sequence[WriteCommand]) -> list[int]:
    """MULTI and the commands, each answered before the next is sent: no failure leaves a doubt. How many each was."""
    counts: list[int] = []
    try:
        unwrap_reply(channel.execute([("MULTI",)])[0])
        for command in commands:
            counts.append(_queue_command(channel, command))
    except RedisFuseError as error:
        raise TransactionRejectedError(error) from None
    return counts


def _queue_command(channel: Channel, command: WriteCommand) -> int:
    if command.expand is not None:
        count = 0
        for batch in batched(
            command.expand(), MAX_COMMANDS_PER_PIPELINE, max_weight=CHUNK_BYTES, weigh=estimate_command_bytes
        ):
            for reply in channel.execute([each.full_args for each in batch]):
                unwrap_reply(reply)
            count += len(batch)
        return count
    if command.is_streamed and command.last_arg is not None:
        channel.send_streamed(command.args, command.last_arg.size, command.last_arg.iter_chunks())
        unwrap_reply(channel.receive())
    else:
        unwrap_reply(channel.execute([command.full_args])[0])
    return 1


def estimate_command_bytes(command: WriteCommand) -> int:
    """Return about how many bytes a command sends."""
    return command.approximate_bytes


def _select_reply(replies: Sequence[Any]) -> Any:
    return next((reply for reply in replies if isinstance(reply, RedisFuseError)), replies[-1] if replies else None)

"""Sends one transaction: MULTI, the commands, EXEC.

Nothing here is ever sent twice.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from more_itertools import constrained_batches

from redisfuse.client.channel import Channel
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.transactions.write_command import CommandSeries, WriteCommand, estimate_command_bytes, unwrap_reply

MAX_COMMANDS_PER_PIPELINE = 100  # commands of a series


class TransactionRejectedError(RedisFuseError):
    """The server refused the whole transaction and executed none of it.

    `reason` is its first error reply.
    """

    def __init__(self, reason: RedisFuseError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class MultiRefusedError(RedisFuseError):
    """The server refused MULTI, then executed each command on its own.

    `replies` are the commands' replies.
    """

    def __init__(self, reason: RedisFuseError, replies: list[Any]) -> None:
        super().__init__(str(reason))
        self.replies = replies


def run_multi_exec(channel: Channel, commands: Sequence[WriteCommand]) -> list[Any] | None:
    """Run the commands in MULTI and EXEC and return one reply for each.

    Errors among the replies are returned as values. Returns None if a watched key had changed. Takes one round trip,
    unless a command is streamed. Raises TransactionRejectedError if nothing was executed; MultiRefusedError if the
    commands were executed without a transaction; UnavailableError if the reply was lost, so the outcome is unknown.
    """
    reply_counts: list[int] | None = None
    if any(command.is_streamed for command in commands):
        reply_counts = _queue_individually(channel, commands)
        replies = channel.execute([("EXEC",)])
    else:
        replies = channel.execute([("MULTI",), *(command.full_args for command in commands), ("EXEC",)])
    outcome = replies[-1]
    if len(replies) > 1 and isinstance(replies[0], RedisFuseError):
        channel.close()
        if isinstance(outcome, RedisFuseError) and b"QUEUED" not in replies:
            raise MultiRefusedError(replies[0], replies[1:-1])
        raise UnavailableError("the server sent an unexpected reply to MULTI")
    if isinstance(outcome, RedisFuseError):
        if channel.closed:
            raise UnavailableError(f"the server's error reply to EXEC does not say whether it was executed: {outcome}")
        # An error while queueing is the reason; EXEC itself then only replies EXECABORT.
        raise TransactionRejectedError(next(reply for reply in replies if isinstance(reply, RedisFuseError)))
    if outcome is None:
        return None
    expected_count = len(commands) if reply_counts is None else sum(reply_counts)
    if not isinstance(outcome, list) or len(outcome) != expected_count:
        raise UnavailableError("the server sent an unexpected reply to EXEC")
    if reply_counts is None:
        return outcome
    remaining = iter(outcome)
    return [_select_reply(list(islice(remaining, count))) for count in reply_counts]


def _queue_individually(channel: Channel, commands: Sequence[WriteCommand]) -> list[int]:
    """Queue the commands one by one; return the number of EXEC's replies for each.

    Each is acknowledged before the next is sent, so a failure leaves no doubt about the outcome.
    """
    reply_counts: list[int] = []
    try:
        unwrap_reply(channel.execute([("MULTI",)])[0])
        for command in commands:
            reply_counts.append(_queue_command(channel, command))
    except RedisFuseError as error:
        raise TransactionRejectedError(error) from None
    return reply_counts


def _queue_command(channel: Channel, command: WriteCommand) -> int:
    if command.series is not None:
        return _queue_series(channel, command.series)
    if command.is_streamed and command.last_arg is not None:
        channel.send_streamed(command.args, command.last_arg.size, command.last_arg.iter_chunks())
        unwrap_reply(channel.receive())
    else:
        unwrap_reply(channel.execute([command.full_args])[0])
    return 1


def _queue_series(channel: Channel, series: CommandSeries) -> int:
    count = 0
    for batch in constrained_batches(
        series.generate(), CHUNK_BYTES, MAX_COMMANDS_PER_PIPELINE, estimate_command_bytes, strict=False
    ):
        for reply in channel.execute([command.full_args for command in batch]):
            unwrap_reply(reply)
        count += len(batch)
    return count


def _select_reply(replies: Sequence[Any]) -> Any:
    return next((reply for reply in replies if isinstance(reply, RedisFuseError)), replies[-1] if replies else None)

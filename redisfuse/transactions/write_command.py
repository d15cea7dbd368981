"""A write command, small or streamed, and what replies are unwrapped to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from redisfuse.client.channel import CommandArgument
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError
from redisfuse.journal.content import Blob

PipelinedCommands = list[tuple[CommandArgument, ...]]
"""Commands that are sent in one round trip, each as its arguments."""


class CommandSeries(Protocol):
    """Commands that are generated while they are sent.

    Together they may exceed memory.
    """

    def generate(self) -> Iterator["WriteCommand"]:
        """Yield the commands, in order."""
        ...


@dataclass(frozen=True, slots=True)
class WriteCommand:
    """One command.

    `last_arg`, if present, is its last argument; over 1 MiB it is streamed. With `series`, the command is a placeholder
    for a series of commands that has one effect and one reply: the first error among the replies, else the last one.
    `args` then only names the series.
    """

    args: tuple[CommandArgument, ...]
    last_arg: Blob | None = None
    series: CommandSeries | None = None

    @classmethod
    def from_args(cls, *args: CommandArgument) -> "WriteCommand":
        """Return a command whose arguments are all small."""
        return cls(args)

    @property
    def is_streamed(self) -> bool:
        """Whether the command is too large to be held in memory whole."""
        return self.series is not None or (self.last_arg is not None and self.last_arg.size > CHUNK_BYTES)

    @property
    def is_removal(self) -> bool:
        """Whether the command only removes data."""
        return self.args[0] in ("UNLINK", "DEL", "HDEL")

    @property
    def approximate_bytes(self) -> int:
        """The approximate number of bytes to send."""
        sent = sum(len(arg) if isinstance(arg, bytes) else 8 for arg in self.args)
        return sent + (self.last_arg.size if self.last_arg is not None else 0)

    @property
    def full_args(self) -> tuple[CommandArgument, ...]:
        """All arguments, the content of `last_arg` included."""
        return self.args if self.last_arg is None else (*self.args, self.last_arg.read())


def estimate_command_bytes(command: WriteCommand) -> int:
    """Return the approximate number of bytes that a command sends."""
    return command.approximate_bytes


def unwrap_reply(reply: Any) -> Any:
    """Return the reply, or raise it if it is an error."""
    if isinstance(reply, RedisFuseError):
        raise reply
    return reply

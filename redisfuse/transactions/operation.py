"""Operations: values that describe changes, which the executor carries out.

An operation names what must be read under the WATCH (`reads`) and derives the mutations from what is there (`plan`).
It changes nothing itself. If a watched key changes before EXEC, the executor reads and plans again.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from more_itertools import constrained_batches

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError
from redisfuse.journal.models import ChangeIntent
from redisfuse.journal.processes import CallingProcess
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.precondition import RangeReader
from redisfuse.transactions.state_reader import (
    MAX_PIPELINED_COMMANDS,
    MAX_PIPELINED_REPLY_BYTES,
    CurrentState,
    ReadRequest,
    fetch_server_time_ms,
)
from redisfuse.transactions.write_command import unwrap_reply


@dataclass(frozen=True, slots=True)
class WatchedState:
    """The states of an operation's targets under the WATCH, and their server."""

    states: Mapping[KeyRef, CurrentState]
    client: RedisClient
    process: CallingProcess | None = None  # that has requested the operation

    def __getitem__(self, target: KeyRef) -> CurrentState:
        return self.states[target]

    @property
    def server_info(self) -> ServerInfo:
        """The capabilities of the server."""
        return self.client.server_info

    def range_reader(self, target: KeyRef) -> RangeReader:
        """Return a reader of ranges of a string target.

        It uses other connections. The WATCH guards what it reads: if the string changes, EXEC returns nil.
        """
        return partial(self._read_ranges, target.key)

    def _read_ranges(self, key: bytes, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for batch in constrained_batches(
            ranges,
            MAX_PIPELINED_REPLY_BYTES,
            MAX_PIPELINED_COMMANDS,
            lambda bounds: bounds[1] - bounds[0],
            strict=False,
        ):
            for reply in self.client.execute_many([(b"GETRANGE", key, start, end - 1) for start, end in batch]):
                yield bytes(unwrap_reply(reply))

    def fetch_time_ms(self) -> int:
        """Return the server's clock, Unix time in ms. One round trip."""
        return fetch_server_time_ms(self.client)


class Operation(ABC):
    """One operation of the user, on one or more targets.

    Implementations are frozen dataclasses.
    """

    @property
    def may_share_transaction(self) -> bool:
        """Whether the operation is small enough to share a transaction with others."""
        return False

    @abstractmethod
    def reads(self) -> Sequence[ReadRequest]:
        """Return what must be read before `plan`, each target once."""

    @abstractmethod
    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Return the mutations that follow from what the targets hold.

        There are none if there is nothing to do. Raises MutationRefusedError to keep the refused content in the
        journal, or any RedisFuseError to refuse the operation without a trace.
        """


class MutationRefusedError(Exception):
    """Raised by `Operation.plan` to refuse the operation and keep its content.

    `intents` are recorded as refused, then `error` is raised to the caller.
    """

    def __init__(self, error: RedisFuseError, intents: Sequence[ChangeIntent]) -> None:
        super().__init__(str(error))
        self.error = error
        self.intents = intents

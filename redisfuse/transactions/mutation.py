"""What flows through a change: the step that is done whole, who decides it, and how it may end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.errors import RedisFuseError
from redisfuse.journal.models import ChangeIntent
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.multi_exec import WriteCommand
from redisfuse.transactions.state_reader import CurrentState

MAX_MUTATIONS_PER_TRANSACTION = 500  # steps in one transaction
MAX_TRANSACTION_BYTES = 64 * CHUNK_BYTES  # bytes in one transaction, unless one step alone has more


@dataclass(frozen=True, slots=True)
class Mutation:
    """The smallest piece that is done whole: its rows of the journal, and its commands in their order.

    Steps that follow each other with the same `group_index` are one group of the journal.
    """

    intents: tuple[ChangeIntent, ...]
    commands: tuple[WriteCommand, ...]
    group_index: int = 0

    @property
    def approximate_bytes(self) -> int:
        """Bytes to send, about."""
        return sum(command.approximate_bytes for command in self.commands)


PlanFunction = Callable[[Mapping[KeyRef, CurrentState]], Sequence[Mutation]]
"""From what the targets hold now to what is to be done; called again whenever a key changed meanwhile."""

AppliedCallback = Callable[[Mapping[bytes, bool | None]], None]
"""Told of the keys that were changed, and whether each exists now (None: it has to be looked at)."""


class MutationRefusedError(Exception):
    """Raised by a `PlanFunction`: nothing may be written; the edits are kept in the journal as refused, `error` is raised."""

    def __init__(self, error: RedisFuseError, intents: Sequence[ChangeIntent]) -> None:
        super().__init__(str(error))
        self.error = error
        self.intents = intents


class PartiallyAppliedError(RedisFuseError):
    """Some steps of an operation were applied and others not; `failures` says which and why."""

    def __init__(self, failures: Sequence[tuple[Mutation, RedisFuseError]]) -> None:
        super().__init__(str(failures[0][1]))
        self.failures = failures
        self.errno = failures[0][1].errno


def collect_intents(mutations: Sequence[Mutation]) -> list[ChangeIntent]:
    """All rows, in order."""
    return [intent for step in mutations for intent in step.intents]


def collect_targets(mutations: Sequence[Mutation]) -> list[KeyRef]:
    """The targets of these steps, each once."""
    return list(dict.fromkeys(KeyRef(intent.key, intent.field) for intent in collect_intents(mutations)))


def split_into_transactions(mutations: Sequence[Mutation]) -> Iterator[list[Mutation]]:
    """The steps in as few transactions as may carry them."""
    return batched(
        mutations,
        MAX_MUTATIONS_PER_TRANSACTION,
        max_weight=MAX_TRANSACTION_BYTES,
        weigh=lambda step: step.approximate_bytes,
    )


def key_exists_after(intent: ChangeIntent) -> bool | None:
    """Whether a key exists after a change; not known of a hash that lost a field."""
    if intent.new.kind != "absent":
        return True
    return False if intent.field is None else None

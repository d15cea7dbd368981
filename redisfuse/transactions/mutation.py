"""Mutations: the pieces of an operation that are applied whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from more_itertools import constrained_batches

from redisfuse.client.connection_id import ConnectionId
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError
from redisfuse.journal.models import ChangeIntent
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.write_command import WriteCommand

MAX_MUTATIONS_PER_TRANSACTION = 500
MAX_TRANSACTION_BYTES = 64 * CHUNK_BYTES  # bytes in one transaction, unless a single mutation has more

ChangedKeys = dict[bytes, bool | None]
"""The keys that were changed, and whether each exists now. None: unknown, look it up."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """The smallest piece that is applied whole.

    It has its rows of the journal and its commands, both in order. Successive mutations with the same `group_index`
    form one group of the journal.
    """

    intents: tuple[ChangeIntent, ...]
    commands: tuple[WriteCommand, ...]
    group_index: int = 0
    is_first_half: bool = False  # whether it is to be reverted if the next mutation is not applied

    @property
    def approximate_bytes(self) -> int:
        """The approximate number of bytes to send."""
        return sum(command.approximate_bytes for command in self.commands)


@dataclass(frozen=True, slots=True)
class JournaledMutations:
    """Mutations and the IDs of their rows, one ID for each intent, in order."""

    mutations: Sequence[Mutation]
    change_ids: list[int]
    connection_id: ConnectionId | None = None  # of the connection that executes them; None: unknown

    @property
    def intents(self) -> list[ChangeIntent]:
        """The intents of all mutations, in order."""
        return collect_intents(self.mutations)

    @property
    def commands(self) -> list[WriteCommand]:
        """The commands of all mutations, in order."""
        return [command for mutation in self.mutations for command in mutation.commands]

    def split(self, groups: Sequence[Sequence[Mutation]]) -> Iterator["JournaledMutations"]:
        """Yield the same mutations, grouped as in `groups`, each group with its IDs."""
        ids = iter(self.change_ids)
        for mutations in groups:
            change_ids = list(islice(ids, len(collect_intents(mutations))))
            yield JournaledMutations(mutations, change_ids, self.connection_id)


class PartiallyAppliedError(RedisFuseError):
    """Some mutations of an operation were applied and others not.

    `failures` are those, each with its error.
    """

    def __init__(self, failures: Sequence[tuple[Mutation, RedisFuseError]]) -> None:
        super().__init__(str(failures[0][1]))
        self.failures = failures
        self.errno = failures[0][1].errno


def collect_intents(mutations: Iterable[Mutation]) -> list[ChangeIntent]:
    """Return the intents of all mutations, in order."""
    return [intent for mutation in mutations for intent in mutation.intents]


def collect_targets(mutations: Sequence[Mutation]) -> list[KeyRef]:
    """Return the targets of the mutations, each once."""
    return list(dict.fromkeys(KeyRef(intent.key, intent.field) for intent in collect_intents(mutations)))


def split_into_transactions(mutations: Sequence[Mutation]) -> Iterator[list[Mutation]]:
    """Yield the mutations in the fewest transactions that are within the limits."""
    batches = constrained_batches(
        mutations,
        MAX_TRANSACTION_BYTES,
        MAX_MUTATIONS_PER_TRANSACTION,
        lambda mutation: mutation.approximate_bytes,
        strict=False,
    )
    return map(list, batches)


def key_exists_after(intent: ChangeIntent) -> bool | None:
    """Whether the key exists after a change.

    None, unknown, for a hash that lost a field.
    """
    if intent.new.kind != "absent":
        return True
    return False if intent.field is None else None

"""What flows through a change: the step that is done whole, who decides it, and how it may end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from redisfuse.batching import CHUNK_BYTES, batched
from redisfuse.errors import RedisFuseError
from redisfuse.journal.models import Intent
from redisfuse.paths.grammar import Target
from redisfuse.transactions.multi_exec import Command
from redisfuse.transactions.state_reader import Found

MULTI_STEPS = 500  # steps in one transaction
MULTI_BYTES = 64 * CHUNK_BYTES  # bytes in one transaction, unless one step alone has more


@dataclass(frozen=True, slots=True)
class Step:
    """The smallest piece that is done whole: its rows of the journal, and its commands in their order.

    Steps that follow each other with the same `operation` are one group of the journal.
    """

    intents: tuple[Intent, ...]
    commands: tuple[Command, ...]
    operation: int = 0

    @property
    def size(self) -> int:
        """Bytes to send, about."""
        return sum(command.size for command in self.commands)


Decide = Callable[[Mapping[Target, Found]], Sequence[Step]]
"""From what the targets hold now to what is to be done; called again whenever a key changed meanwhile."""

OnApplied = Callable[[Mapping[bytes, bool | None]], None]
"""Told of the keys that were changed, and whether each exists now (None: it has to be looked at)."""


class RefusedError(Exception):
    """Raised by a `Decide`: nothing may be written; the edits are kept in the journal as refused, `error` is raised."""

    def __init__(self, error: RedisFuseError, intents: Sequence[Intent]) -> None:
        super().__init__(str(error))
        self.error = error
        self.intents = intents


class PartlyAppliedError(RedisFuseError):
    """Some steps of an operation were applied and others not; `failed` says which and why."""

    def __init__(self, failed: Sequence[tuple[Step, RedisFuseError]]) -> None:
        super().__init__(str(failed[0][1]))
        self.failed = failed
        self.errno = failed[0][1].errno


def intents_of(steps: Sequence[Step]) -> list[Intent]:
    """All rows, in order."""
    return [intent for step in steps for intent in step.intents]


def targets_of(steps: Sequence[Step]) -> list[Target]:
    """The targets of these steps, each once."""
    return list(dict.fromkeys(Target(intent.key, intent.field) for intent in intents_of(steps)))


def transactions(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in as few transactions as may carry them."""
    return batched(steps, MULTI_STEPS, max_weight=MULTI_BYTES, weigh=lambda step: step.size)


def exists_after(intent: Intent) -> bool | None:
    """Whether a key exists after a change; not known of a hash that lost a field."""
    if intent.new.kind != "absent":
        return True
    return False if intent.field is None else None

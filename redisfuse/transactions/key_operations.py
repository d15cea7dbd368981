"""Operations on whole keys of any type, and on hash fields: removal and expiry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.client.capabilities import ServerInfo
from redisfuse.errors import ConflictError, NotFoundError
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.operation import Operation, WatchedState
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.state_reader import CurrentState, ReadRequest

GONE_MESSAGE = "it is gone already (deleted, expired or evicted)"


@dataclass(frozen=True)
class RemoveTogether(Operation):
    """Remove keys or fields as one operation.

    One rollback restores them all. Absent targets are skipped. Every target that is there must satisfy the
    precondition. `removed` are the states that the last `plan` found.
    """

    targets: tuple[KeyRef, ...]
    path: bytes
    precondition: Precondition
    removed: dict[KeyRef, State] = field(default_factory=dict, compare=False)

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of every target."""
        return [ReadRequest(target) for target in self.targets]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Remove the targets that are there.

        Raises ConflictError, NotFoundError (all are absent).
        """
        present = [target for target in state.states if state[target].state.kind != "absent"]
        if not all(self.precondition.holds_for(state[target].state, state.range_reader(target)) for target in present):
            raise ConflictError("it was changed by another client in the meantime, so it is not removed")
        if not present:
            raise NotFoundError(GONE_MESSAGE)
        self.removed.clear()
        self.removed.update({target: state[target].state for target in present})
        return [_build_removal(target, state[target], self.path, state.server_info) for target in present]


@dataclass(frozen=True)
class RemoveEach(Operation):
    """Remove keys or fields, each as an operation of its own.

    Absent targets are skipped.

    `paths`: the targets, each with its path in the mount.
    """

    paths: Mapping[KeyRef, bytes]

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of every target."""
        return [ReadRequest(target) for target in self.paths]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Remove the targets that are there, in a group of the journal for each."""
        return [
            _build_removal(target, current, self.paths[target], state.server_info, group_index=index)
            for index, (target, current) in enumerate(state.states.items())
            if current.state.kind != "absent"
        ]


def _build_removal(
    target: KeyRef, current: CurrentState, path: bytes, server_info: ServerInfo, *, group_index: int = 0
) -> Mutation:
    intent = ChangeIntent(path, "remove", target.key, target.field, current.state, ABSENT)
    return Mutation((intent,), tuple(command_builder.build_remove(target, server_info)), group_index)


@dataclass(frozen=True)
class SetExpiry(Operation):
    """Set when a key or field expires: absolute Unix time in ms, or None for never."""

    target: KeyRef
    expires_at_ms: int | None
    path: bytes

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of the target, which the journal keeps whole in case it expires."""
        return [ReadRequest(self.target)]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Set the expiry unless it is set already.

        Raises NotFoundError, NotSupportedError (a field's expiry).
        """
        prior = state[self.target].state
        if prior.kind == "absent":
            raise NotFoundError(GONE_MESSAGE)
        if self.target.field is None:
            new = replace(prior, expires_at=self.expires_at_ms)
        else:
            new = replace(prior, field_expires_at=self.expires_at_ms)
        if new == prior:
            return []
        intent = ChangeIntent(self.path, "expire", self.target.key, self.target.field, prior, new)
        commands = command_builder.build_expire(self.target, self.expires_at_ms, state.server_info)
        return [Mutation((intent,), tuple(commands))]

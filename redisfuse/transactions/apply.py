"""Applies the new state of a recorded change.

The change is a refused edit, after its review, or any other change, once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redisfuse.errors import ConflictError, UsageError
from redisfuse.journal.models import Change, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.expiry import drop_if_passed
from redisfuse.transactions.matching import build_read_request, holds_state
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.operation import Operation, WatchedState
from redisfuse.transactions.rollback_plan import is_directory_change
from redisfuse.transactions.state_commands import build_state_commands
from redisfuse.transactions.state_reader import CurrentState, ReadRequest


@dataclass(frozen=True)
class Apply(Operation):
    """Give the target of a recorded change the change's new state.

    The expiry that is there stays. A refused edit is written only over what it was refused for, which is what
    `redisfuse diff` shows; `force` writes it over anything.
    """

    change: Change
    force: bool = False

    @property
    def target(self) -> KeyRef:
        """The key or field of the change."""
        return KeyRef(self.change.key, self.change.field)

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of the target."""
        return [build_read_request(self.target, self.change.new, self.change.prior)]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Write the new state, unless the target is absent and stays so.

        Raises ConflictError.
        """
        change, current = self.change, state[self.target]
        self._check_applicable(current)
        desired_state = _build_desired_state(change.new, current, state.fetch_time_ms())
        if desired_state.kind == "absent" and current.state.kind == "absent":
            return []
        commands = build_state_commands(self.target, current, desired_state, state.client)
        intent = ChangeIntent(
            change.path,
            "apply",
            change.key,
            change.field,
            current.state,
            desired_state,
            applies=change.id,
            new_path=change.new_path,
        )
        return [Mutation((intent,), commands)]

    def _check_applicable(self, current: CurrentState) -> None:
        change = self.change
        if not current.is_type_compatible:
            key_type = current.key_type.decode("ascii", "replace")
            raise ConflictError(f"the key is a {key_type} now, which has no fields")
        is_long_enough = current.state.kind == "slice" and current.state.total_size >= change.new.offset
        if change.new.kind == "slice" and not is_long_enough:
            raise ConflictError("only a part of that value was recorded, and the key is now too short for it")
        if self.force:
            return
        if change.outcome == "refused" and change.prior.note is None and not holds_state(current, change.prior):
            raise ConflictError(
                f"the key was changed again since change {change.id} was refused: review it and use --force"
            )
        if current.state.kind == "object" and change.new.kind == "value":
            key_type = current.state.type.decode("ascii", "replace")
            raise ConflictError(f"the key is a {key_type} now, which this would destroy: use --force to overwrite it")


def apply_change(executor: TransactionExecutor, change: Change, *, force: bool = False) -> list[int]:
    """Apply a recorded change and return the IDs of the new changes.

    There are none if there was nothing to do. Raises ConflictError if the target is not what the change was refused
    for, or if a string would replace another type (`force` overwrites both); UsageError for an empty directory; and as
    `TransactionExecutor.run` does.
    """
    if is_directory_change(change):
        raise UsageError(f"change {change.id} is of an empty directory: use mkdir or rmdir again")
    if change.outcome == "held":
        raise UsageError(
            f"change {change.id} is of a temporary file that its mount will write; if the mount has died, "
            "`redisfuse recover` writes it"
        )
    return executor.run(Apply(change, force))


def _build_desired_state(new: State, current: CurrentState, now_ms: int) -> State:
    """Return the new state with the current expiry.

    An expiry that has passed is not set again.
    """
    if new.kind in ("absent", "slice"):
        return new
    expiring = current.state if current.state.kind != "absent" else new
    key_expires_at, field_expires_at = expiring.expires_at, expiring.field_expires_at
    if new.type == b"field" and current.key_type == b"hash":
        key_expires_at = current.key_expires_at
    return replace(
        new,
        expires_at=drop_if_passed(key_expires_at, now_ms),
        field_expires_at=drop_if_passed(field_expires_at, now_ms),
    )

"""Plans a rollback: the state of each target afterwards, and the conflicts."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from redisfuse.batching import batched
from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.inverse import Inverse, invert
from redisfuse.transactions.projection import DependencyTracker, ProjectedState, build_read_requests
from redisfuse.transactions.selection import ChangeGroup, is_reverted
from redisfuse.transactions.state_reader import CurrentState, StateReader, fetch_server_time_ms

MAX_TARGETS_PER_READ = 500


@dataclass(frozen=True, slots=True)
class RollbackConflict:
    """A change that can't be reverted, because its target was changed since.

    `later_changes` are the later changes of the same key in the journal; reverting them too may resolve the conflict.
    """

    change: Change
    reason: str
    current: CurrentState
    later_changes: tuple[Change, ...]

    @property
    def combined_command(self) -> str | None:
        """The command that reverts the later changes and this one.

        None if there are no later changes.
        """
        if not self.later_changes:
            return None
        return " ".join(["redisfuse rollback", *(str(change.id) for change in (*self.later_changes, self.change))])


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change of the plan.

    `inverse` is None if it depends on the state that the newer changes' reverts leave.
    """

    change: Change
    inverse: Inverse | None
    conflict: RollbackConflict | None = None


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """The effects of a rollback in the order of execution: newest change first."""

    groups: tuple[ChangeGroup, ...]
    entries: tuple[PlannedChange, ...]

    @property
    def conflicts(self) -> list[RollbackConflict]:
        """The conflicts. No change of their operations would be reverted."""
        return [entry.conflict for entry in self.entries if entry.conflict is not None]


def is_directory_change(change: Change) -> bool:
    """Whether a change is of an empty directory, which exists only in the journal."""
    return "directory" in (change.prior.kind, change.new.kind)


def plan_rollback(
    journal: Journal, client: RedisClient, groups: Sequence[ChangeGroup], *, force: bool = False
) -> RollbackPlan:
    """Read all targets and return the plan, without changing anything.

    Raises as `StateReader.read` does.
    """
    dependencies = DependencyTracker()
    predictable_ids: set[int] = set()
    for group in groups:
        key_changes = [change for change in group if not is_directory_change(change)]
        predictable_ids |= {change.id for change in key_changes if dependencies.is_predictable(change)}
        for change in key_changes:
            dependencies.add(change)
    predictable = [change for group in groups for change in group if change.id in predictable_ids]
    projected = ProjectedState(_read_states(client, predictable))
    now_ms = fetch_server_time_ms(client)
    selected_ids = {change.id for group in groups for change in group}
    entries: list[PlannedChange] = []
    for group in groups:
        for change in group:
            if change.id not in predictable_ids:
                entries.append(PlannedChange(change, None))
                continue
            inverse = invert(change, projected.get_target_state(change), now_ms, force=force)
            conflict = find_conflict(journal, inverse, selected_ids)
            if conflict is None:
                projected.set_state(inverse.target, inverse.desired_state)
            entries.append(PlannedChange(change, inverse, conflict))
    return RollbackPlan(tuple(groups), tuple(entries))


def find_conflict(journal: Journal, inverse: Inverse, selected_ids: Set[int]) -> RollbackConflict | None:
    """Return the conflict of an inverse, if any.

    It lists the later changes that are not selected for the rollback.
    """
    if inverse.conflict_reason is None:
        return None
    later = {
        change.id: change for change in journal.find_later_changes(inverse.change) if change.id not in selected_ids
    }
    in_effect = [
        change for change in later.values() if change.reverts not in later and not is_reverted(journal, change.id)
    ]
    return RollbackConflict(inverse.change, inverse.conflict_reason, inverse.current, tuple(in_effect))


def _read_states(client: RedisClient, changes: Sequence[Change]) -> dict[KeyRef, CurrentState]:
    states: dict[KeyRef, CurrentState] = {}
    with client.dedicated_channel() as channel:
        for batch in batched(build_read_requests(changes), MAX_TARGETS_PER_READ):
            states |= StateReader(client, channel, dump_limit=0).read(batch)
    return states

"""A rollback before it is done: what each change would become, what stands in the way, and what would undo that too."""

from collections.abc import Sequence
from dataclasses import dataclass

from redisfuse.batching import batched
from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.executor import fetch_server_time_ms
from redisfuse.transactions.inverse import Inverse, invert
from redisfuse.transactions.projection import DependencyTracker, ProjectedState, build_read_requests
from redisfuse.transactions.selection import ChangeGroup, is_reverted
from redisfuse.transactions.state_reader import CurrentState, StateReader

MAX_TARGETS_PER_READ = 500  # targets


@dataclass(frozen=True, slots=True)
class RollbackConflict:
    """A change that can't be taken back as things are."""

    change: Change
    reason: str
    current: CurrentState
    later_changes: tuple[
        Change, ...
    ]  # changes in the journal to the same key since; rolled back too, they may resolve it

    @property
    def combined_command(self) -> str | None:
        """The command that would take back the later changes and this one."""
        if not self.later_changes:
            return None
        return " ".join(["redisfuse rollback", *(str(each.id) for each in (*self.later_changes, self.change))])


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change of the plan. `inverse` is None if it can only be decided once the newer ones are taken back."""

    change: Change
    inverse: Inverse | None
    conflict: RollbackConflict | None = None


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback would do, in the order in which it would: newest first."""

    groups: tuple[ChangeGroup, ...]
    entries: tuple[PlannedChange, ...]

    @property
    def conflicts(self) -> list[RollbackConflict]:
        """Those in the way. None of the changes of their operations would be taken back."""
        return [entry.conflict for entry in self.entries if entry.conflict is not None]


def is_directory_change(change: Change) -> bool:
    """Whether it made or removed an empty directory, which is in the journal only."""
    return "directory" in (change.prior.kind, change.new.kind)


def plan_rollback(
    journal: Journal, client: RedisClient, groups: Sequence[ChangeGroup], *, force: bool = False
) -> RollbackPlan:
    """Look at everything and decide, without changing anything. Raises UnavailableError and what reading raises."""
    course = DependencyTracker()
    decidable: dict[int, bool] = {}
    for group in groups:
        keyed = [change for change in group if not is_directory_change(change)]
        decidable |= {change.id: course.is_predictable(change) for change in keyed}
        for change in keyed:
            course.add(change)
    ground = ProjectedState(
        _read_states(client, [change for group in groups for change in group if decidable.get(change.id)])
    )
    now = fetch_server_time_ms(client)
    chosen = {change.id for group in groups for change in group}
    entries: list[PlannedChange] = []
    for group in groups:
        for change in group:
            if not decidable.get(change.id):
                entries.append(PlannedChange(change, None))
                continue
            reversal = invert(change, ground[KeyRef(change.key, change.field)], now, force=force)
            conflict = find_conflict(journal, reversal, chosen)
            if conflict is None:
                ground.set_state(KeyRef(change.key, change.field), reversal.desired_state)
            entries.append(PlannedChange(change, reversal, conflict))
    return RollbackPlan(tuple(groups), tuple(entries))


def find_conflict(journal: Journal, inverse: Inverse, selected_ids: set[int]) -> RollbackConflict | None:
    """The conflict of a reversal, with the later changes that are not being taken back with it."""
    if inverse.conflict_reason is None:
        return None
    later = {
        change.id: change for change in journal.find_later_changes(inverse.change) if change.id not in selected_ids
    }
    standing = [
        change for change in later.values() if change.reverts not in later and not is_reverted(journal, change.id)
    ]
    return RollbackConflict(inverse.change, inverse.conflict_reason, inverse.current, tuple(standing))


def _read_states(client: RedisClient, changes: Sequence[Change]) -> dict[KeyRef, CurrentState]:
    looks = build_read_requests(changes)
    found: dict[KeyRef, CurrentState] = {}
    with client.dedicated_channel() as dialogue:
        for batch in batched(looks, MAX_TARGETS_PER_READ):
            found |= StateReader(client, dialogue, dump_limit=0).read(batch)
    return found

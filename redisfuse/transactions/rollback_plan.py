"""Plans a rollback: the state of each target afterwards, and the conflicts."""

import shlex
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from more_itertools import chunked, constrained_batches

from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.paths.grammar import KeyRef
from redisfuse.text import escape_text, literal_glob
from redisfuse.transactions.combined_change import ChangeGroup, CombinedChange, count_changes
from redisfuse.transactions.inverse import Inverse, invert
from redisfuse.transactions.projection import DependencyTracker, ProjectedState, build_read_requests
from redisfuse.transactions.recovery import ProgressCallback
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
        words = ["redisfuse rollback", *(str(change.id) for change in self.later_changes)]
        if isinstance(self.change, CombinedChange):
            glob = escape_text(literal_glob(self.change.key))
            return " ".join([*words, f"{self.change.first_id}-{self.change.id}", "--key", shlex.quote(glob)])
        return " ".join([*words, str(self.change.id)])


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
    journal: Journal,
    client: RedisClient,
    groups: Iterable[ChangeGroup],
    selected_ids: Set[int],
    *,
    force: bool = False,
    progress: ProgressCallback = lambda _count: None,
) -> RollbackPlan:
    """Read all targets and return the plan, without changing anything.

    It is held in memory; `iter_plan` needs less. `selected_ids`: all changes that are to be rolled back. Raises as
    `StateReader.read` does.
    """
    groups = tuple(groups)
    entries = iter_plan(journal, client, groups, selected_ids, force=force, progress=progress)
    return RollbackPlan(groups, tuple(entries))


def iter_plan(
    journal: Journal,
    client: RedisClient,
    groups: Iterable[ChangeGroup],
    selected_ids: Set[int],
    *,
    force: bool = False,
    repeated_keys: Set[tuple[str, bytes]] | None = None,
    progress: ProgressCallback = lambda _count: None,
) -> Iterator[PlannedChange]:
    """Yield the entries of the plan; targets are read page by page.

    `repeated_keys`: the keys, with their servers, that several of the changes are of, so that their states must be
    remembered; None: all.
    `progress` receives the number of changes. Raises as `StateReader.read` does.
    """
    dependencies = DependencyTracker()
    projected = ProjectedState({})
    for page in constrained_batches(groups, MAX_TARGETS_PER_READ, get_len=len, strict=False):
        predictable: list[Change] = []
        for group in page:
            key_changes = [change for change in group if not is_directory_change(change)]
            predictable += [change for change in key_changes if dependencies.is_predictable(change)]
            for change in key_changes:
                if repeated_keys is None or (change.server_name, change.key) in repeated_keys:
                    dependencies.add(change)
        predictable_ids = {change.id for change in predictable}
        projected.add(_read_states(client, [change for change in predictable if not projected.has_target(change)]))
        now_ms = fetch_server_time_ms(client)
        for group in page:
            for change in group:
                if change.id not in predictable_ids:
                    yield PlannedChange(change, None)
                    continue
                inverse = invert(change, projected.get_target_state(change), now_ms, force=force)
                conflict = find_conflict(journal, inverse, selected_ids)
                if conflict is None:
                    projected.set_state(inverse.target, inverse.desired_state)
                yield PlannedChange(change, inverse, conflict)
        for change in predictable:
            if repeated_keys is not None and (change.server_name, change.key) not in repeated_keys:
                projected.discard(change)
        progress(count_changes(change for group in page for change in group))


def find_conflict(journal: Journal, inverse: Inverse, selected_ids: Set[int]) -> RollbackConflict | None:
    """Return the conflict of an inverse, if any.

    It lists the later changes that are not selected for the rollback.
    """
    if inverse.conflict_reason is None:
        return None
    later = {
        change.id: change for change in journal.find_later_changes(inverse.change) if change.id not in selected_ids
    }
    reverted = journal.create_reversal_index().find_reverted(later)
    in_effect = [change for change in later.values() if change.reverts not in later and change.id not in reverted]
    return RollbackConflict(inverse.change, inverse.conflict_reason, inverse.current, tuple(in_effect))


def _read_states(client: RedisClient, changes: Sequence[Change]) -> dict[KeyRef, CurrentState]:
    """Read the targets of changes, without WATCH.

    Of their contents only digests stay in memory.
    """
    states: dict[KeyRef, CurrentState] = {}
    with client.reading_channel() as channel:
        reader = StateReader(client, channel, dump_limit=0, watch=False)
        for batch in chunked(build_read_requests(changes), MAX_TARGETS_PER_READ):
            states |= reader.read(batch)
    return states

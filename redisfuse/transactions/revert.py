"""The operation that reverts recorded changes.

It reverts several operations of the user, decided from one read.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, ChangeIntent
from redisfuse.transactions.combined_change import ChangeGroup, get_reverted_range
from redisfuse.transactions.command_builder import build_rename
from redisfuse.transactions.inverse import Inverse, invert
from redisfuse.transactions.matching import is_same_state
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.operation import Operation, WatchedState
from redisfuse.transactions.projection import ProjectedState, build_read_requests
from redisfuse.transactions.rollback_plan import RollbackConflict, find_conflict
from redisfuse.transactions.state_commands import build_state_commands
from redisfuse.transactions.state_reader import ReadRequest


@dataclass(slots=True)
class RevertDecision:
    """The decision of one call of `Revert.plan`.

    Each change of a group without conflict has an inverse.
    """

    inverses: list[Inverse] = field(default_factory=list)
    conflicts: list[RollbackConflict] = field(default_factory=list)
    skipped: list[Change] = field(default_factory=list)  # of groups with a conflict, those without one

    def clear(self) -> None:
        """Forget the previous decision."""
        self.inverses.clear()
        self.conflicts.clear()
        self.skipped.clear()


@dataclass(frozen=True)
class Revert(Operation):
    """Restore the prior states of changes, newest first.

    A group with a conflict is left alone as a whole.

    `selected_ids`: all changes that are being rolled back, in this operation or another. `force` overwrites what was
    changed since. `portable` rebuilds objects from their elements, because the server just refused their DUMPs; it
    implies `force`. `decision` is the decision of the last `plan`.
    """

    journal: Journal
    groups: tuple[ChangeGroup, ...]
    selected_ids: Set[int]
    force: bool = False
    portable: bool = False
    decision: RevertDecision = field(default_factory=RevertDecision, compare=False)

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of each target."""
        return build_read_requests([change for group in self.groups for change in group])

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Revert the groups in turn, each on top of what those before it leave."""
        self.decision.clear()
        projected = ProjectedState(state.states)
        now_ms = state.fetch_time_ms()
        return [
            mutation
            for index, group in enumerate(self.groups)
            for mutation in self._plan_group(group, projected, now_ms, index, state)
        ]

    def _plan_group(
        self, group: ChangeGroup, projected: ProjectedState, now_ms: int, group_index: int, state: WatchedState
    ) -> list[Mutation]:
        inverses = [
            invert(change, projected.get_target_state(change), now_ms, force=self.force or self.portable)
            for change in group
        ]
        conflicts = [find_conflict(self.journal, inverse, self.selected_ids) for inverse in inverses]
        if any(conflict is not None for conflict in conflicts):
            self.decision.conflicts += [conflict for conflict in conflicts if conflict is not None]
            self.decision.skipped += [
                change for change, conflict in zip(group, conflicts, strict=True) if conflict is None
            ]
            return []
        mutations: list[Mutation] = []
        renamed_ids: set[int] = set()
        for restored, removed in _find_renames(inverses, state.client):
            mutations.append(_build_rename_back(restored, removed, group_index))
            self.decision.inverses += [restored, removed]
            renamed_ids |= {restored.change.id, removed.change.id}
        others = [inverse for inverse in inverses if inverse.change.id not in renamed_ids]
        for inverse in sorted(others, key=lambda each: each.desired_state.kind == "absent"):  # create, then remove
            if self.portable:
                inverse = _note_portable_copy(inverse, state.server_info)
            if not inverse.is_noop:
                commands = build_state_commands(
                    inverse.target, inverse.current, inverse.desired_state, state.client, portable=self.portable
                )
                mutations.append(Mutation((_build_intent(inverse),), commands, group_index))
            self.decision.inverses.append(inverse)
        for inverse in inverses:
            projected.set_state(inverse.target, inverse.desired_state)
        return mutations


def _build_intent(inverse: Inverse) -> ChangeIntent:
    change = inverse.change
    reverts, reverts_through = get_reverted_range(change)
    return ChangeIntent(
        change.own_path,
        "rollback",
        change.key,
        change.field,
        inverse.current.state,
        inverse.desired_state,
        reverts=reverts,
        reverts_through=reverts_through,
    )


def _find_renames(inverses: Sequence[Inverse], client: RedisClient) -> Iterator[tuple[Inverse, Inverse]]:
    """Yield the pairs (restored, removed) of whole keys that one RENAME reverts.

    The two changes of a rename were recorded one after the other.
    """
    by_id = {inverse.change.id: inverse for inverse in inverses}
    for restored in inverses:
        change, removed = restored.change, by_id.get(restored.change.id + 1)
        if removed is None or change.field is not None or removed.change.field is not None:
            continue
        is_restored = (
            change.new.kind == restored.current.state.kind == "absent" and restored.desired_state.kind != "absent"
        )
        is_removed = removed.change.prior.kind == removed.desired_state.kind == "absent" and not removed.is_noop
        is_possible = client.partition(change.key) == client.partition(removed.change.key)
        if is_possible and is_restored and is_removed and is_same_state(change.prior, removed.change.new):
            yield restored, removed


def _build_rename_back(restored: Inverse, removed: Inverse, group_index: int) -> Mutation:
    """Rename a whole key back as it is, which keeps what no copy of it could carry."""
    desired_state = replace(restored.desired_state, expires_at=removed.current.state.expires_at)
    command = build_rename(removed.change.key, restored.change.key)
    intents = (_build_intent(removed), _build_intent(replace(restored, desired_state=desired_state)))
    return Mutation(intents, (command,), group_index)


def _note_portable_copy(inverse: Inverse, server_info: ServerInfo) -> Inverse:
    """Add to the inverse of an object the note that it is restored from its elements."""
    if inverse.desired_state.kind != "object":
        return inverse
    note = "the server refused the exact copy (another version or vendor), so its elements were written back"
    if inverse.desired_state.type == b"hash" and not server_info.has_hash_field_ttl:
        note += ", without expiries of fields, which this server does not have"
    if inverse.desired_state.note:
        note = f"{note}; {inverse.desired_state.note}"
    return replace(inverse, note=note, desired_state=replace(inverse.desired_state, note=note))

"""Writing prior states back, newest first, operation by operation, through the same steps as any change.

Operations are taken back in batches: one pipelined reading, one fsync, one transaction for many. A rollback that was
interrupted is simply done again: what is taken back already is not selected any more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import ServerInfo
from redisfuse.errors import JournalError, ReadOnlyError, RedisFuseError, ServerReplyError, UnavailableError
from redisfuse.journal.directory_rows import decode_directory
from redisfuse.journal.models import Change, ChangeIntent
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.command_builder import build_rename
from redisfuse.transactions.executor import Mutation, PartiallyAppliedError, TransactionExecutor, fetch_server_time_ms
from redisfuse.transactions.inverse import Inverse, build_inverse_commands, invert
from redisfuse.transactions.matching import is_same_state
from redisfuse.transactions.projection import DependencyTracker, ProjectedState, build_read_requests
from redisfuse.transactions.rollback_plan import RollbackConflict, find_conflict, is_directory_change
from redisfuse.transactions.selection import ChangeGroup
from redisfuse.transactions.state_reader import CurrentState

MAX_CHANGES_PER_BATCH = 250  # changes that are taken back in one transaction
MAX_BATCH_BYTES = 16 * CHUNK_BYTES

ProgressCallback = Callable[[int], None]


@dataclass(slots=True)
class RollbackReport:
    """What came of a rollback."""

    reverted: list[Change] = field(default_factory=list)
    unchanged: list[Inverse] = field(default_factory=list)  # they held their prior state already, or are expired
    conflicts: list[RollbackConflict] = field(default_factory=list)
    failures: list[tuple[Change, RedisFuseError]] = field(default_factory=list)
    notes: list[tuple[Change, str]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything that was to be taken back is."""
        return not self.conflicts and not self.failures


@dataclass(slots=True)
class _BatchDecision:
    """One time that a batch was decided."""

    inverses: list[Inverse] = field(default_factory=list)
    conflicts: list[RollbackConflict] = field(default_factory=list)


class Rollback:
    """Takes back operations of one server."""

    def __init__(self, executor: TransactionExecutor, server_name: str, *, force: bool = False) -> None:
        self._executor = executor
        self._server_name = server_name
        self._force = force
        self._selected_ids: set[int] = set()
        self.report = RollbackReport()

    def run(self, groups: Sequence[ChangeGroup], *, progress: ProgressCallback = lambda _count: None) -> RollbackReport:
        """Take the operations back, in order. `progress(count)` is told of changes that are dealt with.

        Raises UnavailableError, ReadOnlyError, JournalError when nothing more can be done; `report` then says what was.
        """
        self._selected_ids = {change.id for group in groups for change in group}
        for batch in _batch_groups([part for group in groups for part in _split_directories(group)]):
            if is_directory_change(batch[0][0]):
                self._revert_directories(batch[0])
            else:
                self._revert_batch(batch)
            progress(sum(len(group) for group in batch))
        return self.report

    def _revert_batch(self, batch: Sequence[ChangeGroup]) -> None:
        try:
            self._attempt_batch(batch)
        except (UnavailableError, ReadOnlyError, JournalError):
            raise
        except RedisFuseError as error:
            if len(batch) > 1:  # one of them spoilt it for all
                for group in batch:
                    self._revert_batch([group])
            elif _is_payload_refused(error):
                self._attempt_batch(batch, portable=True)
            else:
                self.report.failures += [(change, error) for change in batch[0]]

    def _attempt_batch(self, batch: Sequence[ChangeGroup], *, portable: bool = False) -> None:
        """One transaction for all operations of the batch that have no conflict.

        `portable`: RESTORE was refused just now, so objects are rebuilt from their elements.
        """
        last = _BatchDecision()

        def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
            nonlocal last
            last = _BatchDecision()
            ground = ProjectedState(states)
            now = fetch_server_time_ms(self._executor.client)
            steps: list[Mutation] = []
            for number, group in enumerate(batch):
                steps += self._plan_group(group, ground, now, number, last, portable=portable)
            return steps

        failed: dict[int | None, RedisFuseError] = {}
        try:
            self._executor.run(build_read_requests([change for group in batch for change in group]), plan)
        except PartiallyAppliedError as partly:
            failed = {intent.reverts: error for step, error in partly.failures for intent in step.intents}
        again = self._record_decision(last, failed)
        if again and not portable:
            self._attempt_batch([tuple(again)], portable=True)

    def _record_decision(self, decision: _BatchDecision, failures: Mapping[int | None, RedisFuseError]) -> list[Change]:
        """Put a round into the report; returns the changes whose exact copy the server refused."""
        self.report.conflicts += decision.conflicts
        again: list[Change] = []
        for reversal in decision.inverses:
            change, error = reversal.change, failures.get(reversal.change.id)
            if error is not None and _is_payload_refused(error):
                again.append(change)
                continue
            if error is not None:
                self.report.failures.append((change, error))
                continue
            if reversal.is_noop:
                self.report.unchanged.append(reversal)
            else:
                self.report.reverted.append(change)
            if reversal.note is not None:
                self.report.notes.append((change, reversal.note))
        return again

    def _plan_group(
        self,
        group: ChangeGroup,
        projected: ProjectedState,
        now_ms: int,
        group_index: int,
        decision: _BatchDecision,
        *,
        portable: bool,
    ) -> list[Mutation]:
        """The steps of one operation; none if one of its changes has a conflict."""
        force = self._force or portable
        reversals = [
            invert(change, projected[KeyRef(change.key, change.field)], now_ms, force=force) for change in group
        ]
        found = [find_conflict(self._executor.journal, reversal, self._selected_ids) for reversal in reversals]
        conflicts = [conflict for conflict in found if conflict is not None]
        if conflicts:
            decision.conflicts += conflicts
            return []
        steps: list[Mutation] = []
        moves = list(_find_renames(reversals))
        for moved, left in moves:
            steps.append(_build_rename_back(moved, left, group_index))
            decision.inverses += [moved, left]
        settled = {each.change.id for pair in moves for each in pair}
        rest = [each for each in reversals if each.change.id not in settled]
        for reversal in sorted(rest, key=lambda each: each.desired_state.kind == "absent"):  # make first, remove then
            if portable:
                reversal = _use_portable_copy(reversal, self._executor.client.server_info)
            if not reversal.is_noop:
                commands = build_inverse_commands(reversal, self._executor.client, portable=portable)
                steps.append(Mutation((_build_intent(reversal),), commands, group_index))
            decision.inverses.append(reversal)
        for reversal in reversals:
            projected.set_state(KeyRef(reversal.change.key, reversal.change.field), reversal.desired_state)
        return steps

    def _revert_directories(self, group: ChangeGroup) -> None:
        """Empty directories are in the journal only: nothing can be in their way, but the keys renamed with them."""
        journal, whole = self._executor.journal, group[0].group_id
        if any(conflict.change.group_id == whole for conflict in self.report.conflicts):
            return
        if any(change.group_id == whole for change, _ in self.report.failures):
            return
        add = [decode_directory(change.key) for change in group if change.prior.kind == "directory"]
        remove = [decode_directory(change.key) for change in group if change.new.kind == "directory"]
        intents = [
            ChangeIntent(change.path, "rollback", change.key, None, change.new, change.prior, reverts=change.id)
            for change in group
        ]
        keys = (change.id for change in journal.get_group(whole) if not is_directory_change(change))
        reverting = (ids[0] for id in keys if (ids := journal.find_reverting_ids(id)))
        journal.update_directories(
            self._server_name,
            add=add,
            remove=remove,
            session_id=self._executor.session_id,
            intents=intents,
            group_id=next(reverting, None),
        )
        self.report.reverted += group


def _build_intent(inverse: Inverse) -> ChangeIntent:
    change = inverse.change
    return ChangeIntent(
        change.path,
        "rollback",
        change.key,
        change.field,
        inverse.current.state,
        inverse.desired_state,
        reverts=change.id,
        new_path=change.new_path,
    )


def _find_renames(inverses: Sequence[Inverse]) -> Iterator[tuple[Inverse, Inverse]]:
    """Pairs (what comes back, what goes) of whole keys that are one and the same: it was renamed.

    Such a change and the next one were recorded together.
    """
    by_id = {each.change.id: each for each in inverses}
    for each in inverses:
        change, other = each.change, by_id.get(each.change.id + 1)
        if other is None or change.field is not None or other.change.field is not None:
            continue
        comes = change.new.kind == each.current.state.kind == "absent" and each.desired_state.kind != "absent"
        goes = other.change.prior.kind == other.desired_state.kind == "absent" and not other.is_noop
        if comes and goes and is_same_state(change.prior, other.change.new):
            yield each, other


def _build_rename_back(restored: Inverse, removed: Inverse, group_index: int) -> Mutation:
    """A whole key goes back to its old name as it is, also what no copy of it could carry."""
    back = replace(restored, desired_state=replace(restored.desired_state, expires_at=removed.current.state.expires_at))
    command = build_rename(removed.change.key, restored.change.key)
    return Mutation((_build_intent(removed), _build_intent(back)), (command,), group_index)


def _use_portable_copy(inverse: Inverse, server_info: ServerInfo) -> Inverse:
    if inverse.desired_state.kind != "object":
        return inverse
    note = "the server refused the exact copy (another version or maker), so its elements were written back"
    if inverse.desired_state.type == b"hash" and not server_info.has_hash_field_ttl:
        note += ", without expiries of fields, which this server does not have"
    if inverse.desired_state.note:
        note = f"{note}; {inverse.desired_state.note}"
    return replace(inverse, note=note, desired_state=replace(inverse.desired_state, note=note))


def _is_payload_refused(error: RedisFuseError) -> bool:
    text = str(error)
    return isinstance(error, ServerReplyError) and ("DUMP payload" in text or "Bad data format" in text)


def _split_directories(group: ChangeGroup) -> Iterator[ChangeGroup]:
    """What of an operation is in Redis, and what only in the journal."""
    keys = tuple(change for change in group if not is_directory_change(change))
    directories = tuple(change for change in group if is_directory_change(change))
    yield from filter(None, (keys, directories))


def _batch_groups(groups: Sequence[ChangeGroup]) -> Iterator[list[ChangeGroup]]:
    """Operations that can be decided from one reading; a large one, or one of directories, alone."""
    batch: list[ChangeGroup] = []
    course = DependencyTracker()
    rows = size = 0
    for group in groups:
        weight = sum(change.prior.size or 0 for change in group)
        alone = len(group) > MAX_CHANGES_PER_BATCH or is_directory_change(group[0])
        full = rows + len(group) > MAX_CHANGES_PER_BATCH or size + weight > MAX_BATCH_BYTES
        if batch and (alone or full or not all(course.is_predictable(change) for change in group)):
            yield batch
            batch, course, rows, size = [], DependencyTracker(), 0, 0
        batch.append(group)
        rows += len(group)
        size += weight
        for change in group:
            course.add(change)
        if alone:
            yield batch
            batch, course, rows, size = [], DependencyTracker(), 0, 0
    if batch:
        yield batch

"""Rolls back operations: restores prior states, newest first, batch by batch.

A batch is one pipelined read, one fsync and one transaction for many operations. An interrupted rollback is
finished by running it again: changes that are reverted already are not selected again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import JournalError, ReadOnlyError, RedisFuseError, ServerReplyError, UnavailableError
from redisfuse.journal.directory_rows import decode_directory
from redisfuse.journal.models import Change, ChangeIntent
from redisfuse.transactions.combined_change import ChangeGroup, count_changes
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.inverse import Inverse
from redisfuse.transactions.mutation import PartiallyAppliedError
from redisfuse.transactions.projection import DependencyTracker
from redisfuse.transactions.recovery import ProgressCallback
from redisfuse.transactions.revert import Revert, RevertDecision
from redisfuse.transactions.rollback_plan import RollbackConflict, is_directory_change

MAX_CHANGES_PER_BATCH = 250
MAX_BATCH_BYTES = 16 * CHUNK_BYTES


@dataclass(slots=True)
class RollbackReport:
    """The result of a rollback."""

    reverted: list[Change] = field(default_factory=list)
    unchanged: list[Inverse] = field(default_factory=list)  # targets that held the prior state already, or had expired
    conflicts: list[RollbackConflict] = field(default_factory=list)
    failures: list[tuple[Change, RedisFuseError]] = field(default_factory=list)
    notes: list[tuple[Change, str]] = field(default_factory=list)
    skipped: list[Change] = field(default_factory=list)  # without a conflict, but their group has one
    inverses: dict[int, Inverse] = field(default_factory=dict)  # by id of the change: how it was reverted
    is_interrupted: bool = False  # `Rollback.stop` left the rest undone

    @property
    def is_clean(self) -> bool:
        """Whether every change was reverted, or needed nothing."""
        return not self.conflicts and not self.failures and not self.is_interrupted


ReportConsumer = Callable[[RollbackReport], None]
"""Receives what a batch did; the report is then emptied."""


class Rollback:
    """Rolls back operations of one server.

    `force` overwrites what was changed since (it is journaled).
    """

    def __init__(self, executor: TransactionExecutor, server_name: str, *, force: bool = False) -> None:
        self._executor = executor
        self._server_name = server_name
        self._force = force
        self._selected_ids: Set[int] = frozenset()
        self._is_stopping = False
        self._blocked_groups: set[int] = set()  # group_id, of those with a conflict or a failure
        self.report = RollbackReport()
        self.remaining: Iterable[Sequence[ChangeGroup]] = ()  # batches that `stop` left undone

    def run(
        self,
        groups: Iterable[ChangeGroup],
        selected_ids: Set[int],
        *,
        progress: ProgressCallback = lambda _count: None,
        consume: ReportConsumer | None = None,
    ) -> RollbackReport:
        """Revert the operations, in order; return the report.

        `selected_ids`: all changes that are to be rolled back, also those that are combined. With `consume`, the report
        of each batch goes there instead, so that the memory is bounded. Raises UnavailableError, ReadOnlyError or
        JournalError if it can't continue; `report` then has what was done.
        """
        self._selected_ids = selected_ids
        batches = _batch_groups(part for group in groups for part in _split_directories(group))
        for batch in batches:
            if self._is_stopping:
                self.report.is_interrupted = True
                self.remaining = chain([batch], batches)
                break
            if is_directory_change(batch[0][0]):
                self._revert_directories(batch[0])
            else:
                self._revert_batch(batch)
            if consume is not None:
                self._note_blocked()
                consume(self.report)
                self.report = RollbackReport()
            progress(sum(count_changes(group) for group in batch))
        return self.report

    def _note_blocked(self) -> None:
        """Remember the groups with a conflict or a failure."""
        self._blocked_groups |= {conflict.change.group_id for conflict in self.report.conflicts}
        self._blocked_groups |= {change.group_id for change, _ in self.report.failures}

    def stop(self) -> None:
        """Make `run` return after the current batch.

        Any thread, or a signal handler, may call this.
        """
        self._is_stopping = True

    def _revert_batch(self, batch: Sequence[ChangeGroup]) -> None:
        try:
            self._attempt_batch(batch)
        except (UnavailableError, ReadOnlyError, JournalError):
            raise
        except RedisFuseError as error:
            if len(batch) > 1:  # one group made the whole transaction fail: try each alone
                for group in batch:
                    self._revert_batch([group])
            elif _is_payload_refused(error):
                self._attempt_batch(batch, portable=True)
            else:
                self.report.failures += [(change, error) for change in batch[0]]

    def _attempt_batch(self, batch: Sequence[ChangeGroup], *, portable: bool = False) -> None:
        """Revert, in one transaction, all groups of the batch that have no conflict.

        `portable`: the server refused a RESTORE, so objects are rebuilt from their elements.
        """
        operation = Revert(
            self._executor.journal, tuple(batch), self._selected_ids, force=self._force, portable=portable
        )
        errors_by_change: dict[int | None, RedisFuseError] = {}
        try:
            self._executor.run(operation)
        except PartiallyAppliedError as partial:
            errors_by_change = {
                intent.reverts_through or intent.reverts: error
                for mutation, error in partial.failures
                for intent in mutation.intents
            }
        refused = self._report_decision(operation.decision, errors_by_change)
        if refused and not portable:
            self._attempt_batch([tuple(refused)], portable=True)

    def _report_decision(
        self, decision: RevertDecision, errors_by_change: Mapping[int | None, RedisFuseError]
    ) -> list[Change]:
        """Add an attempt to the report; return the changes whose DUMP the server refused."""
        self.report.conflicts += decision.conflicts
        self.report.skipped += decision.skipped
        refused: list[Change] = []
        for inverse in decision.inverses:
            change, error = inverse.change, errors_by_change.get(inverse.change.id)
            self.report.inverses[change.id] = inverse
            if error is not None and _is_payload_refused(error):
                refused.append(change)
                continue
            if error is not None:
                self.report.failures.append((change, error))
                continue
            if inverse.is_noop:
                self.report.unchanged.append(inverse)
            else:
                self.report.reverted.append(change)
            if inverse.note is not None:
                self.report.notes.append((change, inverse.note))
        return refused

    def _revert_directories(self, group: ChangeGroup) -> None:
        """Revert changes of empty directories.

        These exist only in the journal, and can't have conflicts of their own. They are left alone if the keys that
        were renamed with them have a conflict or failed.
        """
        journal, group_id = self._executor.journal, group[0].group_id
        self._note_blocked()
        if group_id in self._blocked_groups:
            self.report.skipped += group
            return
        add = [decode_directory(change.key) for change in group if change.prior.kind == "directory"]
        remove = [decode_directory(change.key) for change in group if change.new.kind == "directory"]
        intents = [
            ChangeIntent(change.path, "rollback", change.key, None, change.new, change.prior, reverts=change.id)
            for change in group
        ]
        key_change_ids = (change.id for change in journal.get_group(group_id) if not is_directory_change(change))
        reverting_ids = (ids[0] for id in key_change_ids if (ids := journal.find_reverting_ids(id)))
        journal.update_directories(
            self._server_name,
            add=add,
            remove=remove,
            session_id=self._executor.session_id,
            intents=self._executor.attribute(intents),
            group_id=next(reverting_ids, None),
        )
        self.report.reverted += group


def _is_payload_refused(error: RedisFuseError) -> bool:
    message = str(error)
    return isinstance(error, ServerReplyError) and ("DUMP payload" in message or "Bad data format" in message)


def _split_directories(group: ChangeGroup) -> Iterator[ChangeGroup]:
    """Yield an operation's changes of keys, then those of empty directories."""
    keys = tuple(change for change in group if not is_directory_change(change))
    directories = tuple(change for change in group if is_directory_change(change))
    yield from filter(None, (keys, directories))


def _batch_groups(groups: Iterable[ChangeGroup]) -> Iterator[list[ChangeGroup]]:
    """Yield batches of groups that can be decided from one read.

    A large group, or one of directories, is alone.
    """
    batch: list[ChangeGroup] = []
    dependencies = DependencyTracker()
    change_count = size = 0
    for group in groups:
        group_size = sum(change.prior.size or 0 for change in group)
        is_alone = len(group) > MAX_CHANGES_PER_BATCH or is_directory_change(group[0])
        is_full = change_count + len(group) > MAX_CHANGES_PER_BATCH or size + group_size > MAX_BATCH_BYTES
        if batch and (is_alone or is_full or not all(dependencies.is_predictable(change) for change in group)):
            yield batch
            batch, dependencies, change_count, size = [], DependencyTracker(), 0, 0
        batch.append(group)
        change_count += len(group)
        size += group_size
        for change in group:
            dependencies.add(change)
        if is_alone:
            yield batch
            batch, dependencies, change_count, size = [], DependencyTracker(), 0, 0
    if batch:
        yield batch

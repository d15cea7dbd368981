"""Writing prior states back, newest first, operation by operation, through the same steps as any change.

Operations are taken back in batches: one pipelined reading, one fsync, one transaction for many. A rollback that was
interrupted is simply done again: what is taken back already is not selected any more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Facts
from redisfuse.errors import JournalError, ReadOnlyError, RedisFuseError, ServerReplyError, UnavailableError
from redisfuse.journal.directory_rows import decode
from redisfuse.journal.models import Change, Intent
from redisfuse.paths.grammar import Target
from redisfuse.transactions.command_builder import rename
from redisfuse.transactions.executor import PartlyAppliedError, Step, Steps, server_time
from redisfuse.transactions.inverse import Reversal, commands_for, reverse
from redisfuse.transactions.matching import same_state
from redisfuse.transactions.projection import Course, Ground, looks_for
from redisfuse.transactions.rollback_plan import Conflict, conflict_of, is_directory
from redisfuse.transactions.selection import Group
from redisfuse.transactions.state_reader import Found

BATCH = 250  # changes that are taken back in one transaction
BATCH_BYTES = 16 * CHUNK_BYTES

Told = Callable[[int], None]


@dataclass(slots=True)
class Report:
    """What came of a rollback."""

    done: list[Change] = field(default_factory=list)
    nothing: list[Reversal] = field(default_factory=list)  # they held their prior state already, or are expired
    conflicts: list[Conflict] = field(default_factory=list)
    failures: list[tuple[Change, RedisFuseError]] = field(default_factory=list)
    notes: list[tuple[Change, str]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything that was to be taken back is."""
        return not self.conflicts and not self.failures


@dataclass(slots=True)
class _Round:
    """One time that a batch was decided."""

    reversals: list[Reversal] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)


class Rollback:
    """Takes back operations of one server."""

    def __init__(self, steps: Steps, server_name: str, *, force: bool = False) -> None:
        self._steps = steps
        self._name = server_name
        self._force = force
        self._chosen: set[int] = set()
        self.report = Report()

    def run(self, groups: Sequence[Group], *, progress: Told = lambda _count: None) -> Report:
        """Take the operations back, in order. `progress(count)` is told of changes that are dealt with.

        Raises UnavailableError, ReadOnlyError, JournalError when nothing more can be done; `report` then says what was.
        """
        self._chosen = {change.id for group in groups for change in group}
        for batch in _batches([part for group in groups for part in _parts(group)]):
            if is_directory(batch[0][0]):
                self._directories(batch[0])
            else:
                self._together(batch)
            progress(sum(len(group) for group in batch))
        return self.report

    def _together(self, batch: Sequence[Group]) -> None:
        try:
            self._attempt(batch)
        except (UnavailableError, ReadOnlyError, JournalError):
            raise
        except RedisFuseError as error:
            if len(batch) > 1:  # one of them spoilt it for all
                for group in batch:
                    self._together([group])
            elif _payload_refused(error):
                self._attempt(batch, portable=True)
            else:
                self.report.failures += [(change, error) for change in batch[0]]

    def _attempt(self, batch: Sequence[Group], *, portable: bool = False) -> None:
        """One transaction for all operations of the batch that have no conflict.

        `portable`: RESTORE was refused just now, so objects are rebuilt from their elements.
        """
        last = _Round()

        def decide(found: Mapping[Target, Found]) -> list[Step]:
            nonlocal last
            last = _Round()
            ground = Ground(found)
            now = server_time(self._steps.server)
            steps: list[Step] = []
            for number, group in enumerate(batch):
                steps += self._steps_of(group, ground, now, number, last, portable=portable)
            return steps

        failed: dict[int | None, RedisFuseError] = {}
        try:
            self._steps.run(looks_for([change for group in batch for change in group]), decide)
        except PartlyAppliedError as partly:
            failed = {intent.reverts: error for step, error in partly.failed for intent in step.intents}
        again = self._record(last, failed)
        if again and not portable:
            self._attempt([tuple(again)], portable=True)

    def _record(self, last: _Round, failed: Mapping[int | None, RedisFuseError]) -> list[Change]:
        """Put a round into the report; returns the changes whose exact copy the server refused."""
        self.report.conflicts += last.conflicts
        again: list[Change] = []
        for reversal in last.reversals:
            change, error = reversal.change, failed.get(reversal.change.id)
            if error is not None and _payload_refused(error):
                again.append(change)
                continue
            if error is not None:
                self.report.failures.append((change, error))
                continue
            if reversal.nothing:
                self.report.nothing.append(reversal)
            else:
                self.report.done.append(change)
            if reversal.note is not None:
                self.report.notes.append((change, reversal.note))
        return again

    def _steps_of(
        self, group: Group, ground: Ground, now: int, number: int, last: _Round, *, portable: bool
    ) -> list[Step]:
        """The steps of one operation; none if one of its changes has a conflict."""
        force = self._force or portable
        reversals = [reverse(change, ground[Target(change.key, change.field)], now, force=force) for change in group]
        found = [conflict_of(self._steps.journal, reversal, self._chosen) for reversal in reversals]
        conflicts = [conflict for conflict in found if conflict is not None]
        if conflicts:
            last.conflicts += conflicts
            return []
        steps: list[Step] = []
        moves = list(_moves(reversals))
        for moved, left in moves:
            steps.append(_step_back(moved, left, number))
            last.reversals += [moved, left]
        settled = {each.change.id for pair in moves for each in pair}
        rest = [each for each in reversals if each.change.id not in settled]
        for reversal in sorted(rest, key=lambda each: each.wanted.kind == "absent"):  # make first, remove then
            if portable:
                reversal = _portable(reversal, self._steps.server.facts)
            if not reversal.nothing:
                commands = commands_for(reversal, self._steps.server, portable=portable)
                steps.append(Step((_intent(reversal),), commands, number))
            last.reversals.append(reversal)
        for reversal in reversals:
            ground.becomes(Target(reversal.change.key, reversal.change.field), reversal.wanted)
        return steps

    def _directories(self, group: Group) -> None:
        """Empty directories are in the journal only: nothing can be in their way, but the keys renamed with them."""
        journal, whole = self._steps.journal, group[0].group
        if any(conflict.change.group == whole for conflict in self.report.conflicts):
            return
        if any(change.group == whole for change, _ in self.report.failures):
            return
        add = [decode(change.key) for change in group if change.prior.kind == "directory"]
        remove = [decode(change.key) for change in group if change.new.kind == "directory"]
        intents = [
            Intent(change.path, "rollback", change.key, None, change.new, change.prior, reverts=change.id)
            for change in group
        ]
        keys = (change.id for change in journal.group(whole) if not is_directory(change))
        reverting = (ids[0] for id in keys if (ids := journal.reverted_by(id)))
        journal.alter_directories(
            self._name,
            add=add,
            remove=remove,
            session=self._steps.session,
            intents=intents,
            group=next(reverting, None),
        )
        self.report.done += group


def _intent(reversal: Reversal) -> Intent:
    change = reversal.change
    return Intent(
        change.path,
        "rollback",
        change.key,
        change.field,
        reversal.found.state,
        reversal.wanted,
        reverts=change.id,
        new_path=change.new_path,
    )


def _moves(reversals: Sequence[Reversal]) -> Iterator[tuple[Reversal, Reversal]]:
    """Pairs (what comes back, what goes) of whole keys that are one and the same: it was renamed.

    Such a change and the next one were recorded together.
    """
    by_id = {each.change.id: each for each in reversals}
    for each in reversals:
        change, other = each.change, by_id.get(each.change.id + 1)
        if other is None or change.field is not None or other.change.field is not None:
            continue
        comes = change.new.kind == each.found.state.kind == "absent" and each.wanted.kind != "absent"
        goes = other.change.prior.kind == other.wanted.kind == "absent" and not other.nothing
        if comes and goes and same_state(change.prior, other.change.new):
            yield each, other


def _step_back(moved: Reversal, left: Reversal, number: int) -> Step:
    """A whole key goes back to its old name as it is, also what no copy of it could carry."""
    back = replace(moved, wanted=replace(moved.wanted, expires_at=left.found.state.expires_at))
    command = rename(left.change.key, moved.change.key)
    return Step((_intent(left), _intent(back)), (command,), number)


def _portable(reversal: Reversal, facts: Facts) -> Reversal:
    if reversal.wanted.kind != "object":
        return reversal
    note = "the server refused the exact copy (another version or maker), so its elements were written back"
    if reversal.wanted.type == b"hash" and not facts.has_hash_field_ttl:
        note += ", without expiries of fields, which this server does not have"
    if reversal.wanted.note:
        note = f"{note}; {reversal.wanted.note}"
    return replace(reversal, note=note, wanted=replace(reversal.wanted, note=note))


def _payload_refused(error: RedisFuseError) -> bool:
    text = str(error)
    return isinstance(error, ServerReplyError) and ("DUMP payload" in text or "Bad data format" in text)


def _parts(group: Group) -> Iterator[Group]:
    """What of an operation is in Redis, and what only in the journal."""
    keys = tuple(change for change in group if not is_directory(change))
    directories = tuple(change for change in group if is_directory(change))
    yield from filter(None, (keys, directories))


def _batches(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Operations that can be decided from one reading; a large one, or one of directories, alone."""
    batch: list[Group] = []
    course = Course()
    rows = size = 0
    for group in groups:
        weight = sum(change.prior.size or 0 for change in group)
        alone = len(group) > BATCH or is_directory(group[0])
        full = rows + len(group) > BATCH or size + weight > BATCH_BYTES
        if batch and (alone or full or not all(course.admits(change) for change in group)):
            yield batch
            batch, course, rows, size = [], Course(), 0, 0
        batch.append(group)
        rows += len(group)
        size += weight
        for change in group:
            course.add(change)
        if alone:
            yield batch
            batch, course, rows, size = [], Course(), 0, 0
    if batch:
        yield batch

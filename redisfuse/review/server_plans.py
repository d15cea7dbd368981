"""Plans rollbacks against the servers as they are now, and executes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redisfuse.client.client import RedisClient
from redisfuse.errors import ConflictError, RedisFuseError
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.descriptions import format_state
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.paths.grammar import KeyRef
from redisfuse.review.rollback_run import RollbackProgress, RollbackRun
from redisfuse.text import escape_text, format_count
from redisfuse.transactions.apply import apply_change
from redisfuse.transactions.combined_change import count_changes
from redisfuse.transactions.matching import build_read_request
from redisfuse.transactions.plan_descriptions import (
    describe_action,
    format_conflict,
    format_planned_change,
    name_action,
)
from redisfuse.transactions.rollback import Rollback, RollbackReport
from redisfuse.transactions.rollback_plan import PlannedChange, RollbackPlan, plan_rollback
from redisfuse.transactions.selection import SelectedChanges, select_changes
from redisfuse.transactions.server_fingerprint import compare_servers
from redisfuse.transactions.state_reader import CurrentState, StateReader
from redisfuse.transactions.write_session import ServerConnector, WriteSession, open_write_session

ROLLING_BACK = "Rolling back"  # the part of the work that changes keys

RollbackResult = tuple["ServerPlan", RollbackReport]

MAX_LISTED_ENTRIES = 200  # of a plan, conflicts first


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A change of the plan, as printable text."""

    id: int
    change: str
    action: str  # one word
    description: str
    expected: str = ""  # only of a conflict
    found: str = ""
    later_ids: tuple[int, ...] = ()  # changes since, which are not in the basket


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The plan of one server, as printable text."""

    server: str
    warnings: list[str]
    error: str  # why there is no plan
    rows: list[PlanRow]
    more_rows: int
    change_count: int  # that would be rolled back
    key_count: int
    conflict_count: int
    digest: str  # of the whole plan: what the user confirms

    @property
    def summary(self) -> str:
        """The numbers of changes and keys."""
        return f"{format_count(self.change_count, 'change')} of {format_count(self.key_count, 'key')}"


class ServerPlans:
    """Plans and executes rollbacks.

    The journal is opened for writing only to execute one.
    """

    def __init__(self, journal: Journal, connector: ServerConnector) -> None:
        self._journal = journal
        self._connector = connector
        self._rollback: Rollback | None = None  # the one that is being executed
        self._is_stopping = False  # set by `stop`, by any thread
        self.run: RollbackRun[RollbackResult] | None = None  # the newest

    # -- plans --------------------------------------------------------------------------------------------------------

    def read_plans(self, change_filter: ChangeFilter) -> list[ServerPlan]:
        """Return the plan of each server with these changes, as its keys are now.

        Raises UsageError.
        """
        selected = select_changes(self._journal, change_filter)
        return [self._read_plan(name, mine) for name, mine in _split_servers(selected)]

    def _read_plan(self, server_name: str, selected: SelectedChanges) -> ServerPlan:
        changes = [change for group in selected.groups for change in group]
        try:
            with self._connect(changes[0]) as server:
                comparisons = compare_servers(self._journal, server, changes)
                plan = plan_rollback(self._journal, server, selected.groups, selected.ids)
        except RedisFuseError as error:
            return ServerPlan(server_name, [], str(error), [], 0, 0, 0, 0, "")
        return _build_plan(server_name, plan, [each.explanation for each in comparisons if each.explanation])

    @contextmanager
    def _connect(self, change: Change) -> Iterator[RedisClient]:
        server = self._connector.connect(self._journal.get_session(change.session_id), writable=False)
        try:
            yield server
        finally:
            server.close()

    @contextmanager
    def read_current(self, change: Change) -> Iterator[CurrentState]:
        """Yield the state of the target of a change. Raises as `StateReader.read` does."""
        target = KeyRef(change.key, change.field)
        request = build_read_request(target, change.new, change.prior)
        with self._connect(change) as server, server.reading_channel() as channel:
            yield StateReader(server, channel, dump_limit=0).read([request])[target]

    # -- changes ------------------------------------------------------------------------------------------------------

    def start_rollback(self, change_filter: ChangeFilter, server_name: str, digest: str) -> RollbackRun[RollbackResult]:
        """Begin to roll back the plan with this digest.

        Its result is a ConflictError if it is another plan by now; then nothing was changed.
        """
        self._is_stopping = False
        self.run = RollbackRun(
            server_name, lambda progress: self._roll_back(change_filter, server_name, digest, progress)
        )
        return self.run

    def _roll_back(
        self, change_filter: ChangeFilter, server_name: str, digest: str, progress: RollbackProgress
    ) -> RollbackResult:
        def advance_plan(count: int) -> None:
            progress.advance(count)
            if self._is_stopping:
                raise ConflictError("the rollback was stopped before it changed anything")

        progress.begin("Selecting the changes")
        with self._open_writable() as journal:
            selected = dict(_split_servers(select_changes(journal, change_filter))).get(server_name)
            if selected is None:
                raise ConflictError(f"nothing is left to roll back on {server_name}")
            changes = [change for group in selected.groups for change in group]
            total = selected.groups.change_count
            with open_write_session(journal, self._connector, changes) as session:
                progress.begin("Reading the keys", total)
                plan = plan_rollback(journal, session.server, selected.groups, selected.ids, progress=advance_plan)
                built = _build_plan(server_name, plan, [])
                if built.digest != digest:
                    raise ConflictError("a key was changed meanwhile, so this is another plan: nothing was changed")
                progress.begin(ROLLING_BACK, total)
                return built, self._execute(session, plan, selected, progress)

    def _execute(
        self, session: WriteSession, plan: RollbackPlan, selected: SelectedChanges, progress: RollbackProgress
    ) -> RollbackReport:
        self._rollback = Rollback(session.executor, session.server_name)
        if self._is_stopping:
            self._rollback.stop()
        try:
            return self._rollback.run(plan.groups, selected.ids, progress=progress.advance)
        finally:
            self._rollback = None

    def stop(self) -> None:
        """End a rollback that is being executed after its current batch."""
        self._is_stopping = True
        rollback = self._rollback
        if rollback is not None:
            rollback.stop()

    def wait(self) -> None:
        """Wait for the end of a rollback that is being executed."""
        if self.run is not None:
            self.run.wait()

    def apply(self, change_id: int, *, force: bool, reviewed: str) -> list[int]:
        """Write the new state of a change, and return the ids of the new changes.

        `reviewed`: the digest of the state that the user compared it with. Raises ConflictError if the key has another
        one; then nothing was changed.
        """
        with self._open_writable() as journal:
            change = journal.get_change(change_id)
            with open_write_session(journal, self._connector, [change]) as session:
                with self.read_current(change) as current:
                    if digest_state(current) != reviewed:
                        raise ConflictError("the key was changed since you compared it: nothing was changed")
                return apply_change(session.executor, journal.get_change(change_id), force=force)

    @contextmanager
    def _open_writable(self) -> Iterator[Journal]:
        path: Path = self._journal.path
        with Journal.open(path, operation_idle_ms=None) as journal:
            yield journal


def _split_servers(selected: SelectedChanges) -> Iterator[tuple[str, SelectedChanges]]:
    for name in selected.groups.server_names:
        yield name, selected.of_server(name)


def _build_plan(server_name: str, plan: RollbackPlan, warnings: list[str]) -> ServerPlan:
    conflicting_groups = {conflict.change.group_id for conflict in plan.conflicts}
    done = [entry.change for entry in plan.entries if entry.change.group_id not in conflicting_groups]
    listed = sorted(plan.entries, key=lambda entry: entry.conflict is None)[:MAX_LISTED_ENTRIES]
    return ServerPlan(
        server=server_name,
        warnings=warnings,
        error="",
        rows=[_build_row(entry) for entry in listed],
        more_rows=len(plan.entries) - len(listed),
        change_count=count_changes(done),
        key_count=len({change.key for change in done}),
        conflict_count=len(plan.conflicts),
        digest=_digest_plan(server_name, plan),
    )


def _build_row(entry: PlannedChange) -> PlanRow:
    text, action = format_planned_change(entry.change), name_action(entry)
    if entry.conflict is None:
        return PlanRow(entry.change.id, text, action, describe_action(entry))
    return PlanRow(
        entry.change.id,
        text,
        action,
        format_conflict(entry.conflict),
        format_state(entry.conflict.change.new),
        format_state(entry.conflict.current.state),
        tuple(change.id for change in entry.conflict.later_changes),
    )


def _digest_plan(server_name: str, plan: RollbackPlan) -> str:
    """Return a digest of all that the plan would do, and of what it does it to."""
    sha = hashlib.sha256(server_name.encode())
    for entry in plan.entries:
        current = None if entry.inverse is None else entry.inverse.current.state
        states = current and (current.kind, current.content, current.portable_copy), entry.change.prior.content
        sha.update(repr((entry.change.id, count_changes([entry.change]), describe_action(entry), states)).encode())
    return sha.hexdigest()


def digest_state(current: CurrentState) -> str:
    """Return a digest of the content of a target."""
    state = current.state
    return hashlib.sha256(repr((current.key_type, state.kind, state.content, state.portable_copy)).encode()).hexdigest()


def describe_report(plan: ServerPlan, report: RollbackReport) -> list[str]:
    """Return what a rollback did, as printable lines."""
    done = format_count(count_changes(report.reverted), "change")
    lines = [f"{done} rolled back on {escape_text(plan.server.encode())}."]
    if report.unchanged:
        lines.append(f"{count_changes(inverse.change for inverse in report.unchanged):,} needed no change.")
    if report.is_interrupted:
        lines.append("The rollback was stopped; the rest is left in the basket.")
    for conflict in report.conflicts:
        lines.append(f"{format_planned_change(conflict.change)}: {format_conflict(conflict)}")
    for change, error in report.failures:
        lines.append(f"{format_planned_change(change)}: not rolled back: {escape_text(str(error).encode())}")
    for change, note in report.notes:
        lines.append(f"{format_planned_change(change)}: {escape_text(note.encode())}")
    return lines

"""Roll changes back: restore the earlier values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._changes import change_to_json, describe_state, format_change, format_state
from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import (
    LinePrinter,
    ProgressBar,
    escape_text,
    format_count,
    format_local_time,
    json_option,
    print_json,
    progress_bar,
)
from redisfuse.cli._params import BYTES, CHANGE_ID, SESSION_ID, TIMESTAMP
from redisfuse.cli._terminal import print_err
from redisfuse.cli._write_session import (
    ServerConnector,
    connector_options,
    report_server_changes,
    resolve_pending,
    write_session,
)
from redisfuse.errors import RedisFuseError, UsageError

if TYPE_CHECKING:
    from redisfuse.journal.journal import Journal
    from redisfuse.transactions.rollback import RollbackReport
    from redisfuse.transactions.rollback_plan import PlannedChange, RollbackConflict, RollbackPlan
    from redisfuse.transactions.selection import ChangeGroup

MAX_LISTED_CHANGES = 50  # changes of a plan that are listed before the rollback; --dry-run lists all
PROGRESS_BAR_MIN_CHANGES = 100  # a rollback of more changes shows a progress bar


@click.command
@click.argument("ids", type=CHANGE_ID, nargs=-1, metavar="[ID...]")
@click.option("--group", type=CHANGE_ID, metavar="ID", help="The operation that begins with this change.")
@click.option("--session", type=SESSION_ID, metavar="ID", help="All changes of this session.")
@click.option(
    "--since", type=TIMESTAMP, metavar="TIME", help="All changes since this time: ISO 8601, 14:30, 2h, yesterday."
)
@click.option(
    "--last",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="The newest operation that is not rolled back, or the newest N.",
)
@click.option("--key", type=BYTES, metavar="GLOB", help="All changes of keys that match (*, ?, [a-z], as in Redis).")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--force", is_flag=True, help="Overwrite later changes (this is journaled, too), and another server.")
@json_option
@connector_options
@journal_option
@click.pass_context
def command(
    context: click.Context,
    /,
    ids: tuple[int, ...],
    group: int | None,
    session: int | None,
    since: int | None,
    last: int | None,
    key: bytes | None,
    dry_run: bool,
    yes: bool,
    force: bool,
    as_json: bool,
    journal_file: Path | None,
    **_connector_options: Any,
) -> int:
    """Roll changes back: restore the earlier values, newest change first.

    The id of one change selects its whole operation (a rename has two changes). A key that has changed since is a
    conflict: nothing of its operation is rolled back, and the exit status is 1. A rollback is journaled and can be
    rolled back. Changes that are rolled back already are skipped, so the same command finishes an interrupted rollback.
    """
    from redisfuse.transactions.selection import RollbackSelection, select_groups

    connector = ServerConnector.from_context(context)
    selection = RollbackSelection(ids=ids, group=group, session=session, since=since, last=last, key=key)
    status = 0
    with open_journal(journal_file, write=not dry_run) as journal:
        if not dry_run:
            resolve_pending(journal, connector, quiet=True)
        groups = select_groups(journal, selection)
        servers = list(dict.fromkeys(group[0].server_name for group in groups))
        if connector.url is not None and len(servers) > 1:
            raise UsageError(f"these changes belong to {len(servers)} servers; --url can name only one of them")
        if not groups and not as_json:
            LinePrinter().print(f"nothing to roll back{': already rolled back' if ids else ''}")
        for name in servers:
            server_groups = [group for group in groups if group[0].server_name == name]
            rollback = _RollbackCommand(
                journal, connector, server_groups, force=force, as_json=as_json, last_count=last
            )
            succeeded = rollback.dry_run() if dry_run else rollback.run(ask_first=not yes)
            status = status or (0 if succeeded else 1)
    return status


class _RollbackCommand:
    """The rollback of one server's operations."""

    def __init__(
        self,
        journal: Journal,
        connector: ServerConnector,
        groups: list[ChangeGroup],
        *,
        force: bool,
        as_json: bool,
        last_count: int | None,
    ) -> None:
        self._journal = journal
        self._connector = connector
        self._groups = groups
        self._force = force
        self._as_json = as_json
        self._last_count = last_count
        self._printer = LinePrinter()
        self._changes = [change for group in groups for change in group]

    def dry_run(self) -> bool:
        """Print the whole plan; return whether it has no conflict."""
        from redisfuse.transactions.rollback_plan import plan_rollback

        server = self._connector.connect(self._journal.get_session(self._changes[0].session_id), writable=False)
        try:
            report_server_changes(self._journal, server, self._changes)
            plan = plan_rollback(self._journal, server, self._groups, force=self._force)
        finally:
            server.close()
        if self._as_json:
            for entry in plan.entries:
                print_json(_entry_to_json(entry, "planned" if entry.conflict is None else "conflict"))
        else:
            self._print_plan(plan, None)
        return not plan.conflicts

    def run(self, *, ask_first: bool) -> bool:
        """Print the plan, ask for confirmation on a terminal, and execute it.

        Returns whether all of it was done.
        """
        from redisfuse.transactions.rollback import Rollback
        from redisfuse.transactions.rollback_plan import plan_rollback

        with write_session(self._journal, self._connector, self._changes, force=self._force, ask=ask_first) as session:
            plan = plan_rollback(self._journal, session.server, self._groups, force=self._force)
            total = len(plan.entries)
            if not self._as_json:
                self._print_plan(plan, MAX_LISTED_CHANGES)
                if (
                    ask_first
                    and total > 1
                    and sys.stdin.isatty()
                    and not click.confirm(f"Roll back {format_count(total, 'change')}?")
                ):
                    self._printer.print("nothing was changed")
                    return False
            rollback = Rollback(session.executor, session.server_name, force=self._force)
            try:
                if total > PROGRESS_BAR_MIN_CHANGES:
                    with progress_bar("rolling back", total) as bar:
                        rollback.run(plan.groups, progress=bar.advance)
                else:
                    rollback.run(plan.groups, progress=ProgressBar().advance)
            except RedisFuseError:
                reverted = format_count(len(rollback.report.reverted), "change")
                print_err(f"{reverted} of {total} were rolled back before this error")
                raise
            self._print_report(plan, rollback.report)
            return rollback.report.is_clean

    # -- output -------------------------------------------------------------------------------------------------------

    def _print_plan(self, plan: RollbackPlan, limit: int | None) -> None:
        entries = plan.entries if limit is None else plan.entries[:limit]
        for entry in entries:
            self._printer.print(
                f"{format_change(entry.change)}: {_describe_action(entry)}",
                "red" if entry.conflict else "",
            )
            if entry.conflict is not None:
                self._print_conflict(entry.conflict)
        if len(plan.entries) > len(entries):
            self._printer.print(f"… and {format_count(len(plan.entries) - len(entries), 'more change')}")
            for conflict in plan.conflicts:
                if all(conflict is not entry.conflict for entry in entries):
                    self._printer.print(f"{format_change(conflict.change)}: {_format_conflict(conflict)}", "red")
                    self._print_conflict(conflict)

    def _print_conflict(self, conflict: RollbackConflict) -> None:
        self._printer.print(f"    expected  {format_state(conflict.change.new)}", "green")
        self._printer.print(f"    found     {format_state(conflict.current.state)}", "red")
        if conflict.later_changes:
            ids = ", ".join(str(change.id) for change in conflict.later_changes)
            self._printer.print(f"    changed since by {ids}; to roll back all of them: {conflict.combined_command}")

    def _print_report(self, plan: RollbackPlan, report: RollbackReport) -> None:
        if self._as_json:
            results: dict[int, tuple[str, str | None]] = {change.id: ("done", None) for change in report.reverted}
            results |= {reversal.change.id: ("nothing", None) for reversal in report.unchanged}
            results |= {change.id: ("failed", str(error)) for change, error in report.failures}
            conflicts = {conflict.change.id: conflict for conflict in report.conflicts}
            for entry in plan.entries:
                result, error = results.get(entry.change.id, ("conflict" if conflicts else "left", None))
                print_json(_entry_to_json(entry, result, conflicts.get(entry.change.id), error))
            return
        planned = {conflict.change.id for conflict in plan.conflicts}
        for conflict in report.conflicts:
            if conflict.change.id not in planned:
                self._printer.print(f"{format_change(conflict.change)}: {_format_conflict(conflict)}", "red")
                self._print_conflict(conflict)
        for change, failure in report.failures:
            self._printer.print(
                f"{format_change(change)}: not rolled back: {escape_text(str(failure).encode())}", "red"
            )
        for change, note in report.notes:
            self._printer.print(f"{format_change(change)}: {escape_text(note.encode())}", "yellow")
        self._printer.print(
            f"{format_count(len(report.reverted), 'change')} rolled back{_format_remainder(plan, report)}"
        )
        if self._last_count is not None and len(report.unchanged) == len(plan.entries):
            self._printer.print(f"to roll back further: redisfuse rollback --last {self._last_count + 1}")


def _format_remainder(plan: RollbackPlan, report: RollbackReport) -> str:
    parts = []
    if report.unchanged:
        parts.append(f"{len(report.unchanged)} needed no change")
    if report.conflicts:
        skipped = len(plan.entries) - len(report.reverted) - len(report.unchanged) - len(report.failures)
        parts.append(f"{skipped} skipped because of conflicts (--force overwrites)")
    if report.failures:
        parts.append(f"{len(report.failures)} failed")
    return "".join(f", {part}" for part in parts)


def _describe_action(entry: PlannedChange) -> str:
    """Return the action for a change as text."""
    change, reversal = entry.change, entry.inverse
    if entry.conflict is not None:
        return _format_conflict(entry.conflict)
    if change.prior.kind == "directory":
        return "create the empty directory again"
    if change.new.kind == "directory":
        return "remove the empty directory"
    if reversal is None:
        return f"restore {describe_state(change.prior)}, if the changes above restore the value of this one"
    note = f" ({escape_text(reversal.note.encode())})" if reversal.note else ""
    if reversal.is_noop:
        return f"nothing to do{note}"
    if reversal.desired_state.kind == "absent":
        return f"remove{note}"
    if change.op == "expire":
        at = reversal.desired_state.expires_at if change.field is None else reversal.desired_state.field_expires_at
        return f"{'remove the expiry' if at is None else f'set the expiry to {format_local_time(at)}'}{note}"
    return f"restore {describe_state(reversal.desired_state)}{note}"


def _format_conflict(conflict: RollbackConflict) -> str:
    return f"conflict: {escape_text(conflict.reason.encode())}"


def _entry_to_json(
    entry: PlannedChange, result: str, conflict: RollbackConflict | None = None, error: str | None = None
) -> dict[str, Any]:
    conflict = conflict or entry.conflict
    return {
        **change_to_json(entry.change),
        "result": result,
        "action": _describe_action(entry),
        "conflict": None if conflict is None else conflict.reason,
        "found": None if conflict is None else describe_state(conflict.current.state),
        "together": None if conflict is None else conflict.combined_command,
        "failure": error,
    }

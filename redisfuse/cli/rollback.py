"""Take changes back: write what was there before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli import _journal_options, _write_session
from redisfuse.cli._options import BYTES
from redisfuse.cli._output import Printer, count, escape_text, json_option, local_time, print_json
from redisfuse.cli._terminal import tell
from redisfuse.errors import RedisFuseError, UsageError

if TYPE_CHECKING:
    from redisfuse.journal.journal import Journal
    from redisfuse.transactions.rollback import Report
    from redisfuse.transactions.rollback_plan import Conflict, Plan, Planned
    from redisfuse.transactions.selection import Group

LISTED = 50  # changes of a plan that are shown before they are taken back; --dry-run shows all
PROGRESS = 100  # changes beyond which there is a progress bar


@click.command
@click.argument("ids", type=_journal_options.CHANGE, nargs=-1, metavar="[ID...]")
@click.option("--group", type=_journal_options.CHANGE, metavar="ID", help="The operation that begins with this change.")
@click.option("--session", type=_journal_options.SESSION, metavar="ID", help="All changes of this session.")
@click.option(
    "--since", type=_journal_options.MOMENT, metavar="TIME", help="All changes since: ISO 8601, 14:30, 2h, yesterday."
)
@click.option(
    "--last",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="The newest operation that stands, or the newest N.",
)
@click.option("--key", type=BYTES, metavar="GLOB", help="All changes of keys that match (*, ?, [a-z], as in Redis).")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done; touch nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Overwrite what was changed since (it is journaled too).")
@json_option
@_write_session.server_options
@_journal_options.journal_option
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
    **_reaching: Any,
) -> int:
    """Take changes back: write what was there before, newest first.

    Whoever names one change of an operation (a rename has two) means all of it. A key that was changed since is a
    conflict: nothing of its operation is touched, and the exit status is 1. A rollback is journaled like any change and
    can be rolled back. What is taken back already is left out, so the same command finishes an interrupted rollback.
    """
    from redisfuse.transactions.selection import Selection, select

    way = _write_session.Way.of(context)
    wanted = Selection(ids=ids, group=group, session=session, since=since, last=last, key=key)
    status = 0
    with _journal_options.open_journal(journal_file, write=not dry_run) as journal:
        if not dry_run:
            _write_session.settle_open(journal, way, quiet=True)
        groups = select(journal, wanted)
        servers = list(dict.fromkeys(group[0].server for group in groups))
        if way.url is not None and len(servers) > 1:
            raise UsageError(f"these changes are of {len(servers)} servers; --url can be only one of them")
        if not groups and not as_json:
            Printer().line("there is nothing to take back: it is taken back already" if ids else "nothing to take back")
        for name in servers:
            mine = [group for group in groups if group[0].server == name]
            task = _Task(journal, way, mine, force=force, as_json=as_json, last=last)
            done = task.plan_only() if dry_run else task.run(ask=not yes)
            status = status or (0 if done else 1)
    return status


class _Task:
    """The rollback of one server's operations."""

    def __init__(
        self,
        journal: Journal,
        way: _write_session.Way,
        groups: list[Group],
        *,
        force: bool,
        as_json: bool,
        last: int | None,
    ) -> None:
        self._journal = journal
        self._way = way
        self._groups = groups
        self._force = force
        self._as_json = as_json
        self._last = last
        self._printer = Printer()
        self._session = groups[0][0].session

    def plan_only(self) -> bool:
        """Print the whole plan; whether it has no conflict."""
        from redisfuse.transactions.rollback_plan import make_plan

        server = self._way.connect(self._journal.session(self._session), writable=False)
        try:
            plan = make_plan(self._journal, server, self._groups, force=self._force)
        finally:
            server.close()
        if self._as_json:
            for entry in plan.entries:
                print_json(_row(entry, "planned" if entry.conflict is None else "conflict"))
        else:
            self._print_plan(plan, None)
        return not plan.conflicts

    def run(self, *, ask: bool) -> bool:
        """Print the plan, ask if there is somebody to ask, do it; whether all of it was done."""
        from redisfuse.transactions.rollback import Rollback
        from redisfuse.transactions.rollback_plan import make_plan

        with _write_session.working(self._journal, self._way, self._session) as work:
            plan = make_plan(self._journal, work.server, self._groups, force=self._force)
            total = len(plan.entries)
            if not self._as_json:
                self._print_plan(plan, LISTED)
                if (
                    ask
                    and total > 1
                    and sys.stdin.isatty()
                    and not click.confirm(f"Take back {count(total, 'change')}?")
                ):
                    self._printer.line("nothing was changed")
                    return False
            rollback = Rollback(work.steps, work.name, force=self._force)
            try:
                with _progress(total) as advance:
                    rollback.run(plan.groups, progress=advance)
            except RedisFuseError:
                tell(f"{count(len(rollback.report.done), 'change')} of {total} were taken back before this happened")
                raise
            self._print_report(plan, rollback.report)
            return rollback.report.clean

    # -- showing ------------------------------------------------------------------------------------------------------

    def _print_plan(self, plan: Plan, limit: int | None) -> None:
        entries = plan.entries if limit is None else plan.entries[:limit]
        for entry in entries:
            self._printer.line(
                f"{_write_session.line_of(entry.change)}: {_action(entry)}", "red" if entry.conflict else ""
            )
            if entry.conflict is not None:
                self._print_conflict(entry.conflict)
        if len(plan.entries) > len(entries):
            self._printer.line(f"… and {count(len(plan.entries) - len(entries), 'more change')}")
            for conflict in plan.conflicts:
                if all(conflict is not entry.conflict for entry in entries):
                    self._printer.line(f"{_write_session.line_of(conflict.change)}: {_words(conflict)}", "red")
                    self._print_conflict(conflict)

    def _print_conflict(self, conflict: Conflict) -> None:
        self._printer.line(f"    expected  {_write_session.shown(conflict.change.new)}", "green")
        self._printer.line(f"    found     {_write_session.shown(conflict.found.state)}", "red")
        if conflict.later:
            ids = ", ".join(str(change.id) for change in conflict.later)
            self._printer.line(f"    changed since by {ids}; to take back all of it: {conflict.together}")

    def _print_report(self, plan: Plan, report: Report) -> None:
        if self._as_json:
            results: dict[int, tuple[str, str | None]] = {change.id: ("done", None) for change in report.done}
            results |= {reversal.change.id: ("nothing", None) for reversal in report.nothing}
            results |= {change.id: ("failed", str(error)) for change, error in report.failures}
            conflicts = {conflict.change.id: conflict for conflict in report.conflicts}
            for entry in plan.entries:
                result, error = results.get(entry.change.id, ("conflict" if conflicts else "left", None))
                print_json(_row(entry, result, conflicts.get(entry.change.id), error))
            return
        planned = {conflict.change.id for conflict in plan.conflicts}
        for conflict in report.conflicts:
            if conflict.change.id not in planned:
                self._printer.line(f"{_write_session.line_of(conflict.change)}: {_words(conflict)}", "red")
                self._print_conflict(conflict)
        for change, failure in report.failures:
            self._printer.line(
                f"{_write_session.line_of(change)}: not taken back: {escape_text(str(failure).encode())}", "red"
            )
        for change, note in report.notes:
            self._printer.line(f"{_write_session.line_of(change)}: {escape_text(note.encode())}", "yellow")
        self._printer.line(f"{count(len(report.done), 'change')} taken back{_rest(plan, report)}")
        if self._last is not None and len(report.nothing) == len(plan.entries):
            self._printer.line(f"to go further back: redisfuse rollback --last {self._last + 1}")


def _rest(plan: Plan, report: Report) -> str:
    parts = []
    if report.nothing:
        parts.append(f"{len(report.nothing)} needed nothing")
    if report.conflicts:
        left = len(plan.entries) - len(report.done) - len(report.nothing) - len(report.failures)
        parts.append(f"{left} left because of conflicts (--force overwrites)")
    if report.failures:
        parts.append(f"{len(report.failures)} failed")
    return "".join(f", {part}" for part in parts)


def _action(entry: Planned) -> str:
    """What would be done, in words."""
    change, reversal = entry.change, entry.reversal
    if entry.conflict is not None:
        return _words(entry.conflict)
    if change.prior.kind == "directory":
        return "make the empty directory again"
    if change.new.kind == "directory":
        return "forget the empty directory"
    if reversal is None:
        return f"back to {_journal_options.described(change.prior)}, if the changes above leave what this one left"
    note = f" ({escape_text(reversal.note.encode())})" if reversal.note else ""
    if reversal.nothing:
        return f"nothing to do{note}"
    if reversal.wanted.kind == "absent":
        return f"remove{note}"
    if change.op == "expire":
        at = reversal.wanted.expires_at if change.field is None else reversal.wanted.field_expires_at
        return f"{'never to expire' if at is None else f'to expire at {local_time(at)}'}{note}"
    return f"back to {_journal_options.described(reversal.wanted)}{note}"


def _words(conflict: Conflict) -> str:
    return f"conflict: {escape_text(conflict.why.encode())}"


def _row(entry: Planned, result: str, conflict: Conflict | None = None, error: str | None = None) -> dict[str, Any]:
    conflict = conflict or entry.conflict
    return {
        **_journal_options.row_of(entry.change),
        "result": result,
        "action": _action(entry),
        "conflict": None if conflict is None else conflict.why,
        "found": None if conflict is None else _journal_options.described(conflict.found.state),
        "together": None if conflict is None else conflict.together,
        "failure": error,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal and there is much to do."""
    if total <= PROGRESS or not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("taking back", total=total)
        yield lambda number: progress.advance(task, number)

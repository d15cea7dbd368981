"""Roll changes back: restore the earlier values, newest change first."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._interrupts import INTERRUPTED_STATUS
from redisfuse.cli._journal_options import (
    FILTER_NAMES,
    change_words,
    filter_options,
    journal_option,
    open_journal,
)
from redisfuse.cli._output import LinePrinter, ProgressBar, format_count, json_option, progress_bar
from redisfuse.cli._params import ROW_COUNT
from redisfuse.cli._rollback_output import RollbackPrinter
from redisfuse.cli._terminal import print_err
from redisfuse.cli._write_session import (
    connector_options,
    create_connector,
    report_server_changes,
    resolve_pending,
    write_session,
)
from redisfuse.errors import RedisFuseError, UsageError
from redisfuse.journal.filter_options import build_change_filter

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.journal import Journal
    from redisfuse.transactions.combined_change import ChangeGroup
    from redisfuse.transactions.rollback import Rollback
    from redisfuse.transactions.selection import SelectedChanges
    from redisfuse.transactions.write_session import ServerConnector


@click.command
@change_words
@click.option(
    "--last",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="The newest operation that is not rolled back, or the newest N.",
)
@filter_options
@click.option("--limit", type=ROW_COUNT, metavar="N", help="Only the newest N changes.")
@click.option("-i", "--interactive", is_flag=True, help="Ask for each key, and for each place of a text that differs.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option("-v", "--verbose", is_flag=True, help="List each change of the plan, not only a summary.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--force", is_flag=True, help="Write over later changes (journaled, too), and to another server.")
@json_option
@connector_options
@journal_option
@click.pass_context
def command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    last: int | None,
    interactive: bool,
    dry_run: bool,
    verbose: bool,
    yes: bool,
    force: bool,
    as_json: bool,
    journal_file: Path | None,
    **options: Any,
) -> int:
    """Roll changes back: restore the earlier values, newest change first.

    \b
    redisfuse rollback --last                    the newest operation, such as a whole rm -r
    redisfuse rollback 10012+ --path cart        what operation 10012 changed below cart
    redisfuse rollback --session 7 --dry-run     how much one mount changed
    redisfuse rollback -i template/welcome.html  choose among the changes of one file

    A change selects its whole group (a rename has two changes). Many changes of one key are taken back at once: from
    what it holds to what it held before. A key that has changed since is a conflict: it is not rolled back, and the
    exit status is 1. A rollback is journaled and can be rolled back. Changes that are rolled back already are skipped,
    so the same command finishes a rollback that Ctrl-C or an error ended.
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.transactions.selection import select_changes

    if interactive and (as_json or dry_run or not sys.stdin.isatty()):
        raise UsageError("--interactive needs a terminal, and neither --json nor --dry-run")
    connector = create_connector(context)
    filters = {name: options[name] for name in ("limit", *FILTER_NAMES)}
    status = 0
    with open_journal(journal_file, write=not dry_run) as journal:
        change_filter = build_change_filter(journal, words, **filters)
        if not dry_run:
            resolve_pending(journal, connector, quiet=True)
        with progress_bar("selecting changes") as bar:
            selected = select_changes(journal, change_filter, last=last, progress=bar.advance)
        servers = selected.groups.server_names
        if connector.url is not None and len(servers) > 1:
            raise UsageError(f"these changes belong to {len(servers)} servers; --url can name only one of them")
        if not servers and not as_json:
            LinePrinter().print(f"nothing to roll back{': already rolled back' if change_filter.has_ids else ''}")
        for name in servers:
            mine = selected.of_server(name)
            printer = RollbackPrinter(mine.groups.repeated_keys, as_json=as_json, verbose=verbose)
            rollback = _RollbackCommand(journal, connector, name, mine, printer, force=force, last_count=last)
            if dry_run:
                done = rollback.dry_run()
            elif interactive:
                done = rollback.run_interactively()
            else:
                done = rollback.run(ask_first=not yes, as_json=as_json)
            if rollback.is_interrupted:
                return INTERRUPTED_STATUS
            status = status or (0 if done else 1)
    return status


class _RollbackCommand:
    """The rollback of one server's operations."""

    def __init__(
        self,
        journal: Journal,
        connector: ServerConnector,
        server_name: str,
        selected: SelectedChanges,
        printer: RollbackPrinter,
        *,
        force: bool,
        last_count: int | None,
    ) -> None:
        self._journal = journal
        self._connector = connector
        self._groups = selected.groups
        self._selected_ids = selected.ids
        self._origins = selected.origins[server_name]
        self._printer = printer
        self._force = force
        self._last_count = last_count
        self.is_interrupted = False  # by Ctrl-C

    def dry_run(self) -> bool:
        """Print the plan; return whether it has no conflict."""
        newest_session = max(origin.session_id for origin in self._origins)
        server = self._connector.connect(self._journal.get_session(newest_session), writable=False)
        try:
            report_server_changes(self._journal, server, self._origins)
            self._plan(server, is_dry_run=True)
        finally:
            server.close()
        return not self._printer.has_conflicts

    def run(self, *, ask_first: bool, as_json: bool) -> bool:
        """Print the plan, ask for confirmation on a terminal, and execute it.

        Returns whether all of it was done.
        """
        from redisfuse.transactions.rollback import Rollback

        with write_session(self._journal, self._connector, self._origins, force=self._force, ask=ask_first) as session:
            total = self._groups.change_count
            if not as_json:
                self._plan(session.server)
            asks = not as_json and ask_first and total > 1 and sys.stdin.isatty()
            if asks and not click.confirm(f"Roll back {format_count(total, 'change')}?"):
                self._printer.print_line("nothing was changed")
                return False
            rollback = Rollback(session.executor, session.server_name, force=self._force)
            self._execute(rollback, self._groups, total)
            self._printer.print_result(total, remaining=rollback.remaining)
            if self._last_count is not None and not as_json and self._printer.was_nothing_to_do:
                self._printer.print_line(f"to roll back further: redisfuse rollback --last {self._last_count + 1}")
            return self._printer.is_clean and not self.is_interrupted

    def run_interactively(self) -> bool:
        """Ask for each group and each place of a text.

        Returns whether all that was chosen was done.
        """
        from redisfuse.cli._rollback_interactive import InteractiveChoice
        from redisfuse.transactions.rollback import Rollback

        choice = InteractiveChoice(self._journal, self._groups)
        choice.ask()
        if choice.is_empty:
            self._printer.print_line("nothing was changed")
            return True
        with write_session(self._journal, self._connector, self._origins, force=self._force) as session:
            rollback = Rollback(session.executor, session.server_name, force=self._force)
            self._execute(rollback, choice.groups, choice.count)
            places = choice.write_places(session.executor)
            self._printer.print_result(choice.count - len(choice.places), remaining=rollback.remaining)
            if choice.places:
                self._printer.print_line(f"{format_count(places, 'file')} restored in part")
            return self._printer.is_clean and not self.is_interrupted and places == len(choice.places)

    def _plan(self, server: RedisClient, *, is_dry_run: bool = False) -> None:
        """Read the keys, and print the plan."""
        from redisfuse.transactions.rollback_plan import iter_plan

        with self._progress_bar("reading the keys") as bar:
            for entry in iter_plan(
                self._journal,
                server,
                self._groups,
                self._selected_ids,
                force=self._force,
                repeated_keys=self._groups.repeated_keys,
                progress=bar.advance,
            ):
                self._printer.add_planned(entry, is_dry_run=is_dry_run)
        self._printer.print_plan()

    def _execute(self, rollback: Rollback, groups: Iterable[ChangeGroup], total: int) -> None:
        """Roll groups back with a progress bar; Ctrl-C ends it after the current batch."""
        try:
            with self._progress_bar("rolling back", total) as bar, _stopping(rollback):
                report = rollback.run(
                    groups, self._selected_ids, progress=bar.advance, consume=self._printer.add_report
                )
        except RedisFuseError:
            self._printer.add_report(rollback.report)
            print_err(
                f"{format_count(self._printer.reverted_count, 'change')} of {total:,} were rolled back before this "
                f"error; the same command continues"
            )
            raise
        except (KeyboardInterrupt, click.exceptions.Exit):  # Ctrl-C twice
            self._printer.add_report(rollback.report)
            print_err(
                f"interrupted within a batch, after {format_count(self._printer.reverted_count, 'change')} of "
                f"{total:,}; the same command finds out what it did, and continues"
            )
            raise
        self.is_interrupted = report.is_interrupted

    def _progress_bar(self, title: str, total: int | None = None) -> AbstractContextManager[ProgressBar]:
        if self._printer.prints_lines_at_once:
            return contextlib.nullcontext(ProgressBar())
        return progress_bar(title, self._groups.change_count if total is None else total)


@contextlib.contextmanager
def _stopping(rollback: Rollback) -> Iterator[None]:
    """Let Ctrl-C stop a rollback after its current batch while the body runs.

    A second one interrupts it.
    """

    def stop(_number: int, _frame: Any) -> None:
        rollback.stop()
        signal.signal(signal.SIGINT, previous)

    try:
        previous = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

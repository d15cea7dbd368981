"""Printing the plan and the report of a rollback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Any

from redisfuse.cli._changes import change_to_json
from redisfuse.cli._output import LinePrinter, escape_text, format_count, print_json
from redisfuse.cli._plan_summary import MAX_LISTED_CHANGES, MAX_LISTED_CONFLICTS, PlanSummary
from redisfuse.journal.descriptions import describe_state, format_state
from redisfuse.transactions.combined_change import CombinedChange, count_changes
from redisfuse.transactions.plan_descriptions import describe_action, format_conflict, format_planned_change

if TYPE_CHECKING:
    from redisfuse.journal.models import Change
    from redisfuse.transactions.combined_change import ChangeGroup
    from redisfuse.transactions.inverse import Inverse
    from redisfuse.transactions.rollback import RollbackReport
    from redisfuse.transactions.rollback_plan import PlannedChange, RollbackConflict

MAX_LISTED_FOLDERS = 20  # rows of the summary


class RollbackPrinter:
    """Prints the plan and the report of one server's rollback.

    As text or as JSON lines, in bounded memory.
    `repeated_keys`: the keys, with their servers, that several of the changes may be of.
    """

    def __init__(self, repeated_keys: Set[tuple[str, bytes]], *, as_json: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._verbose = verbose
        self._printer = LinePrinter()
        self._plan = PlanSummary(repeated_keys)
        self._report_lines: list[tuple[str, str]] = []  # printed at the end: a progress bar may be on the terminal
        self._conflicts = self._new_conflicts = 0  # of the reports, and those of them that the plan did not have
        self._done = self._unchanged = self._unchanged_entries = self._failed = 0
        self._notes = 0

    @property
    def prints_lines_at_once(self) -> bool:
        """Whether lines are printed during the work, where a progress bar would be."""
        return self._as_json or self._verbose

    @property
    def has_conflicts(self) -> bool:
        """Whether the plan has conflicts."""
        return self._plan.conflict_count > 0

    @property
    def is_clean(self) -> bool:
        """Whether every change of the reports was reverted, or needed nothing."""
        return not self._conflicts and not self._failed

    @property
    def was_nothing_to_do(self) -> bool:
        """Whether every target held its prior state already."""
        return self._unchanged_entries == self._plan.entry_count

    @property
    def reverted_count(self) -> int:
        """The number of changes that were reverted."""
        return self._done

    def print_line(self, text: str, style: str = "") -> None:
        """Print a line, which is printable."""
        if not self._as_json:
            self._printer.print(text, style)

    # -- the plan -----------------------------------------------------------------------------------------------------

    def add_planned(self, entry: PlannedChange, *, is_dry_run: bool = False) -> None:
        """Add an entry of the plan; with --verbose or --json it is printed."""
        self._plan.add(entry)
        if self._as_json and is_dry_run:
            print_json(_entry_to_json(entry, "planned" if entry.conflict is None else "conflict"))
        elif self._verbose and not self._as_json:
            self._print_entry(entry)

    def print_plan(self) -> None:
        """Print each change of a short plan, or a summary by folder and operation."""
        plan = self._plan
        if self.prints_lines_at_once:
            return
        if plan.entry_count <= MAX_LISTED_CHANGES:
            for entry in plan.first_entries:
                self._print_entry(entry)
            return
        total = format_count(plan.change_count, "change")
        self._printer.print(f"{total} of {format_count(plan.target_count, 'key')}:", "bold")
        rows, left_out = plan.folders.build_rows(MAX_LISTED_FOLDERS)
        for row in rows:
            note = f"  ({row.changes:,} changes)" if row.changes != row.entries else ""
            style = "red" if row.action == "conflict" else ""
            self._printer.print(f"  {row.entries:>9,}  {row.action:<9}  {escape_text(row.folder)}{note}", style)
        if left_out:
            self._printer.print(f"  … and {format_count(left_out, 'more folder')}")
        self._print_lines(line for conflict in plan.first_conflicts for line in _format_conflict_lines(conflict))
        if plan.conflict_count > len(plan.first_conflicts):
            more = format_count(plan.conflict_count - len(plan.first_conflicts), "more conflict")
            self._printer.print(f"… and {more}; --dry-run --verbose lists all", "red")

    def _print_entry(self, entry: PlannedChange) -> None:
        self._printer.print(
            f"{format_planned_change(entry.change)}: {describe_action(entry)}", "red" if entry.conflict else ""
        )
        if entry.conflict is not None:
            self._print_lines(_format_details(entry.conflict))

    def _print_lines(self, lines: Iterable[tuple[str, str]]) -> None:
        for text, style in lines:
            self._printer.print(text, style)

    # -- the report ---------------------------------------------------------------------------------------------------

    def add_report(self, report: RollbackReport) -> None:
        """Add what a batch did.

        JSON is printed at once, other lines at the end, and only some of each kind.
        """
        self._done += count_changes(report.reverted)
        self._unchanged += count_changes(inverse.change for inverse in report.unchanged)
        self._unchanged_entries += len(report.unchanged)
        self._conflicts += len(report.conflicts)
        if self._as_json:
            self._failed += count_changes(change for change, _ in report.failures)
            _print_report_json(report)
            return
        for conflict in report.conflicts:
            if conflict.change.id not in self._plan.conflict_ids:
                self._new_conflicts += 1
                if self._new_conflicts <= MAX_LISTED_CONFLICTS:
                    self._report_lines += _format_conflict_lines(conflict)
        for change, failure in report.failures:
            self._failed += count_changes([change])
            if self._failed <= MAX_LISTED_CONFLICTS:
                text = escape_text(str(failure).encode())
                self._report_lines.append((f"{format_planned_change(change)}: not rolled back: {text}", "red"))
        for change, note in report.notes:
            self._notes += 1
            if self._notes <= MAX_LISTED_CONFLICTS:
                self._report_lines.append((f"{format_planned_change(change)}: {escape_text(note.encode())}", "yellow"))

    def print_result(self, total: int, *, remaining: Iterable[Sequence[ChangeGroup]] = ()) -> None:
        """Print how many of the changes were reverted.

        `remaining`: those that Ctrl-C left.
        """
        if self._as_json:
            for batch in remaining:
                for change in (change for group in batch for change in group):
                    print_json(_build_json(change, None, "left"))
            return
        self._print_lines(self._report_lines)
        if self._notes > MAX_LISTED_CONFLICTS:
            self._printer.print(f"… and {format_count(self._notes - MAX_LISTED_CONFLICTS, 'more note')}", "yellow")
        if self._new_conflicts > MAX_LISTED_CONFLICTS:
            more = format_count(self._new_conflicts - MAX_LISTED_CONFLICTS, "more conflict")
            self._printer.print(f"… and {more}; --dry-run --verbose lists all", "red")
        rest = total - self._done - self._unchanged - self._failed
        parts = [f"{format_count(self._done, 'change')} rolled back"]
        if self._unchanged:
            parts.append(f"{self._unchanged:,} needed no change")
        if remaining:
            parts.append(f"{rest:,} left; the same command continues")
        elif self._conflicts:
            parts.append(f"{rest:,} skipped because of conflicts (--force overwrites)")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        self._printer.print(", ".join(parts))


def _format_conflict_lines(conflict: RollbackConflict) -> list[tuple[str, str]]:
    """Return the lines about a conflict, with their styles."""
    title = f"{format_planned_change(conflict.change)}: {format_conflict(conflict)}"
    return [(title, "red"), *_format_details(conflict)]


def _format_details(conflict: RollbackConflict) -> list[tuple[str, str]]:
    lines = [
        (f"    expected  {format_state(conflict.change.new)}", "green"),
        (f"    found     {format_state(conflict.current.state)}", "red"),
    ]
    if conflict.later_changes:
        ids = ", ".join(str(change.id) for change in conflict.later_changes)
        lines.append((f"    changed since by {ids}; to roll back all of them: {conflict.combined_command}", ""))
    return lines


def _print_report_json(report: RollbackReport) -> None:
    for change in report.reverted:
        print_json(_build_json(change, report.inverses.get(change.id), "done"))
    for inverse in report.unchanged:
        print_json(_build_json(inverse.change, inverse, "nothing"))
    for change, error in report.failures:
        print_json(_build_json(change, report.inverses.get(change.id), "failed", error=str(error)))
    for conflict in report.conflicts:
        print_json(_build_json(conflict.change, None, "conflict", conflict=conflict))
    for change in report.skipped:
        print_json(_build_json(change, None, "conflict"))


def _build_json(
    change: Change,
    inverse: Inverse | None,
    result: str,
    *,
    conflict: RollbackConflict | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    from redisfuse.transactions.rollback_plan import PlannedChange

    return _entry_to_json(PlannedChange(change, inverse, conflict), result, error)


def _entry_to_json(entry: PlannedChange, result: str, error: str | None = None) -> dict[str, Any]:
    change, conflict = entry.change, entry.conflict
    return {
        **change_to_json(change),
        "first": change.first_id if isinstance(change, CombinedChange) else change.id,
        "changes": count_changes([change]),
        "result": result,
        "action": describe_action(entry),
        "conflict": None if conflict is None else conflict.reason,
        "found": None if conflict is None else describe_state(conflict.current.state),
        "together": None if conflict is None else conflict.combined_command,
        "failure": error,
    }

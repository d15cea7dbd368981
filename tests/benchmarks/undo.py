"""Undo: a rollback of a session beside a bare loop of the same commands, and commands on a long journal."""

from __future__ import annotations

from functools import partial

from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.transactions.rollback_plan import plan_rollback
from redisfuse.transactions.selection import select_changes
from tests.benchmarks.baseline import BenchmarkRun, measure_seconds
from tests.benchmarks.bench_journal import MAX_EXTRA_SECONDS, fill_journal, first_byte_seconds
from tests.benchmarks.bench_rollback import make_changes, measure_bare_sets
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_rate, format_seconds, format_size
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    return [_measure_rollbacks(bench), _measure_long_journal(bench)]


def _measure_rollbacks(bench: BenchmarkRun) -> ResultTable:
    changes = bench.sizes.rolled_back_changes
    table = ResultTable(
        f"Undo: rolling back a session of {format_number(changes)} small changes",
        ("work", "redisfuse", "direct", "ratio", "selected in", "planned in", "rolled back in", "goal"),
        notes=[
            "direct: a bare redis-py loop of the rollback's SETs: nothing journaled or checked.",
            "redisfuse: selecting, planning (which reads every key) and rolling back, each change journaled itself.",
        ],
    )
    for keys in (changes, max(1, changes // 100)):
        with RedisServer() as server:
            edit_bench = EditBench.create(bench.new_folder() / "state", server)
            try:
                make_changes(edit_bench, changes, keys=keys)
                direct = measure_bare_sets(edit_bench, changes, keys)
                selection = ChangeFilter(session_id=edit_bench.session)
                selecting = measure_seconds(lambda: select_changes(edit_bench.journal, selection))  # noqa: B023
                groups = select_changes(edit_bench.journal, selection)
                planning = measure_seconds(
                    partial(plan_rollback, edit_bench.journal, edit_bench.server, groups.groups, groups.ids)
                )
                plan = plan_rollback(edit_bench.journal, edit_bench.server, groups.groups, groups.ids)
                rolling = measure_seconds(lambda: edit_bench.create_rollback().run(plan.groups, groups.ids))  # noqa: B023
                assert edit_bench.redis.get("key:0") == b"before"
            finally:
                edit_bench.close()
        took = selecting + planning + rolling
        table.add_row(
            f"{format_number(changes)} changes of {format_number(keys)} keys",
            format_rate(changes / took),
            format_rate(changes / direct),
            f"{took / direct:.1f}x",
            format_seconds(selecting),
            format_seconds(planning),
            format_seconds(rolling),
            format_goal("≥ 1 000/s", changes / took >= 1000),
        )
    return table


def _measure_long_journal(bench: BenchmarkRun) -> ResultTable:
    rows = bench.sizes.journal_rows
    table = ResultTable(
        f"Undo: commands on a journal of {format_number(rows)} changes",
        ("command", "first answer", "beyond --version", "goal"),
        notes=["The median of 5; the goal of issue 5 is at 1 000 000 changes (--large)."],
    )
    path = bench.new_folder() / "journal.db"
    path.parent.chmod(0o700)
    with Journal.open(path, create=True) as journal:
        took = measure_seconds(lambda: fill_journal(journal, rows))
    table.notes.append(
        f"Filled at {format_rate(rows / took, 'changes')}; {format_size(path.stat().st_size / rows)} a change."
    )
    base = first_byte_seconds([], path)
    table.add_row("`redisfuse --version`", format_seconds(base))
    middle, path_of_one = str(rows // 2), "service/0/user/77"
    for words in (
        ["log"],
        ["log", "--session", "3"],
        ["log", "--key", "service:3:user:77*", "--limit", "20"],
        ["log", "--since", "1h", "--limit", "20"],
        ["log", "--state", "failed", "--limit", "20"],
        ["log", path_of_one],
        ["show", middle],
        ["diff", middle],
        ["diff", path_of_one],
        ["diff", "--session", "3"],
        ["diff", "--key", "service:3:*"],
        ["diff", f"{middle}.."],
        ["log", "-p", "--session", "3"],
        ["log", "--stat", "--session", "3"],
        ["blame", path_of_one],
        ["sessions"],
    ):
        extra = first_byte_seconds(words, path) - base
        table.add_row(
            f"`redisfuse {' '.join(words)}`",
            format_seconds(base + extra),
            format_seconds(max(0.0, extra)),
            format_goal("< 0.3 s", extra < MAX_EXTRA_SECONDS),
        )
    return table

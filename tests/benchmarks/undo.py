"""Undo: rolling a session back beside a bare loop of the same commands, and what a long journal costs its readers."""

from __future__ import annotations

from redisfuse.journal.journal import Journal
from redisfuse.transactions.rollback_plan import make_plan
from redisfuse.transactions.selection import Selection, select
from tests.benchmarks.baseline import Run, clock
from tests.benchmarks.bench_journal import LIMIT, answer_time, fill
from tests.benchmarks.bench_rollback import bare_loop, make_changes
from tests.benchmarks.report import Table, count, goal, rate, seconds, size
from tests.support.edit_bench import Bench
from tests.support.redis_server import RedisServer


def measure(bench: Run) -> list[Table]:
    """All of it."""
    return [_rollbacks(bench), _long_journal(bench)]


def _rollbacks(bench: Run) -> Table:
    changes = bench.sizes.rolled_back
    table = Table(
        f"Undo: rolling back a session of {count(changes)} small changes",
        ("work", "redisfuse", "direct", "ratio", "selected in", "planned in", "rolled back in", "goal"),
        notes=[
            "direct: a bare redis-py loop of the SETs that the rollback comes down to: nothing journaled or checked.",
            "redisfuse: selecting, planning (which reads every key) and rolling back, each change journaled itself.",
        ],
    )
    for keys in (changes, max(1, changes // 100)):
        with RedisServer() as server:
            ground = Bench.of(bench.new_folder() / "state", server)
            try:
                make_changes(ground, changes, keys=keys)
                direct = bare_loop(ground, changes, keys)
                selecting = clock(lambda: select(ground.journal, Selection(session=ground.session)))  # noqa: B023
                groups = select(ground.journal, Selection(session=ground.session))
                planning = clock(lambda: make_plan(ground.journal, ground.server, groups))  # noqa: B023
                plan = make_plan(ground.journal, ground.server, groups)
                rolling = clock(lambda: ground.rollback().run(plan.groups))  # noqa: B023
                assert ground.redis.get("key:0") == b"before"
            finally:
                ground.close()
        took = selecting + planning + rolling
        table.add(
            f"{count(changes)} changes of {count(keys)} keys",
            rate(changes / took),
            rate(changes / direct),
            f"{took / direct:.1f}x",
            seconds(selecting),
            seconds(planning),
            seconds(rolling),
            goal("≥ 1 000/s", changes / took >= 1000),
        )
    return table


def _long_journal(bench: Run) -> Table:
    rows = bench.sizes.journal
    table = Table(
        f"Undo: commands on a journal of {count(rows)} changes",
        ("command", "first answer", "beyond --version", "goal"),
        notes=["The median of 5; the goal of issue 5 is at 1 000 000 changes (--large)."],
    )
    path = bench.new_folder() / "journal.db"
    path.parent.chmod(0o700)
    with Journal.open(path, create=True) as journal:
        took = clock(lambda: fill(journal, rows))
    table.notes.append(f"Filled at {rate(rows / took, 'changes')}; {size(path.stat().st_size / rows)} a change.")
    base = answer_time([], path)
    table.add("`redisfuse --version`", seconds(base))
    middle = str(rows // 2)
    for words in (
        ["log"],
        ["log", "--session", "3"],
        ["log", "--key", "service:3:user:77*", "--limit", "20"],
        ["log", "--since", "1h", "--limit", "20"],
        ["log", "--state", "failed", "--limit", "20"],
        ["show", middle],
        ["diff", middle],
        ["sessions"],
    ):
        extra = answer_time(words, path) - base
        table.add(
            f"`redisfuse {' '.join(words)}`",
            seconds(base + extra),
            seconds(max(0.0, extra)),
            goal("< 0.3 s", extra < LIMIT),
        )
    return table

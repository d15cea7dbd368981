"""The first row of a command costs the same in a short journal and in a long one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from redisfuse.cli.main import group
from redisfuse.journal import database
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.change_search import MAX_SCANNED_ROWS
from redisfuse.journal.journal import Journal
from redisfuse.transactions.selection import select_changes
from tests.support.journals import INFO, add, intent
from tests.support.mounts import isolated_environment

SHORT = 8000  # changes; more than are scanned before an index is used
LONG = 40_000
COPIED = 400  # of which the others are copies, of other keys
STEPS_PER_CALL = 100  # of SQLite's virtual machine

COMMANDS = (
    *("diff 500..", "diff ..7000 --op write", "diff --key a:*", "diff --path a", "diff --session 1", "diff --since 1d"),
    *("diff --until now", "diff --by USER", "diff --state applied", "diff --stat 500..", "diff --stat --key a:*"),
    *("diff 500.. --json", "diff --word --path a", "diff a/7", "export 500..", "export --key a:*"),
    *("export --patch 500..", "export --patch --path a", "log", "log --key a:*", "log --keys", "log --keys 500.."),
    *("log --path a --limit 20", "log --session 1", "log --since 1d", "log --until now", "log --by USER", "log -p"),
    *("log --stat", "log -p --key a:*", "log --stat --path a", "log a/7", "blame a/7", "show 700"),
)


class _EnoughError(Exception):
    """Ends a command at its first output."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of one number: the steps of SQLite's virtual machine so far."""
    count = [0]
    connect = database.connect

    def advance() -> None:
        count[0] += STEPS_PER_CALL

    def counting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_progress_handler(advance, STEPS_PER_CALL)
        return connection

    monkeypatch.setattr(database, "connect", counting)
    return count


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a short journal, and return its path."""
    path = tmp_path / "state" / "journal.db"
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        for number in range(COPIED):
            add(journal, session, intent(b"a:%d" % number, b"text %d\n" % number))
    return path


def lengthen(path: Path, start: int, end: int) -> None:
    """Copy the first changes until there are `end`; each copy is of other keys."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(changes)")]
        copied = {
            **{name: f"{name} + :shift" for name in ("id", "group_id", "operation")},
            **{name: f"CAST({name} || '-' || :shift AS BLOB)" for name in ('"key"', "path")},
        }
        names = [f'"{name}"' if name == "key" else name for name in columns]
        sql = (
            f"INSERT INTO changes ({', '.join(names)}) SELECT {', '.join(copied.get(name, name) for name in names)} "
            f"FROM changes WHERE id <= {COPIED}"
        )
        for shift in range(start, end, COPIED):
            connection.execute(sql, {"shift": shift})
        connection.commit()


def measure(steps: list[int], work: Callable[[], object]) -> int:
    """Return the steps of some work."""
    before = steps[0]
    work()
    return steps[0] - before


def iter_measured(steps: list[int], path: Path) -> Iterator[tuple[str, int]]:
    """Yield each command with the steps until its first output."""
    environment = {**isolated_environment(path.parent), "REDISFUSE_JOURNAL_FILE": str(path)}

    def run(command: str) -> None:
        words = command.replace("USER", INFO.user).split()
        result = CliRunner().invoke(group, words, env=environment)
        assert isinstance(result.exception, _EnoughError), (command, result.output, result.exception)

    for command in COMMANDS:
        yield command, measure(steps, lambda command=command: run(command))  # type: ignore[misc]
    with Journal.open(path) as journal:
        for change_filter in (ChangeFilter(session_id=1, limit=20), ChangeFilter(key_glob=b"a:*", limit=20)):
            name = f"rollback --dry-run {change_filter}"
            yield name, measure(steps, lambda chosen=change_filter: select_changes(journal, chosen))  # type: ignore[misc]


def test_the_first_row_costs_the_same(path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times as many changes don't double the steps of SQLite until the first line is printed."""

    def end(*_arguments: object, **_options: object) -> None:
        raise _EnoughError

    assert SHORT > MAX_SCANNED_ROWS
    lengthen(path, COPIED, SHORT)
    monkeypatch.setattr(click, "echo", end)
    short = dict(iter_measured(steps, path))
    lengthen(path, SHORT, LONG)
    long = dict(iter_measured(steps, path))
    grown = {
        name: (short[name], count) for name, count in long.items() if count > 2 * short[name] + 10 * STEPS_PER_CALL
    }
    assert not grown
    assert sum(long.values()) > 0

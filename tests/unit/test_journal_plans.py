"""No query scans the whole journal: the plan of each one uses an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redisfuse.journal.change_filter import ChangeFilter, IdRange
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ServerFingerprint
from tests.support.journals import INFO, SERVER, add, intent

QUERIES: dict[str, Callable[[Journal], object]] = {
    "all": lambda journal: list(journal.find_changes()),
    "newest": lambda journal: list(journal.find_changes(ChangeFilter(limit=5))),
    "session": lambda journal: list(journal.find_changes(ChangeFilter(session_id=1))),
    "session, oldest first": lambda journal: list(journal.find_changes(ChangeFilter(session_id=1, oldest_first=True))),
    "key": lambda journal: list(journal.find_changes(ChangeFilter(key_glob=b"a:1"))),
    "keys with a prefix": lambda journal: list(journal.find_changes(ChangeFilter(key_glob=b"a:*"))),
    "keys with a prefix, oldest first": lambda journal: list(
        journal.find_changes(ChangeFilter(key_glob=b"a:*", oldest_first=True))
    ),
    "oldest of a user since": lambda journal: list(
        journal.find_changes(ChangeFilter(user=INFO.user, since=5, oldest_first=True))
    ),
    "net changes": lambda journal: list(journal.find_net_changes(ChangeFilter(key_glob=b"a:*", outcomes=("applied",)))),
    "net changes of a path": lambda journal: list(journal.find_net_changes(ChangeFilter(path=b"a", limit=9))),
    "keys of a session": lambda journal: list(journal.find_changes(ChangeFilter(key_glob=b"a:*", session_id=1))),
    "path": lambda journal: list(journal.find_changes(ChangeFilter(path=b"a/1"))),
    "since": lambda journal: list(journal.find_changes(ChangeFilter(since=5))),
    "until": lambda journal: list(journal.find_changes(ChangeFilter(until=5))),
    "state": lambda journal: list(journal.find_changes(ChangeFilter(outcomes=("failed",)))),
    "states": lambda journal: list(journal.find_changes(ChangeFilter(outcomes=("failed", "unknown")))),
    "applied": lambda journal: list(journal.find_changes(ChangeFilter(outcomes=("applied",), limit=5))),
    "op": lambda journal: list(journal.find_changes(ChangeFilter(ops=("rename",)))),
    "ids": lambda journal: list(journal.find_changes(ChangeFilter(id_ranges=(IdRange(3, 9),), ops=("write",)))),
    "one operation": lambda journal: list(journal.find_changes(ChangeFilter(operation_ids=(7,), key_glob=b"a:*"))),
    "key history": lambda journal: list(
        journal.find_changes(ChangeFilter(key_spans=journal.find_key_history(b"a/1"), session_id=1))
    ),
    "operations": lambda journal: list(journal.find_operations()),
    "operations of a path": lambda journal: list(journal.find_operations(ChangeFilter(path=b"a"))),
    "operations of a user": lambda journal: list(journal.find_operations(ChangeFilter(user=INFO.user, since=5))),
    "reverted": lambda journal: journal.create_reversal_index().find_reverted(range(1, 20)),
    "one": lambda journal: journal.get_change(7),
    "group": lambda journal: journal.get_group(7),
    "pending": lambda journal: journal.find_pending_changes(SERVER.name),
    "later": lambda journal: journal.find_later_changes(journal.get_change(7)),
    "reverted by": lambda journal: journal.find_reverting_ids(7),
    "sessions": lambda journal: list(journal.iter_sessions()),
    "content": lambda journal: [change.new.content.read() for change in journal.find_changes() if change.new.content],
    "fingerprint": lambda journal: journal.get_fingerprint(1),
    "changed keys": lambda journal: journal.find_changed_keys(SERVER.name, [b"a:1", b"b"], 5),
    "recognized run": lambda journal: journal.is_recognized_run("a", "b"),
    "newest session": lambda journal: journal.get_newest_session(SERVER.name),
    "changes since": lambda journal: journal.count_changes(SERVER.name, 5),
    "directories": lambda journal: journal.list_directories(SERVER.name),
}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    path: Path = tmp_path_factory.mktemp("plans") / "state" / "journal.db"
    with Journal.open(path, create=True) as opened:
        fingerprint = ServerFingerprint("id", 50, {b"a:1": bytes(32)})
        session = opened.begin_session(replace(INFO, fingerprint=fingerprint))
        for number in range(50):
            add(opened, session, intent(b"a:%d" % number), state="failed" if number == 9 else "applied")
        yield opened


@pytest.mark.parametrize("name", QUERIES)
def test_plans(journal: Journal, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query uses an index or a primary key, and sorts only ids."""
    executed: list[tuple[str, tuple[Any, ...]]] = []
    query = journal.reader.query

    def recording(sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        executed.append((sql, values))
        return query(sql, values)

    monkeypatch.setattr(journal.reader, "query", recording)
    monkeypatch.setattr("redisfuse.journal.change_search.MAX_SCANNED_ROWS", 3)
    QUERIES[name](journal)
    assert executed
    for sql, values in executed:
        for *_, step in query(f"EXPLAIN QUERY PLAN {sql}", values):
            is_allowed = step in ("SCAN sessions", "SCAN CONSTANT ROW", "SCAN runs") or "VIRTUAL TABLE" in step
            assert not step.startswith("SCAN") or is_allowed, f"{sql}\n{step}"
            is_sorted = "TEMP B-TREE" in step and "count(DISTINCT)" not in step and "group_concat" not in step
            assert not is_sorted or sql.startswith("SELECT id FROM"), f"{sql}\n{step}"

"""Operations of processes, what was taken back, and the history of a key, in a real journal."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.errors import JournalError
from redisfuse.journal.change_filter import ChangeFilter, IdRange, KeySpan
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.journal.processes import CallingProcess, ProcessReader
from tests.support.journals import INFO, add, intent

RM = CallingProcess(100, 1, "rm")
CP = CallingProcess(200, 2, "cp")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the journal's clock in ms, which the test sets."""
    now = [1_000_000]
    monkeypatch.setattr("redisfuse.journal.journal.now_ms", lambda: now[0])
    return now


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "state" / "journal.db", create=True) as opened:
        yield opened


def operation_ids(journal: Journal) -> list[int]:
    """Return the operation of each change, oldest first."""
    return [change.operation_id for change in journal.find_changes(ChangeFilter(oldest_first=True))]


# -- operations ------------------------------------------------------------------------------------------------------


def test_a_process_without_a_pause_makes_one_operation(journal: Journal, clock: list[int]) -> None:
    """Changes of one process are one operation until it pauses, also between those of another one."""
    session = journal.begin_session(INFO)
    for process, pause in ((RM, 0), (CP, 0), (RM, 2000), (CP, 0), (RM, 2001), (None, 0), (None, 0), (RM, 0)):
        clock[0] += pause
        add(journal, session, intent(process=process))
    assert operation_ids(journal) == [1, 2, 1, 2, 5, 6, 7, 5]
    assert [change.command for change in journal.find_changes(ChangeFilter(limit=3))] == ["rm", None, None]
    assert journal.get_change(1).pid == 100


def test_a_later_process_of_the_same_pid_begins_its_own_operation(journal: Journal, clock: list[int]) -> None:
    """A pid that is used again is another process, which its start time shows."""
    session = journal.begin_session(INFO)
    for process in (RM, CallingProcess(100, 9, "rm"), RM):
        clock[0] += 1
        add(journal, session, intent(process=process))
    assert operation_ids(journal) == [1, 2, 1]


def test_the_pause_is_configurable(tmp_path: Path, clock: list[int]) -> None:
    """A command's journal has no limit of the pause; a limit of 0 ends each operation."""
    for idle, expected in ((None, [1, 1]), (0, [1, 2])):
        path = tmp_path / f"state{idle}" / "journal.db"
        with Journal.open(path, create=True, operation_idle_ms=idle) as opened:
            session = opened.begin_session(INFO)
            for _ in range(2):
                clock[0] += 1_000_000
                add(opened, session, intent(process=RM))
            assert operation_ids(opened) == expected


def test_groups_of_one_transaction_of_the_journal(journal: Journal, clock: list[int]) -> None:
    """Groups that are inserted together belong to the operations of their processes."""
    session = journal.begin_session(INFO)
    intents = [intent(b"k%d" % number, process=process) for number, process in enumerate((RM, RM, CP, RM))]
    journal.record_intents(session, intents, grouping=[2, 1, 1])
    journal.record_intents(session, [intent(process=CP)])
    assert [
        (change.group_id, change.operation_id) for change in journal.find_changes(ChangeFilter(oldest_first=True))
    ] == [
        (1, 1),
        (1, 1),
        (3, 3),
        (4, 1),
        (5, 3),
    ]
    assert clock[0] == 1_000_000


def test_an_insertion_that_was_rolled_back_leaves_no_operation(
    journal: Journal, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed insertion its ids are used again, by other operations."""
    session = journal.begin_session(INFO)
    add(journal, session, intent(process=CP))
    with monkeypatch.context() as patch:
        patch.setattr("redisfuse.journal.change_rows._encode_state", lambda *_: ("no state",))
        with pytest.raises(JournalError):
            journal.record_intents(session, [intent(process=RM)])
    add(journal, session, intent(process=CP))
    add(journal, session, intent(process=RM))
    assert operation_ids(journal) == [1, 1, 3]
    assert clock[0] == 1_000_000


def test_a_held_change_hands_over_its_process(journal: Journal, clock: list[int]) -> None:
    """The change that a mount makes of a held file after a while has the process that wrote the file."""
    session = journal.begin_session(INFO)
    [held] = journal.record_intents(session, [intent(process=CP)], outcome="held")
    clock[0] += 5000
    [written] = add(journal, session, intent(supersedes=held))
    change = journal.get_change(written)
    assert (change.command, change.pid, change.operation_id) == ("cp", 200, written)
    [held] = journal.record_intents(session, [intent(process=CP)], outcome="held")
    [renamed] = add(journal, session, intent(process=CP, supersedes=held))
    assert journal.get_change(renamed).operation_id == renamed  # the only row of the other operation is gone
    add(journal, session, intent(process=CP))
    assert operation_ids(journal)[-1] == renamed


def test_summaries_of_operations(journal: Journal, clock: list[int]) -> None:
    """A summary counts the changes that meet the filter, and names the directory that contains them."""
    session = journal.begin_session(INFO)
    value = State.from_value(b"12345")
    for name in (b"d/a", b"d/sub/b", b"d-e"):
        clock[0] += 10
        add(journal, session, intent(b"d:" + name[2:], path=name, op="remove", prior=value, process=RM))
        add(journal, session, intent(b"x", path=b"x", process=CP))
    add(journal, session, intent(b"d", path=b"d", op="rmdir", process=RM), state="failed")
    newest, other = journal.find_operations()
    assert (newest.id, newest.change_count, newest.key_count, newest.path) == (1, 4, 4, b"")
    assert (newest.first_id, newest.last_id, newest.started_at, newest.ended_at) == (1, 7, 1_000_010, 1_000_030)
    assert (set(newest.ops), set(newest.outcomes)) == ({"remove", "rmdir"}, {"applied", "failed"})
    assert (newest.prior_bytes, newest.command, newest.pid, newest.is_directory) == (15, "rm", 100, True)
    assert (other.id, other.key, other.path, other.is_directory, other.change_count) == (2, b"x", b"x", False, 3)
    [filtered] = journal.find_operations(ChangeFilter(path=b"d", ops=("remove", "rmdir")))
    assert (filtered.change_count, filtered.path) == (3, b"d")
    assert [each.id for each in journal.find_operations(ChangeFilter(limit=1))] == [1]
    assert list(journal.find_operations(ChangeFilter(key_glob=b"none"))) == []


def test_more_operations_than_a_page(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation is listed once, however its changes are spread over the pages."""
    monkeypatch.setattr("redisfuse.journal.change_search.ROWS_PER_PAGE", 3)
    session = journal.begin_session(INFO)
    for number in range(20):
        add(journal, session, intent(process=RM if number % 3 else CP if number < 10 else None))
    listed = [(each.id, each.change_count) for each in journal.find_operations()]
    assert listed == [(2, 13), (19, 1), (16, 1), (13, 1), (1, 4)]


# -- processes -------------------------------------------------------------------------------------------------------


def test_the_process_of_a_thread() -> None:
    """A thread's process is found, and so is a process that has replaced its program."""
    reader = ProcessReader()
    own = reader.read(os.getpid())
    assert own is not None
    assert own.pid == os.getpid()
    from_thread: list[CallingProcess | None] = []
    thread = threading.Thread(target=lambda: from_thread.append(reader.read(threading.get_native_id())))
    thread.start()
    thread.join()
    assert from_thread == [own]
    with subprocess.Popen(["sh", "-c", "read line; exec sleep 60"], stdin=subprocess.PIPE) as child:
        before = reader.read(child.pid)
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        while (after := reader.read(child.pid)) == before:
            pass
        child.kill()
    assert before is not None
    assert after is not None
    assert (before.command, after.command, before.start_time) == ("sh", "sleep", after.start_time)
    assert reader.read(child.pid) is None
    assert reader.read(0) is None


# -- what was taken back ---------------------------------------------------------------------------------------------


def test_a_rollback_that_was_rolled_back(journal: Journal) -> None:
    """A change is in effect unless a rollback in effect has taken it back."""
    session = journal.begin_session(INFO)
    for reverts in (None, 1, 2, 3, None):
        add(journal, session, intent(reverts=reverts))
    add(journal, session, intent(reverts=5), state="failed")
    assert journal.create_reversal_index().find_reverted([1, 2, 3, 4, 5, 6]) == {1, 3}
    assert journal.find_reverting_ids(1) == [2]
    assert journal.find_reverting_ids(5) == []


def test_a_rollback_of_many_changes(journal: Journal) -> None:
    """A rollback of a range takes back the changes of its key, field and server in it, and no others."""
    here = journal.begin_session(INFO)
    there = journal.begin_session(SessionMetadata(ServerIdentity(host="elsewhere")))
    add(journal, here, intent(b"k"))
    add(journal, here, intent(b"k"))
    add(journal, there, intent(b"k"))
    add(journal, here, intent(b"k", field=b"f"))
    add(journal, here, intent(b"other"))
    add(journal, here, intent(b"k"))
    add(journal, here, intent(b"k"))
    add(journal, here, intent(b"k", reverts=2, reverts_through=6))
    assert journal.create_reversal_index().find_reverted(range(1, 9)) == {2, 6}
    assert journal.find_reverting_ids(6) == [8]
    assert journal.find_reverting_ids(2) == [8]
    add(journal, here, intent(b"k", reverts=8))
    assert journal.create_reversal_index().find_reverted(range(1, 10)) == {8}


def test_a_rollback_of_a_part(journal: Journal) -> None:
    """A rollback of some places marks its changes, which stay in effect, until it is rolled back itself."""
    session = journal.begin_session(INFO)
    for _ in range(4):
        add(journal, session, intent(b"k"))
    add(journal, session, intent(b"k", reverts_part=2, reverts_through=3))
    add(journal, session, intent(b"k", reverts_part=4))
    add(journal, session, intent(b"k", reverts_part=1), state="failed")
    index = journal.create_reversal_index()
    assert index.find_reverted(range(1, 7)) == set()
    assert index.find_partly_reverting_ids(range(1, 7)) == {2: [5], 3: [5], 4: [6]}
    add(journal, session, intent(b"k", reverts=5))
    assert journal.create_reversal_index().find_partly_reverting_ids(range(1, 7)) == {4: [6]}
    [operation] = journal.find_operations(ChangeFilter(id_ranges=(IdRange(4, 4),)))
    assert (operation.reverted_count, operation.partly_reverted_count) == (0, 1)


# -- the history of a key --------------------------------------------------------------------------------------------


def rename(journal: Journal, session: int, old: bytes, new: bytes, *, state: str = "applied") -> None:
    """Record the rename of one key."""
    value = State.from_value(b"v")
    departure = ChangeIntent(old, "rename", old, None, value, ABSENT, new_path=new)
    arrival = ChangeIntent(old, "rename", new, None, ABSENT, value, new_path=new)
    add(journal, session, departure, arrival, state=state)


def test_a_history_follows_renames(journal: Journal) -> None:
    """The history of a path continues under the names that its key had before."""
    session = journal.begin_session(INFO)
    add(journal, session, intent(b"a"))  # 1
    add(journal, session, intent(b"c"))  # 2: another key, replaced below
    rename(journal, session, b"a", b"b")  # 3, 4
    add(journal, session, intent(b"a"))  # 5: a new key of the old name
    add(journal, session, intent(b"b"))  # 6
    rename(journal, session, b"b", b"c")  # 7, 8
    rename(journal, session, b"x", b"b", state="failed")  # 9, 10
    add(journal, session, intent(b"c"))  # 11
    spans = journal.find_key_history(b"c")
    assert spans == (KeySpan(b"c", None, 7), KeySpan(b"b", None, 3, 8), KeySpan(b"a", None, 0, 4))
    found = journal.find_changes(ChangeFilter(key_spans=spans))
    assert [change.id for change in found] == [11, 8, 7, 6, 4, 3, 1]
    assert journal.find_key_history(b"a") == (KeySpan(b"a"),)
    assert journal.find_key_history(b"nothing") == ()


def test_a_history_by_key_and_of_a_directory(journal: Journal) -> None:
    """A key that is no path names itself; a directory has no history of its own."""
    session = journal.begin_session(INFO)
    add(journal, session, intent(b"a:b", path=b"a/b"))
    add(journal, session, intent(b"h", path=b"h.f", field=b"f"))
    assert journal.find_key_history(b"a:b") == journal.find_key_history(b"/a/b/") == (KeySpan(b"a:b"),)
    assert journal.find_key_history(b"h.f") == (KeySpan(b"h", b"f"),)
    assert journal.find_key_history(b"a") == ()
    assert journal.find_key_history(b"a:b", "another:1/0") == ()

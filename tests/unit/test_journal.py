"""The journal: changes are read back unchanged and in order."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import JournalError, JournalReadOnlyError, NotFoundError
from redisfuse.journal import change_search, database
from redisfuse.journal.change_filter import ChangeFilter, IdRange, KeySpan, parse_id_words
from redisfuse.journal.check import find_problems
from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import (
    ABSENT,
    DIRECTORY,
    Change,
    ChangeIntent,
    ServerFingerprint,
    ServerIdentity,
    SessionMetadata,
    State,
    read_process_identity,
)
from redisfuse.journal.prune import prune_journal
from redisfuse.text import compile_glob, escape_text, iso_utc, literal_glob
from tests.support.journals import INFO, SERVER, add, facts_of, intent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path, create=True) as opened:
        yield opened


STATES = [
    ABSENT,
    DIRECTORY,
    State.from_value(b""),
    State.from_value(b"\x00\xff" * 50, expires_at=1_800_000_000_000),
    State.from_value(b"v", b"field", expires_at=5, field_expires_at=1_800_000_000_001),
    State.from_slice(b"abc", 7, 1000, expires_at=9),
    State.from_slice(b"", 0, 0),
    State.from_object(
        b"hash",
        b"\x04dump",
        Blob.from_bytes(b'{"type":"hash"}\n["f","v"]\n'),
        expires_at=1,
        dump_version="redis 7.0.15",
    ),
    State.from_object(b"stream", None, Blob.from_bytes(b"{}\n"), note="groups are not carried"),
    State.from_object(b"odd-module", b"dump", None),
    State.from_value(os.urandom(3 * CHUNK_BYTES + 1)),
    State.from_value(b"compressible " * CHUNK_BYTES),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: f"{state.kind}-{state.type.decode()}")
def test_states_come_back(journal: Journal, state: State) -> None:
    """Every kind of state is read back equal, contents included."""
    session = journal.begin_session(INFO)
    recorded = ChangeIntent(b"p", "write", b"k\xff\n", b"f", state, state, reverts=3, applies=4, new_path=b"q")
    (id,) = journal.record_intents(session, [recorded])
    change = journal.get_change(id)
    assert facts_of(change) == (b"p", "write", b"k\xff\n", b"f", state, state, 3, 4)
    assert (change.new_path, change.outcome, change.server_name, change.session_id) == (
        b"q",
        "pending",
        SERVER.name,
        session,
    )
    for stored, original in ((change.new.content, state.content), (change.new.portable_copy, state.portable_copy)):
        assert (stored is None) == (original is None)
        if stored is not None and original is not None:
            assert (stored.size, stored.read()) == (original.size, original.read())
    assert list(find_problems(journal)) == []


def test_an_outcome_is_read_back(journal: Journal) -> None:
    """The process that recorded an outcome reads it at once, with its error."""
    session = journal.begin_session(INFO)
    one, other = journal.record_intents(session, [intent(), intent(b"c")], grouping=False)
    journal.record_outcome([one], "applied")
    journal.record_outcome([other], "failed", "OOM")
    assert (journal.get_change(one).outcome, journal.get_change(one).error) == ("applied", None)
    assert (journal.get_change(other).outcome, journal.get_change(other).error) == ("failed", "OOM")
    assert journal.get_change(one).settled_at is not None


def test_an_outcome_reaches_the_disk_within_a_second(journal: Journal, path: Path) -> None:
    """Another process reads an outcome within about a second."""
    session = journal.begin_session(INFO)
    ids = journal.record_intents(session, [intent()])
    journal.record_outcome(ids, "applied")
    with Journal.open(path, writable=False) as other:
        deadline = now_ms() + 5000
        while other.get_change(ids[0]).outcome != "applied":
            assert now_ms() < deadline
            threading.Event().wait(0.05)


def test_an_outcome_survives_close(path: Path) -> None:
    """Closing writes the last outcomes."""
    with Journal.open(path, create=True) as journal:
        ids = journal.record_intents(journal.begin_session(INFO), [intent()])
        journal.record_outcome(ids, "applied")
    with Journal.open(path) as journal:
        assert journal.get_change(ids[0]).outcome == "applied"
    assert [file.name for file in path.parent.iterdir()] == ["journal.db"]


def test_groups(journal: Journal) -> None:
    """The changes of one operation have consecutive ids and one group.

    Ungrouped changes have one each.
    """
    session = journal.begin_session(INFO)
    (single,) = journal.record_intents(session, [intent()])
    grouped = journal.record_intents(session, [intent(b"%d" % n) for n in range(1200)])
    loose = journal.record_intents(session, [intent(), intent()], grouping=False)
    assert [change.id for change in journal.get_group(grouped[0])] == grouped == list(range(single + 1, single + 1201))
    assert [[change.id for change in journal.get_group(id)] for id in loose] == [[id] for id in loose]
    several = journal.record_intents(session, [intent() for _ in range(5)], grouping=[2, 1, 2])
    assert [journal.get_change(id).group_id - several[0] for id in several] == [0, 0, 2, 3, 3]
    assert journal.record_intents(session, []) == []


def test_a_refused_edit_is_recorded(journal: Journal) -> None:
    """A refused edit is recorded in that state, with the reason and its bytes."""
    (id,) = journal.record_intents(
        journal.begin_session(INFO), [intent(new=b"mine")], outcome="refused", error="changed since"
    )
    change = journal.get_change(id)
    assert (change.outcome, change.error) == ("refused", "changed since")
    assert change.new.content is not None
    assert change.new.content.read() == b"mine"


def test_sessions(journal: Journal) -> None:
    """A session is read back unchanged, with its end and number of changes.

    This process's session has not died.
    """
    one = journal.begin_session(INFO)
    add(journal, one, intent(), intent(b"c"))
    other = journal.begin_session(
        SessionMetadata(ServerIdentity("unix", unix_path="/run/r.sock"), mountpoint="/m\udcff")
    )
    journal.end_session(one)
    assert journal.get_session(one).metadata == INFO
    assert journal.get_session(one).ended_at is not None
    assert not journal.get_session(other).has_died
    assert journal.get_session(other).metadata.server.name == "/run/r.sock/0"
    assert [(session.id, count) for session, count in journal.iter_sessions()] == [(other, 0), (one, 2)]
    assert [session.id for session, _ in journal.iter_sessions(1)] == [other]
    with pytest.raises(NotFoundError):
        journal.get_session(99)


def test_a_fingerprint_is_kept_with_its_session(journal: Journal) -> None:
    """The fingerprint of a session's server is read back, and pruned with the session."""
    fingerprint = ServerFingerprint("0123abcd", 17, {b"k\xff": bytes(32), b"": bytes(range(32))})
    one = journal.begin_session(replace(INFO, fingerprint=fingerprint))
    other = journal.begin_session(INFO)
    third = journal.begin_session(replace(INFO, fingerprint=ServerFingerprint()))
    add(journal, third, intent())
    assert journal.get_fingerprint(one) == fingerprint
    assert journal.get_fingerprint(other) is None
    assert journal.get_fingerprint(third) == ServerFingerprint()
    journal.end_session(one)
    assert prune_journal(journal, before_ms=now_ms() + 5000).sessions == 1
    assert journal.get_fingerprint(one) is None
    assert journal.query("SELECT count(*) FROM sampled_keys") == [(0,)]
    assert list(find_problems(journal)) == []


def test_recognized_runs_are_transitive(journal: Journal) -> None:
    """A run has the data of each run from which it can be reached, and not the reverse."""
    for run, earlier in (("b", "a"), ("c", "b"), ("c", "b"), ("e", "d"), ("a", "c")):
        journal.add_recognized_run(run, earlier)
    assert journal.is_recognized_run("c", "a")
    assert journal.is_recognized_run("a", "b")  # through a circle
    assert not journal.is_recognized_run("d", "e")
    assert not journal.is_recognized_run("c", "d")


def test_an_older_journal_gets_the_newer_tables(journal: Journal, path: Path) -> None:
    """A journal of the first version is migrated when it is opened, with all that it contains."""
    session = journal.begin_session(INFO)
    (id,) = add(journal, session, intent())
    journal.close()
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DROP TABLE fingerprints")
        raw.execute("DROP TABLE sampled_keys")
        raw.execute("DROP TABLE recognized_runs")
        raw.execute("DELETE FROM _sqlite_migrations WHERE name LIKE '%fingerprints'")
    with Journal.open(path) as opened:
        assert opened.get_change(id).outcome == "applied"
        assert opened.get_fingerprint(session) is None
        assert opened.get_fingerprint(opened.begin_session(replace(INFO, fingerprint=ServerFingerprint()))) is not None
        assert list(find_problems(opened)) == []


def test_a_session_has_died(journal: Journal) -> None:
    """A session without an end has died if its process has.

    That holds even if another process has its pid.
    """
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(10)
    dead = journal.begin_session(SessionMetadata(SERVER, pid=ended.pid, process_identity="boot.1"))
    reused = journal.begin_session(SessionMetadata(SERVER, process_identity="other boot.1"))
    elsewhere = journal.begin_session(SessionMetadata(SERVER, pid=ended.pid, host="another.example"))
    assert read_process_identity(os.getpid()) is not None
    assert [journal.get_session(id).has_died for id in (dead, reused, elsewhere)] == [True, True, False]


def test_one_copy_of_the_same_bytes(journal: Journal) -> None:
    """Equal contents are stored once, in whatever role they occur."""
    session = journal.begin_session(INFO)
    big = os.urandom(2 * CHUNK_BYTES)
    for _ in range(3):
        add(journal, session, intent(new=big, prior=State.from_value(b"small")), intent(b"c", b"small"))
    journal.flush()
    assert journal.query("SELECT count(*), sum(size) FROM blobs WHERE digest IS NOT NULL") == [(2, 2 * CHUNK_BYTES + 5)]
    assert journal.query("SELECT count(*) FROM chunks") == [(2,)]


def test_compression(journal: Journal) -> None:
    """Bytes are compressed if that saves space, and stored unchanged if not."""
    session = journal.begin_session(INFO)
    add(journal, session, intent(new=b"text " * 50_000), intent(b"r", os.urandom(250_000)), intent(b"s", b"short"))
    journal.flush()
    stored = journal.query("SELECT size, packed, length(data) < 3000 FROM blobs ORDER BY id")
    assert stored == [(250_000, 1, 1), (250_000, 0, 0), (5, 0, 1)]


def test_large_content_needs_little_memory(journal: Journal, tmp_path: Path) -> None:
    """Journaling a file of 200 MB and reading it back takes a few chunks' memory."""
    file = tmp_path / "large"
    block = os.urandom(CHUNK_BYTES)
    with file.open("wb") as out:
        for number in range(200):
            out.write(block[number:] + block[:number])
    session = journal.begin_session(INFO)
    with file.open("rb") as source:
        tracemalloc.start()
        content = Blob.from_file(source)
        (id,) = journal.record_intents(session, [intent(new=b"", prior=ABSENT)])
        (id,) = journal.record_intents(
            session, [ChangeIntent(b"l", "write", b"l", None, ABSENT, State.from_value(content))]
        )
        stored = journal.get_change(id).new.content
        assert stored is not None
        assert sum(len(chunk) for chunk in stored.iter_chunks()) == 200 * CHUNK_BYTES
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert stored == content
    assert peak < 24 * CHUNK_BYTES


def test_a_small_change_takes_little_room(journal: Journal, path: Path) -> None:
    """Appending 1 KiB enlarges the journal and its log by at most 64 KiB."""
    session = journal.begin_session(INFO)
    for number in range(300):
        add(journal, session, intent(b"%d" % number, b"%d" % number))
    with sqlite3.connect(path) as raw:
        journal.flush()
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for turn in range(5):
        before = sum(file.stat().st_size for file in path.parent.iterdir())
        end = 10**8 + turn * 1024
        prior, new = State.from_slice(b"", end, end), State.from_slice(os.urandom(1024), end, end + 1024)
        add(journal, session, ChangeIntent(b"log", "append", b"log", None, prior, new))
        journal.flush()
        assert sum(file.stat().st_size for file in path.parent.iterdir()) - before <= 65536


def test_content_of_file(tmp_path: Path) -> None:
    """A file's content can be read more than once, until the file becomes shorter."""
    data = os.urandom(CHUNK_BYTES * 2 + 10)
    file = io.BytesIO(data)
    content = Blob.from_file(file, 5, CHUNK_BYTES + 5)
    assert content == Blob.from_bytes(data[5 : CHUNK_BYTES + 10])
    assert content.read() == content.read() == data[5 : CHUNK_BYTES + 10]
    assert [len(chunk) for chunk in Blob.from_file(file).iter_chunks()] == [CHUNK_BYTES, CHUNK_BYTES, 10]
    assert Blob.from_file(file, len(data)).read() == b""
    assert Blob.from_bytes(data).read_prefix(3) == data[:3]
    assert Blob.from_chunks(iter([b"ab", b"c"]), (tmp_path / "spool").open("w+b")).read() == b"abc"
    file.truncate(CHUNK_BYTES)
    with pytest.raises(JournalError, match="shorter"):
        content.read()


def test_a_file_altered_while_it_is_journaled(journal: Journal) -> None:
    """Bytes that don't match the content's digest are not recorded under it."""
    file = io.BytesIO(bytes(2 * CHUNK_BYTES))
    content = Blob.from_file(file)
    file.seek(5)
    file.write(b"x")
    with pytest.raises(JournalError, match="altered"):
        journal.record_intents(
            journal.begin_session(INFO),
            [intent(), ChangeIntent(b"", "write", b"", None, ABSENT, State.from_value(content))],
        )
    journal.flush()
    assert journal.query("SELECT count(*) FROM chunks") == journal.query("SELECT count(*) FROM changes") == [(0,)]


def test_a_damaged_content_is_never_read_whole(journal: Journal, path: Path) -> None:
    """A content that doesn't match its digest raises before its last chunk."""
    session = journal.begin_session(INFO)
    (id,) = add(journal, session, intent(new=os.urandom(2 * CHUNK_BYTES)))
    journal.flush()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE chunks SET data = zeroblob(length(data)) WHERE number = 0")
    content = journal.get_change(id).new.content
    assert content is not None
    chunks: list[bytes] = []
    with pytest.raises(JournalError, match="damaged"):
        chunks.extend(content.iter_chunks())
    assert len(chunks) == 1
    assert any("damaged" in problem for problem in find_problems(journal))


def test_threads_share_commits(journal: Journal) -> None:
    """Changes from many threads are all recorded, each once."""
    session = journal.begin_session(INFO)
    ids_of_thread: list[list[int]] = [[] for _ in range(8)]

    def work(number: int) -> None:
        for turn in range(50):
            key = b"%d:%d" % (number, turn)
            ids_of_thread[number] += add(journal, session, intent(key, b"shared %d" % turn, State.from_value(key)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ids = sorted(id for thread_ids in ids_of_thread for id in thread_ids)
    assert len(set(ids)) == 400
    assert all(thread_ids == sorted(thread_ids) for thread_ids in ids_of_thread)
    assert {(change.id, change.outcome) for change in journal.find_changes()} == {(id, "applied") for id in ids}


def test_a_failing_task_fails_alone(journal: Journal) -> None:
    """A task that raises fails alone: the others of its transaction are committed."""
    session = journal.begin_session(INFO)
    results: list[object] = []
    entered, released = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        entered.set()
        released.wait(10)

    def spoil(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM sessions")
        raise ValueError("mine")

    def attempt(task: Any) -> None:
        try:
            results.append(task())
        except ValueError as error:
            results.append(error)

    writer = journal._require_writer()
    tasks = [
        lambda: writer.submit(hold),
        lambda: journal.record_intents(session, [intent()]),
        lambda: writer.submit(spoil),
    ]
    threads = []
    for task in tasks:
        threads.append(threading.Thread(target=attempt, args=(task,)))
        threads[-1].start()
        assert entered.wait(10)
    threading.Event().wait(0.2)  # the last two wait in the queue
    released.set()
    for thread in threads:
        thread.join(10)
    assert any(isinstance(result, ValueError) for result in results)
    assert len(list(journal.find_changes())) == 1
    assert journal.get_session(session).id == session


def test_two_processes_write_to_one_journal(journal: Journal, path: Path) -> None:
    """Two processes that write at the same time share one sequence of ids.

    No change is lost.
    """
    script = (
        "import sys; from pathlib import Path; from tests.support.journals import *\n"
        "with Journal.open(Path(sys.argv[1]), create=True) as journal:\n"
        "    session = journal.begin_session(INFO)\n"
        "    for n in range(200): add(journal, session, intent(b'other'))\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(path)])
    session = journal.begin_session(INFO)
    mine = [add(journal, session, intent(b"mine"))[0] for _ in range(200)]
    assert other.wait(60) == 0
    assert mine == sorted(set(mine))
    assert all(len(list(journal.find_changes(ChangeFilter(key_glob=key)))) == 200 for key in (b"mine", b"other"))
    assert list(find_problems(journal)) == []


def test_many_processes_create_one_journal(path: Path) -> None:
    """Processes that start together create one journal, and each finds it complete."""
    script = (
        "import sys; from pathlib import Path; from tests.support.journals import *\n"
        "with Journal.open(Path(sys.argv[1]), create=True) as journal:\n"
        "    add(journal, journal.begin_session(INFO), intent())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    with Journal.open(path) as journal:
        assert len(list(journal.find_changes())) == 4
    assert [file.name for file in path.parent.iterdir()] == ["journal.db"]


# -- finding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Return a journal of 300 changes in two sessions of two servers.

    There is one change a second, of the keys a:0 … and b:0 ….
    """
    clock = [1_000_000]
    monkeypatch.setattr("redisfuse.journal.journal.now_ms", lambda: clock[0])
    monkeypatch.setattr(change_search, "MAX_SCANNED_ROWS", 20)
    sessions = [journal.begin_session(INFO), journal.begin_session(SessionMetadata(ServerIdentity(host="other")))]
    for n in range(300):
        clock[0] += 1000
        op = "remove" if n % 50 == 0 else "write"
        key = b"%s:%d" % (b"ab"[n % 2 : n % 2 + 1], n)
        add(journal, sessions[n % 2], intent(key, op=op), state="failed" if n % 30 == 1 else "applied")
    return journal


def test_filters(filled: Journal) -> None:
    """Each filter yields the changes that a loop over all would.

    The newest is first, or the oldest; a limit yields the newest.
    """
    everything = list(filled.find_changes())
    assert [change.id for change in everything] == list(range(300, 0, -1))
    trials: dict[ChangeFilter, Callable[[Change], bool]] = {
        ChangeFilter(session_id=2): lambda c: c.session_id == 2,
        ChangeFilter(server_name=SERVER.name): lambda c: c.server_name == SERVER.name,
        ChangeFilter(key_glob=b"a:10"): lambda c: c.key == b"a:10",
        ChangeFilter(key_glob=b"a:1*"): lambda c: c.key.startswith(b"a:1"),
        ChangeFilter(key_glob=b"*7"): lambda c: c.key.endswith(b"7"),
        ChangeFilter(key_glob=b"[b]:?"): lambda c: c.key[:1] == b"b" and len(c.key) == 3,
        ChangeFilter(key_glob=b"a\\:1"): lambda c: c.key == b"a:1",
        ChangeFilter(path=b"/a/"): lambda c: c.path.startswith(b"a/"),
        ChangeFilter(path=b"a/10"): lambda c: c.path == b"a/10",
        ChangeFilter(path=b"a/1"): lambda c: c.path == b"a/1",
        ChangeFilter(outcomes=("failed", "unknown")): lambda c: c.outcome == "failed",
        ChangeFilter(outcomes=("applied",), ops=("remove",)): lambda c: c.outcome == "applied" and c.op == "remove",
        ChangeFilter(since=1_100_000): lambda c: c.recorded_at >= 1_100_000,
        ChangeFilter(since=1_100_000, until=1_110_000): lambda c: 1_100_000 <= c.recorded_at < 1_110_000,
        ChangeFilter(since=9_000_000): lambda c: c is None,
        ChangeFilter(user=INFO.user, session_id=1): lambda c: c.session_id == 1,
        ChangeFilter(user="someone else"): lambda c: c is None,
        ChangeFilter(id_ranges=(IdRange(7, 7), IdRange(20, 29), IdRange(295))): lambda c: (
            c.id == 7 or 20 <= c.id <= 29 or c.id >= 295
        ),
        ChangeFilter(id_ranges=(IdRange(20, 29),), ops=("remove",), session_id=1): lambda c: c is None,
        ChangeFilter(id_ranges=(IdRange(1, 29),), key_glob=b"a*", path=b"a"): lambda c: (
            c.id <= 29 and c.key[:1] == b"a"
        ),
        ChangeFilter(id_ranges=(IdRange(20, 21),), operation_ids=(21, 40)): lambda c: c.id in (20, 21, 40),
        ChangeFilter(operation_ids=(41,), since=1_100_000): lambda c: c is None,
        ChangeFilter(key_spans=(KeySpan(b"a:10", None, 5), KeySpan(b"b:11"))): lambda c: c.key in (b"a:10", b"b:11"),
        ChangeFilter(key_spans=(KeySpan(b"a:10", None, 50), KeySpan(b"b:11", b"f"))): lambda c: c.key == b"b:11",
        ChangeFilter(key_spans=(KeySpan(b"a:10"),), id_ranges=(IdRange(1, 50),)): lambda c: c.key == b"a:10",
        ChangeFilter(path=b"a", key_glob=b"a:1*", since=1_100_000): lambda c: (
            c.key.startswith(b"a:1") and c.recorded_at >= 1_100_000
        ),
        ChangeFilter(before_id=100, key_glob=b"b*", since=1_050_000, ops=("write",)): lambda c: (
            c.id < 100 and c.key[:1] == b"b" and c.recorded_at >= 1_050_000 and c.op == "write"
        ),
    }
    for change_filter, predicate in trials.items():
        expected = [change.id for change in everything if predicate(change)]
        assert [change.id for change in filled.find_changes(change_filter)] == expected, change_filter
        ascending = replace(change_filter, oldest_first=True)
        assert [change.id for change in filled.find_changes(ascending)] == expected[::-1], ascending
        for limit in (0, 1, 7):
            limited = replace(change_filter, limit=limit)
            assert [change.id for change in filled.find_changes(limited)] == expected[:limit], limited
            limited = replace(limited, oldest_first=True)
            assert [change.id for change in filled.find_changes(limited)] == expected[:limit][::-1], limited


def test_a_path_selects_what_was_renamed_into_it(journal: Journal) -> None:
    """A filter by path selects renames from it and to it, whether the rows are scanned or found by an index."""
    session = journal.begin_session(INFO)
    for path, new_path in ((b"a/1", b"b/1"), (b"a/2", b"c"), (b"c", b"b"), (b"bb", b"cc")):
        add(journal, session, intent(b"k", path=path, op="rename", new_path=new_path))
    for scanned in (0, 5000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(change_search, "MAX_SCANNED_ROWS", scanned)
            for path, ids in ((b"b", [3, 1]), (b"a", [2, 1]), (b"c", [3, 2]), (b"b/1", [1]), (b"d", [])):
                assert [change.id for change in journal.find_changes(ChangeFilter(path=path))] == ids, path


@pytest.mark.parametrize(
    ("words", "ranges", "operations"),
    [
        (["7"], [(7, 7)], ()),
        (["#7", "8-9", "20..30"], [(7, 9), (20, 30)], ()),
        (["5..", "1"], [(1, 1), (5, (1 << 63) - 1)], ()),
        (["..5", "#3-#8"], [(0, 8)], ()),
        (["7+", "9", "7+"], [(9, 9)], (7,)),
    ],
)
def test_ids_as_words(words: list[str], ranges: list[tuple[int, int]], operations: tuple[int, ...]) -> None:
    """Ids, ranges and operations are parsed; ranges that overlap are joined."""
    assert parse_id_words(words) == (tuple(IdRange(*each) for each in ranges), operations)


@pytest.mark.parametrize(
    "word", ["", "x", "-5", "5-3", "5--7", "1.5", "+5", "..", "7+8", str(1 << 63), "5-" + "9" * 30]
)
def test_words_that_name_no_changes(word: str) -> None:
    """Other words are refused."""
    with pytest.raises(ValueError, match="names no changes"):
        parse_id_words([word])


def test_a_clock_set_back_does_not_change_the_order(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back changes neither order nor time filters."""
    session = journal.begin_session(INFO)
    for time in (5000, 1000, 9000, 2000):
        monkeypatch.setattr("redisfuse.journal.journal.now_ms", lambda time=time: time)
        journal.record_intents(session, [intent()])
    assert [change.recorded_at for change in journal.find_changes()] == [2000, 9000, 1000, 5000]
    assert [change.recorded_at for change in journal.find_changes(ChangeFilter(since=2000))] == [2000, 9000, 5000]
    assert [change.recorded_at for change in journal.find_changes(ChangeFilter(until=5000))] == [2000, 1000]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"*", [b"", b"a", b"\n\xff"], []),
        (b"h?llo", [b"hello", b"h\nllo"], [b"hllo", b"heello"]),
        (b"h[ae]llo", [b"hallo", b"hello"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello"]),
        (b"h[a-c]llo", [b"hallo", b"hbllo"], [b"hdllo"]),
        (b"h[c-a]llo", [b"hbllo"], [b"hdllo"]),
        (b"a\\*b", [b"a*b"], [b"axb", b"a\\*b"]),
        (b"[\\]]", [b"]"], [b"\\"]),
        (b"x[", [], [b"x", b"x["]),
        (b"tail\\", [b"tail\\"], [b"tail"]),
        (b"\xff*", [b"\xff", b"\xff\xff\xff"], [b"\xfe"]),
        (b"[\\a-c]", [b"a", b"-", b"c"], [b"b"]),
        (b"a*bc*bc*c", [b"abcbcc", b"a.bc.bc.bc.c"], [b"abcbc", b"abcc"]),
        (b"*a" * 20 + b"*b", [b"a" * 20 + b"b"], [b"a" * 2000, b"a" * 19 + b"b"]),
    ],
)
def test_globs_are_those_of_redis(journal: Journal, pattern: bytes, matching: list[bytes], others: list[bytes]) -> None:
    """A key pattern matches the keys that stringmatchlen's rules match."""
    journal.record_intents(journal.begin_session(INFO), [intent(key) for key in (*matching, *others)])
    keys = {change.key for change in journal.find_changes(ChangeFilter(key_glob=pattern))}
    assert keys & set(matching) == set(matching)
    assert not keys & set(others)
    assert all(compile_glob(literal_glob(key)) == (key, None) for key in (*matching, *others))


def test_later_changes_and_reverts(journal: Journal) -> None:
    """Only later changes of the same datum on the same server are found.

    Of reverts, only those of the change are found.
    """
    session = journal.begin_session(INFO)
    elsewhere = journal.begin_session(SessionMetadata(ServerIdentity(host="elsewhere")))
    (first,) = add(journal, session, intent(b"h", field=b"f"))
    add(journal, session, intent(b"h", field=b"g"))
    add(journal, elsewhere, intent(b"h", field=b"f"))
    add(journal, session, intent(b"h", field=b"f"), state="failed")
    (same,) = add(journal, session, intent(b"h", field=b"f"))
    (whole,) = add(journal, session, intent(b"h", op="remove"))
    (revert,) = add(journal, session, intent(b"h", field=b"f", op="rollback", reverts=first))
    assert [change.id for change in journal.find_later_changes(journal.get_change(first))] == [revert, whole, same]
    assert journal.find_reverting_ids(first) == [revert]
    assert journal.find_reverting_ids(same) == []


def test_pending_changes_are_oldest_first(journal: Journal) -> None:
    """Pending changes are returned oldest first, of all servers or of one."""
    ids = journal.record_intents(journal.begin_session(INFO), [intent(), intent()], grouping=False)
    other = journal.record_intents(journal.begin_session(SessionMetadata(ServerIdentity(host="other"))), [intent()])
    assert [change.id for change in journal.find_pending_changes()] == [*ids, *other]
    assert [change.id for change in journal.find_pending_changes(SERVER.name)] == ids


# -- empty directories -----------------------------------------------------------------------------------------------


def test_directories_join_an_operation(journal: Journal) -> None:
    """Directories join the operation of their keys.

    They don't if the id of another change is between, because the ids of a group are consecutive.
    """
    session = journal.begin_session(INFO)
    made = [replace(intent(), new=DIRECTORY)]
    first, second = add(journal, session, intent(), intent())
    (joined,) = journal.update_directories("s", session_id=session, intents=made, group_id=first)
    assert [change.id for change in journal.get_group(first)] == [first, second, joined]
    assert journal.get_change(joined).recorded_at == journal.get_change(first).recorded_at
    add(journal, session, intent())
    (alone,) = journal.update_directories("s", session_id=session, intents=made, group_id=first)
    assert [change.id for change in journal.get_group(alone)] == [alone]
    assert [change.id for change in journal.get_group(first)] == [first, second, joined]


def test_empty_directories(path: Path) -> None:
    """Empty directories of any name are stored, per server, until they are removed."""
    awkward = {(b"a",), (b"a", b"b"), (b"",), (b"", b""), (b"x/y", b"%2F%"), (b"\xff\x00", b"c")}
    with Journal.open(path, create=True) as journal:
        for directory in awkward:
            journal.add_directory(SERVER.name, directory)
        journal.add_directory(SERVER.name, (b"a",))
        journal.add_directory("other", (b"o",))
        journal.update_directories(SERVER.name, remove=[(b"missing",)])
    with Journal.open(path) as journal:
        assert journal.list_directories(SERVER.name) == awkward
        session = journal.begin_session(INFO)
        made = ChangeIntent(b"n", "mkdir", b"n", None, ABSENT, DIRECTORY)
        ids = journal.update_directories(SERVER.name, add=[(b"n",)], remove=awkward, session_id=session, intents=[made])
        assert journal.list_directories(SERVER.name) == {(b"n",)}
        assert [journal.get_change(id).outcome for id in ids] == ["applied"]


# -- pruning and checking --------------------------------------------------------------------------------------------


def test_prune(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old settled changes and their contents are removed; the file shrinks."""
    ended = journal.begin_session(INFO)
    shared = os.urandom(2 * CHUNK_BYTES)
    add(journal, ended, intent(b"old", os.urandom(4 * CHUNK_BYTES), State.from_value(shared)))
    add(journal, ended, intent(b"old too", os.urandom(CHUNK_BYTES)), intent(b"of a group"))
    journal.end_session(ended)
    session = journal.begin_session(INFO)
    (pending,) = journal.record_intents(session, [intent(b"pending")])
    (refused,) = journal.record_intents(session, [intent(b"refused")], outcome="refused")
    (applied_later,) = journal.record_intents(session, [intent(b"refused, applied later")], outcome="refused")
    (failed, failed_first) = journal.record_intents(
        session, [intent(b"failed"), intent(b"tried again")], grouping=[1, 1]
    )
    journal.record_outcome([failed, failed_first], "failed", "OOM")
    add(journal, session, intent(b"tried again"))
    add(journal, session, intent(b"apply", applies=applied_later, op="apply"))
    before = now_ms() + 1
    monkeypatch.setattr("redisfuse.journal.journal.now_ms", lambda: before + 5)
    (young,) = add(journal, session, intent(b"young", prior=State.from_value(shared)))
    journal.flush()
    predicted = prune_journal(journal, before_ms=before, dry_run=True)
    assert len(list(journal.find_changes())) == 11
    result = prune_journal(journal, before_ms=before)
    assert (result.changes, result.sessions, result.contents) == (7, 1, 2)
    assert (predicted.changes, predicted.sessions, predicted.contents) == (7, 1, 2)
    assert predicted.freed >= 5 * CHUNK_BYTES
    assert result.freed >= 4 * CHUNK_BYTES
    assert path.stat().st_size < 3 * CHUNK_BYTES
    assert [change.id for change in journal.find_changes()] == [young, failed, refused, pending]
    remaining = journal.get_change(young).prior.content
    assert remaining is not None
    assert remaining.read() == shared
    assert all("pending" in problem for problem in find_problems(journal))
    assert prune_journal(journal, before_ms=before, include_refused=True).changes == 2
    assert add(journal, session, intent())[0] == young + 1


def test_prune_keeps_the_last_and_whole_groups(journal: Journal) -> None:
    """The newest changes are kept; a group is removed whole or not at all."""
    session = journal.begin_session(INFO)
    add(journal, session, intent())
    group = add(journal, session, intent(), intent(), intent())
    (last,) = add(journal, session, intent())
    assert prune_journal(journal, before_ms=now_ms() + 5000, keep_last=2).changes == 1
    assert [change.id for change in journal.find_changes()] == [last, *reversed(group)]
    assert prune_journal(journal, before_ms=now_ms() + 5000, keep_last=9).changes == 0


@pytest.mark.parametrize(("offset", "pruned"), [(7, 2), (8, 1)])
def test_prune_keeps_bytes_that_were_saved_only_elsewhere(journal: Journal, offset: int, pruned: int) -> None:
    """A failed write of a range counts as made later only if the same bytes were written at the same offset."""
    session = journal.begin_session(INFO)
    (failed,) = add(journal, session, replace(intent(), new=State.from_slice(b"abc", 7, 1000)), state="failed")
    add(journal, session, replace(intent(), new=State.from_slice(b"abc", offset, 1000)))
    assert prune_journal(journal, before_ms=now_ms() + 5000).changes == pruned
    assert [change.id for change in journal.find_changes()] == ([] if pruned == 2 else [failed])


def test_prune_removes_abandoned_contents(journal: Journal, path: Path) -> None:
    """A content that a dead process staged is removed after a day, not before."""
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO blobs (size, staged_at) VALUES (9, ?)", (now_ms(),))
        raw.execute("INSERT INTO blobs (size, staged_at) VALUES (9, ?)", (now_ms() - 25 * 3600 * 1000,))
    assert prune_journal(journal, before_ms=0).contents == 1


def test_check_reports_each_problem(journal: Journal, path: Path) -> None:
    """Missing rows, altered schemas and abandoned changes are one line each."""
    session = journal.begin_session(INFO)
    add(journal, session, intent())
    journal.record_intents(session, [intent()])
    journal.record_outcome(journal.record_intents(session, [intent()]), "unknown")
    assert [problem.split(":")[0] for problem in find_problems(journal)] == ["change 3 is unknown"]
    journal.end_session(session)
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM blobs")
        raw.execute("DELETE FROM sessions")
        raw.execute("DROP INDEX changes_op")
    text = "\n".join(find_problems(journal))
    for expected in ("lacks index changes_op", "new blob 1 is missing", "session 1 is missing", "change 2 is pending"):
        assert expected in text


# -- the file --------------------------------------------------------------------------------------------------------


def test_permissions(path: Path) -> None:
    """Directory and files are private from their creation, no matter the umask."""
    previous = os.umask(0)
    try:
        with Journal.open(path, create=True) as journal:
            journal.begin_session(INFO)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
            assert len(list(path.parent.iterdir())) == 3
    finally:
        os.umask(previous)


def test_reading_does_not_write(path: Path) -> None:
    """A journal opened for reading refuses every change to it."""
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
    with Journal.open(path, writable=False) as journal:
        with pytest.raises(JournalReadOnlyError):
            journal.record_intents(session, [intent()])
        with pytest.raises(JournalReadOnlyError):
            journal.query("DELETE FROM sessions")
        assert journal.get_session(session).metadata == INFO


def test_a_closed_journal_refuses_changes(path: Path) -> None:
    """After close every change is refused; closing twice does nothing."""
    journal = Journal.open(path, create=True)
    session = journal.begin_session(INFO)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.record_intents(session, [intent()])


def test_a_child_cannot_write(journal: Journal) -> None:
    """A child of the process that opened the journal can't write to it."""
    session = journal.begin_session(INFO)
    child = os.fork()
    if not child:
        try:
            journal.record_intents(session, [intent()])
        except JournalError as error:
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_history_is_readable(path: Path) -> None:
    """`sqlite-utils rows journal.db history` prints plain text, and no blobs."""
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        for key in (b"user:1", b"caf\xc3\xa9", b"\xff\x1b[31m", b"back\\slash", b""):
            add(
                journal,
                session,
                intent(key, field=b"f\x00", prior=State.from_value(b"12345", expires_at=1_800_000_000_123)),
            )
    tool = [str(Path(sys.executable).with_name("sqlite-utils")), "rows", str(path), "history"]
    rows = json.loads(subprocess.run(tool, check=True, capture_output=True, timeout=60).stdout)
    assert [row["key"] for row in rows] == ["user:1", "café", "\\xff\\x1b[31m", "back\\\\slash", ""]
    assert rows[0]["field"] == "f\\x00"
    assert (rows[0]["prior_size"], rows[0]["new_size"], rows[0]["state"]) == (5, 3, "applied")
    assert rows[0]["prior_expires"] == "2027-01-15T08:00:00.123Z"
    assert rows[0]["server"] == "127.0.0.1:7000/2"
    assert all(not isinstance(value, dict) for row in rows for value in row.values())


def test_every_column_is_commented(journal: Journal) -> None:
    """Each column has a comment beside its definition, which `.schema` prints."""
    for name, sql in journal.query("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'"):
        lines = [line.strip() for line in sql.splitlines()[1:-1]]
        columns = [line for line in lines if not line.startswith(("CHECK", "PRIMARY KEY", ")"))]
        assert [line for line in columns if "--" not in line] == [], name


@pytest.mark.usefixtures("journal")
def test_migrations_with_sqlite_utils(path: Path) -> None:
    """`sqlite-utils migrate` finds the same migrations, all applied."""
    tool = [str(Path(sys.executable).with_name("sqlite-utils")), "migrate", str(path)]
    folder = database.list_migration_files()[0].parent
    done = subprocess.run([*tool, str(folder), "--list"], check=True, capture_output=True, text=True, timeout=60)
    applied, _, pending = done.stdout.partition("Pending:")
    assert all(file.stem in applied for file in database.list_migration_files())
    assert pending.split() == ["(none)"]


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain text \xc3\xa9", "plain text é"),
        (b"\x1b[2J\t\n\r\\", "\\x1b[2J\\t\\n\\x0d\\\\"),
        (b"\xff\xc3", "\\xff\\xc3"),
        ("\u202etxt".encode(), "\\xe2\\x80\\xaetxt"),
        (b"\x00", "\\x00"),
        (b"", ""),
    ],
)
def test_escape(data: bytes, text: str) -> None:
    """Bytes become one printable line without control sequences."""
    assert escape_text(data) == text


def test_iso() -> None:
    """Times are UTC with milliseconds; out of range they are the number."""
    assert iso_utc(1_800_000_000_007) == "2027-01-15T08:00:00.007Z"
    assert iso_utc(-1) == "1969-12-31T23:59:59.999Z"
    assert iso_utc(1 << 60) == str(1 << 60)

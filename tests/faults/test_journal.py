"""Faults of the journal: disks, invalid files, locks and killed processes.

Every fault is a real one. Each test demands the right error class (and so errno), that a change is recorded completely
or not at all, and that no file of the user's is overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from redisfuse.errors import JournalError, JournalFullError, JournalLockedError, JournalReadOnlyError
from redisfuse.journal.check import find_problems
from redisfuse.journal.journal import Journal
from tests.faults.conftest import small_disk_at
from tests.support.journals import INFO, add, intent

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs, chattr and chown need root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def made(path: Path) -> Path:
    """Return the path of a closed journal with three changes."""
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        for number in range(3):
            add(journal, session, intent(b"k%d" % number, b"value" * 100))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    with small_disk_at(tmp_path / "disk", 1) as folder:
        yield folder


def run(script: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a Python process with the tests' helpers imported.

    The caller reads its output.
    """
    head = (
        "import contextlib, os, sqlite3, sys, threading; from pathlib import Path\n"
        "from redisfuse.errors import JournalError\nfrom tests.support.journals import *\n"
    )
    command = [*prefix, sys.executable, "-c", head + script, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# -- disks -----------------------------------------------------------------------------------------------------------


@needs_root
def test_full_disk(small_disk: Path) -> None:
    """On a full disk an intent fails with ENOSPC and is not recorded.

    The journal works again once there is space.
    """
    with Journal.open(small_disk / "journal.db", create=True) as journal:
        session = journal.begin_session(INFO)
        add(journal, session, intent())
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
            while True:
                out.write(bytes(4096))
        for size in (100_000, 1_200_000, 30_000):
            lost = [intent(b"lost", os.urandom(size)) for _ in range(50)]
            with pytest.raises(JournalFullError) as caught:
                journal.record_intents(session, lost)
            assert caught.value.errno == errno.ENOSPC
            assert str(small_disk) in str(caught.value)
        filler.unlink()
        (id,) = add(journal, session, intent(b"after"))
        assert journal.get_change(id).outcome == "applied"
        assert list(find_problems(journal)) == []
        assert [change.key for change in journal.find_changes()] == [b"after", b"a:b"]


@needs_root
def test_no_space_for_a_new_journal(small_disk: Path) -> None:
    """Creating a journal on a full disk fails with ENOSPC and leaves no file."""
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    with pytest.raises(JournalFullError):
        Journal.open(small_disk / "journal.db", create=True)
    assert [file.name for file in small_disk.iterdir()] == ["filler"]


@needs_root
def test_the_disk_becomes_read_only(small_disk: Path) -> None:
    """A journal on a read-only disk can be read; writing raises EROFS."""
    with Journal.open(small_disk / "journal.db", create=True) as journal:
        (id,) = add(journal, journal.begin_session(INFO), intent())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=10)
    with pytest.raises(JournalReadOnlyError) as caught, Journal.open(small_disk / "journal.db") as journal:
        journal.begin_session(INFO)
    assert caught.value.errno == errno.EROFS
    with Journal.open(small_disk / "journal.db", writable=False) as journal:
        assert journal.get_change(id).outcome == "applied"
    with pytest.raises(JournalReadOnlyError):
        Journal.open(small_disk / "other.db", create=True)


@needs_root
def test_an_immutable_file(made: Path) -> None:
    """Opening a journal with the immutable attribute for writing raises EROFS."""
    if subprocess.run(["chattr", "+i", str(made)], check=False, capture_output=True, timeout=10).returncode:
        pytest.skip("this filesystem has no immutable files")
    try:
        with pytest.raises(JournalReadOnlyError):
            Journal.open(made)
    finally:
        subprocess.run(["chattr", "-i", str(made)], check=True, timeout=10)


def test_locked(made: Path) -> None:
    """While another process holds a lock, a write raises EBUSY.

    It does so after the busy time-out. Afterwards it succeeds.
    """
    locker = run(
        "raw = sqlite3.connect(sys.argv[1], isolation_level=None); raw.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True); sys.stdin.readline(); raw.execute('COMMIT')\n",
        str(made),
    )
    assert locker.stdout is not None
    with Journal.open(made, busy_timeout=0.3) as journal:
        session = journal.begin_session(INFO)
        assert locker.stdout.readline() == "locked\n" or locker.poll() is None
        start = time.monotonic()
        with pytest.raises(JournalLockedError) as caught:
            journal.record_intents(session, [intent(b"lost")])
        assert caught.value.errno == errno.EBUSY
        assert 0.2 < time.monotonic() - start < 5
        assert len(list(journal.find_changes())) == 3  # reading still works
        locker.communicate("\n", timeout=10)
        add(journal, session, intent(b"after"))
        assert next(journal.find_changes()).key == b"after"


def test_an_outcome_survives_a_lock(made: Path) -> None:
    """An outcome whose first write failed is written once the lock is released."""
    with Journal.open(made, busy_timeout=0.1) as journal:
        ids = journal.record_intents(journal.begin_session(INFO), [intent()])
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            journal.record_outcome(ids, "applied")
            time.sleep(1.5)
            assert raw.execute("SELECT state FROM changes WHERE id = ?", ids).fetchone() == ("pending",)
            raw.execute("COMMIT")
        deadline = time.monotonic() + 5
        while journal.query("SELECT state FROM changes WHERE id = ?", tuple(ids)) != [("applied",)]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_file_size_limit(made: Path) -> None:
    """Past RLIMIT_FSIZE an intent fails with ENOSPC, and the process survives."""
    script = (
        "import resource; journal = Journal.open(Path(sys.argv[1])); session = journal.begin_session(INFO)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
        "try:\n    journal.record_intents(session, [intent(b'k', os.urandom(1_000_000))])\n"
        "except JournalError as error: print(error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "print(len(add(journal, session, intent()))); journal.close()\n"
    )
    assert finish(run(script, str(made))).split() == [str(errno.ENOSPC), "1"]


def test_no_descriptors_left(made: Path) -> None:
    """Opening a journal without free descriptors raises EMFILE, not another reason."""
    script = (
        "import resource, sqlite3, platformdirs; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
        "with Journal.open(Path(sys.argv[1]), writable=False): pass\n"
        "held = []\n"
        "try:\n    while True: held.append(os.open('/', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "try:\n    Journal.open(Path(sys.argv[1]))\n"
        "except JournalError as error: print(error.errno)\n"
    )
    assert finish(run(script, str(made))).split() == [str(errno.EMFILE)]


# -- files -----------------------------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 1000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)


def _truncated(path: Path) -> None:
    os.truncate(path, 5000)


def _other_schema(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE recipes (id INTEGER)")
    path.chmod(0o600)


def _empty_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 5")
    path.chmod(0o600)


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("INSERT INTO _sqlite_migrations VALUES (99, 'redisfuse', 'm9999_future', '')")


def _readable_by_others(path: Path) -> None:
    path.chmod(0o640)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_name("real.db"))
    path.symlink_to("real.db")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def _foreign(path: Path) -> None:
    if os.geteuid():
        pytest.skip("chown needs root")
    os.chown(path, 65534, -1)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_garbage, "damaged or not a database"),
        (_empty, "empty file"),
        (_damaged, "damaged"),
        (_truncated, "damaged"),
        (_other_schema, "another program's database"),
        (_empty_database, "empty database"),
        (_newer, "newer redisfuse"),
        (_readable_by_others, "chmod 600"),
        (_directory, "is a directory"),
        (_link, "symbolic link"),
        (_fifo, "not a regular file"),
        (_open_folder, "chmod 700"),
        (_foreign, "belongs to another user"),
    ],
)
def test_not_a_journal(made: Path, spoil: Callable[[Path], None], reason: str, write: bool) -> None:
    """A file that is not a journal of this user is refused and not changed."""
    spoil(made)
    before = made.read_bytes() if made.is_file() else None
    with pytest.raises(JournalError, match=reason) as caught:
        Journal.open(made, create=write, writable=write)
    assert str(made.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    if before is not None:
        assert made.read_bytes() == before
    names = {file.name for file in made.parent.iterdir()}
    assert names <= {"journal.db", "real.db", "journal.db-wal", "journal.db-shm"}  # SQLite's own, empty


def test_a_missing_journal(path: Path) -> None:
    """Opening a journal that does not exist raises an error and creates nothing."""
    with pytest.raises(JournalError, match="no journal"):
        Journal.open(path)
    assert not path.parent.exists()


def test_damage_found_later(made: Path) -> None:
    """Damage inside the file raises an error with its path, and `check` reports it."""
    with Journal.open(made) as journal:
        session = journal.begin_session(INFO)
        for number in range(200):
            add(journal, session, intent(b"n%d" % number, os.urandom(2000)))
    data = bytearray(made.read_bytes())
    for start in range(len(data) // 2, len(data) - 8192, 4096):
        data[start : start + 2000] = os.urandom(2000)
    made.write_bytes(data)
    with Journal.open(made, writable=False) as journal:
        with pytest.raises(JournalError, match=re.escape(str(made))):
            list(change.new.content.read() for change in journal.find_changes() if change.new.content)  # noqa: C400
        assert any("damaged" in problem for problem in find_problems(journal))


@pytest.mark.parametrize("what", ["unlinked", "swapped", "log unlinked", "index unlinked", "folder moved"])
def test_a_journal_removed_while_open(made: Path, what: str) -> None:
    """A journal that was removed or replaced while open refuses changes.

    The file in its place is not changed.
    """
    copy = made.with_name("copy.db")
    shutil.copy(made, copy)
    journal = Journal.open(made)
    session = journal.begin_session(INFO)
    if what == "unlinked":
        made.unlink()
    elif what == "swapped":
        copy.rename(made)
        before = made.read_bytes()
    elif what == "log unlinked":
        made.with_name("journal.db-wal").unlink()
    elif what == "index unlinked":
        made.with_name("journal.db-shm").unlink()
    else:
        made.parent.rename(made.parent.with_name("moved"))
    with pytest.raises(JournalError, match="removed or replaced"):
        journal.record_intents(session, [intent(b"lost")])
    if what == "swapped":
        assert made.read_bytes() == before
    if what == "folder moved":
        made.parent.with_name("moved").rename(made.parent)
        add(journal, session, intent(b"back"))
    with contextlib.suppress(JournalError):
        journal.close()


FILL_AND_TRUNCATE = """
import time
journal = Journal.open(Path(sys.argv[1])); session = journal.begin_session(INFO)
for n in range(50): add(journal, session, intent(b"n%d" % n, os.urandom(2000)))
other = Journal.open(Path(sys.argv[1]))
if sys.argv[4] == "used": add(other, other.begin_session(INFO), intent(b"other"))
time.sleep(0.4)  # until both are idle: a thread that uses the index while it is cut dies of SIGBUS
file = sys.argv[1] + sys.argv[2]
size = int(os.stat(file).st_size * float(sys.argv[3]))
os.truncate(file, size)
for n in range(3):
    try: add(journal, session, intent(b"lost")); print("recorded")
    except JournalError as error: print("refused" if "truncated" in str(error) else error)
try: journal.close()
except JournalError: print("refused")
try: other.close()
except JournalError: print("refused")
assert sys.argv[4] == "used" or os.stat(file).st_size == size, "the journal's end altered the file"
"""


@pytest.mark.parametrize("used", ["used", "unused"])
@pytest.mark.parametrize("part", ["0", "0.5", "0.98"])
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_journal_truncated_while_open(made: Path, suffix: str, part: str, used: str) -> None:
    """A journal whose database, log or index lost its end refuses changes, whether or not another process uses it.

    Opening it again is refused, or finds the changes before the damage.
    """
    out = finish(run(FILL_AND_TRUNCATE, str(made), suffix, part, used))
    assert out.split() == ["refused"] * 5
    if used == "used":
        return
    if not suffix:
        with pytest.raises(JournalError, match=r"damaged|empty"):
            Journal.open(made)
        return
    with Journal.open(made) as journal:
        assert [problem for problem in find_problems(journal) if "pending" not in problem] == []
        keys = [change.key for change in journal.find_changes()]
        assert {b"k0", b"k1", b"k2"} <= set(keys)
        assert b"lost" not in keys
        if suffix == "-wal" and part == "0.98":
            assert b"n40" in keys


def test_a_truncated_journal_with_a_log(made: Path) -> None:
    """A database that lacks pages which its log does not have is refused, also if a crash left the log."""
    script = (
        "journal = Journal.open(Path(sys.argv[1])); session = journal.begin_session(INFO)\n"
        "for n in range(50): add(journal, session, intent(b'n%d' % n, os.urandom(2000)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run(script, str(made)).communicate(timeout=60)
    assert made.with_name("journal.db-wal").stat().st_size > 100_000
    shutil.copytree(made.parent, made.parent.with_name("whole"))
    with Journal.open(made.parent.with_name("whole") / made.name) as journal:
        assert len(list(journal.find_changes())) == 53
    os.truncate(made, made.stat().st_size - 8192)
    for write in (True, False):
        with pytest.raises(JournalError, match="damaged"):
            Journal.open(made, writable=write)


PRUNE = """
from redisfuse.journal.prune import prune_journal
with Journal.open(Path(sys.argv[1])) as journal:
    if sys.argv[2] == "prune": print(prune_journal(journal, before_ms=1 << 50).freed)
    else: journal.query("SELECT 1")
    add(journal, journal.begin_session(INFO), intent(b"other"))
with contextlib.closing(sqlite3.connect(sys.argv[1])) as raw:
    print(raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
"""


@pytest.mark.parametrize("reading", [True, False])
@pytest.mark.parametrize("what", ["prune", "checkpoint"])
def test_another_process_shortens_the_files(made: Path, what: str, reading: bool) -> None:
    """A journal that another process prunes, or whose log it truncates, records changes as before."""
    with Journal.open(made) as journal:
        for turn in range(2):
            session = journal.begin_session(INFO)
            for number in range(100):
                add(journal, session, intent(b"n%d" % number, os.urandom(3000)))
            journal.end_session(session)
            before = made.stat().st_size + made.with_name("journal.db-wal").stat().st_size
            with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as reader:
                if reading:  # its snapshot keeps the other process from truncating the log
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM changes").fetchone()
                finish(run(PRUNE, str(made), what))
                session = journal.begin_session(INFO)
                add(journal, session, intent(b"after %d" % turn))
            if not reading:
                assert made.stat().st_size + made.with_name("journal.db-wal").stat().st_size < before
            add(journal, session, intent(b"later %d" % turn))
        assert [problem for problem in find_problems(journal) if "pending" not in problem] == []
        keys = [change.key for change in journal.find_changes()]
        assert b"after 1" in keys
        assert b"later 1" in keys


def test_a_long_log_is_begun_again(made: Path) -> None:
    """A log over its limit, which the journal's own commits shorten, is no damage."""
    with Journal.open(made) as journal:
        session = journal.begin_session(INFO)
        sizes: list[int] = []
        for turn in range(2):
            add(journal, session, intent(b"large", os.urandom(24 << 20)))
            for number in range(12):
                add(journal, session, *(intent(b"%d %d" % (turn, number), b"%d" % each) for each in range(100)))
                time.sleep(0.05)  # a checkpoint follows the commit
                sizes.append(made.with_name("journal.db-wal").stat().st_size)
        assert max(sizes) > 20 << 20
        assert any(after < before for before, after in pairwise(sizes)), sizes
        assert [problem for problem in find_problems(journal) if "pending" not in problem] == []


# -- deaths ----------------------------------------------------------------------------------------------------------


def test_killed_while_writing(path: Path) -> None:
    """After kill -9 each change whose intent returned is recorded.

    The journal is sound and writable.
    """
    script = (
        "journal = Journal.open(Path(sys.argv[1]), create=True); session = journal.begin_session(INFO)\n"
        "while True:\n"
        "    intents = [intent(b'k', os.urandom(50)), intent(b'l', os.urandom(1_200_000))]\n"
        "    ids = journal.record_intents(session, intents)\n"
        "    print(ids[1], flush=True); journal.record_outcome(ids, 'applied')\n"
    )
    for wait in (0.05, 0.11, 0.23):
        process = run(script, str(path))
        assert process.stdout is not None
        last = int(process.stdout.readline())
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
        process.communicate(timeout=10)
        last = max([last, *(int(word) for word in printed)])
        with Journal.open(path) as journal:
            ids = [change.id for change in journal.find_changes()]
            assert ids == list(range(len(ids), 0, -1))
            assert len(ids) >= last
            assert all(change.id >= last - 1 for change in journal.find_pending_changes())
            session = next(journal.iter_sessions())[0]
            assert session.has_died
            journal.end_session(session.id)
            journal.record_outcome([change.id for change in journal.find_pending_changes()], "failed")
            assert list(find_problems(journal)) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("call", ["openat", "pwrite64", "fdatasync", "link", "unlink", "ftruncate"])
def test_killed_while_creating(path: Path, call: str) -> None:
    """A process killed while creating leaves no journal or a complete one."""
    script = "Journal.open(Path(sys.argv[1]), create=True).begin_session(INFO)\n"
    for turn in range(1, 5):
        inject = f"inject={call}:signal=KILL:when={turn}"
        where = ["-P", str(path.parent)] if call == "openat" else []
        process = run(script, str(path), prefix=["strace", "-f", "-o", "/dev/null", "-e", inject, *where])
        process.communicate(timeout=60)
        if path.exists():
            with Journal.open(path, create=True) as journal:
                journal.begin_session(INFO)
            path.unlink()
        shutil.rmtree(path.parent, ignore_errors=True)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_fsync_fails(made: Path, error: str) -> None:
    """If fsync fails the intent fails, and the next one restarts the log.

    Every intent that returned is recorded.
    """
    script = (
        "journal = Journal.open(Path(sys.argv[1])); session = journal.begin_session(INFO)\n"
        "for number in range(12):\n"
        "    try:\n        print('done', *journal.record_intents(session, [intent(b'n%d' % number)]), flush=True)\n"
        "    except JournalError as error: print('failed', error.errno, flush=True)\n"
        "journal.close()\n"
    )
    inject = f"inject=fdatasync,fsync:error={error}:when=5..6"
    out = finish(run(script, str(made), prefix=["strace", "-f", "-o", "/dev/null", "-e", inject]))
    outcomes = [line.split() for line in out.splitlines()]
    assert ["failed", str(errno.EIO)] in outcomes
    done = [int(words[1]) for words in outcomes if words[0] == "done"]
    assert len(done) >= 6
    with Journal.open(made) as journal:
        assert set(done) <= {change.id for change in journal.find_changes()}
        assert [problem for problem in find_problems(journal) if "pending" not in problem] == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_one_fsync_an_intent(made: Path, tmp_path: Path) -> None:
    """One intent costs one fsync, an outcome none; concurrent intents share."""
    script = (
        "journal = Journal.open(Path(sys.argv[1])); session = journal.begin_session(INFO)\n"
        "def mark(name): os.stat('/mark-' + name) if os.path.lexists('/mark-' + name) else None\n"
        "add(journal, session, intent()); mark('lone')\n"
        "for n in range(20): add(journal, session, intent(b'a%d' % n, b'x%d' % n, State.from_value(b'y%d' % n)))\n"
        "mark('settle'); threading.Event().wait(1.5); mark('together')\n"
        "def work(n):\n"
        "    for t in range(20): add(journal, session, intent(b'%d %d' % (n, t)))\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; mark('end'); journal.close()\n"
    )
    log = tmp_path / "strace"
    finish(
        run(script, str(made), prefix=["strace", "-f", "-o", str(log), "-e", "trace=fsync,fdatasync,lstat,newfstatat"])
    )
    counts: dict[str, int] = {}
    part = "start"
    for line in log.read_text().splitlines():
        if found := re.search(r'"/mark-(\w+)"', line):
            part = found[1]
        elif re.search(r"\b(fsync|fdatasync)\(", line):
            counts[part] = counts.get(part, 0) + 1
    assert counts.get("lone") == 20
    assert counts.get("settle", 0) == 0
    assert counts.get("together", 0) < 120

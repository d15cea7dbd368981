"""A journal that fails under a mount for writing.

The program gets the errno, Redis is unchanged, and the mount survives.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.journal.check import find_problems
from redisfuse.journal.journal import Journal
from tests.faults.conftest import MakeMount, small_disk_at
from tests.support.changes import monitor_writes
from tests.support.errno_of import change_states, errno_name, journal_changes, save_file
from tests.support.mount_logs import ENDED, KEPT, NOT_KEPT
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, MountedServer, is_mounted, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer
from tests.support.strace import trace_process

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 2 MiB."""
    with small_disk_at(tmp_path / "disk", 2) as folder:
        yield folder


def check_changes_fail(server: RedisServer, mount: MountedServer, errors: tuple[str, ...]) -> None:
    """Check that saving, removing and renaming fail, and that no write reaches Redis."""
    client = server.client()
    with monitor_writes(server) as writes:
        # In this order, because removing an open file takes effect when it is closed.
        assert errno_name((mount.path / "k").unlink) in errors
        assert errno_name(os.rename, mount.path / "k", mount.path / "j") in errors
        assert errno_name((mount.path / "dir").mkdir) in errors
        assert save_file(mount.path / "k", b"new") in errors
    assert writes == []
    assert client.get("k") == b"old"
    assert (mount.path / "k").read_bytes() == b"old"


def check_saving_works(mount: MountedServer, client: redis.Redis) -> None:
    """Check that the mount saves and that the journal is sound."""
    wait_until(lambda: save_file(mount.path / "k", b"works") == "", 10)
    assert client.get("k") == b"works"
    wait_until(lambda: change_states(mount, b"k")[-1] == "applied")
    with Journal.open(mount.journal, writable=False) as journal:
        assert list(find_problems(journal)) == []


# -- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(f"{NOT_KEPT}: the disk of the journal .* is full")
@needs_root
def test_full_disk(own_redis: RedisServer, client: redis.Redis, disk: Path, make_mount: MakeMount) -> None:
    """On a full disk every change fails with ENOSPC and Redis is unchanged.

    With free space saving works again.
    """
    mount = make_mount(own_redis.tcp_url(), "--journal-file", str(disk / "journal.db"))
    mount.journal = disk / "journal.db"
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    check_changes_fail(own_redis, mount, ("ENOSPC",))
    filler.unlink()
    check_saving_works(mount, client)


@needs_root
def test_read_only_at_the_start(
    own_redis: RedisServer, client: redis.Redis, make_mount: MakeMount, disk: Path, tmp_path: Path
) -> None:
    """On a read-only disk a mount for writing is refused.

    The message has the journal's path, whether or not the journal exists.
    """
    url = own_redis.tcp_url()
    mount = make_mount(url, "--journal-file", str(disk / "journal.db"))
    assert mount.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=10)
    for name in ("journal.db", "none.db"):
        check_mount_refused(tmp_path, url, disk / name)
    assert client.get("k") == b"old"


def check_mount_refused(folder: Path, url: str, journal: Path) -> str:
    """Check that a mount with this journal exits with 1 and one line.

    The line has the journal's path, and nothing is mounted. Returns the line.
    """
    path = folder / "mnt"
    path.mkdir(exist_ok=True)
    done = run_redisfuse(folder, "--write", "--journal", "--journal-file", str(journal), url, str(path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(journal) in done.stderr
    assert not is_mounted(path)
    return done.stderr


@pytest.mark.expected_log(f"{NOT_KEPT}.*read-only")
def test_read_only_later(own_redis: RedisServer, client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """Changes fail with EROFS while the journal's system calls do."""
    calls = "pwrite64,access,faccessat,faccessat2"
    log = tmp_path / "strace"
    with trace_process(mount.process.pid, log, calls, f"{calls}:error=EROFS"):
        check_changes_fail(own_redis, mount, ("EROFS",))
    check_saving_works(mount, client)


@pytest.mark.expected_log(f"{NOT_KEPT}.*disk I/O error")
def test_fsync_fails(own_redis: RedisServer, client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """Changes fail with EIO while fsync fails.

    None succeeds until the log is written again and synced.
    """
    with trace_process(mount.process.pid, tmp_path / "strace", "fdatasync", "fdatasync:error=EIO"):
        check_changes_fail(own_redis, mount, ("EIO",))
    check_saving_works(mount, client)
    mount.process.kill()
    mount.process.wait()
    assert "pending" not in change_states(mount, b"k")[:-1]


@pytest.mark.expected_log(f"disk I/O error.*{KEPT}")
def test_one_failed_fsync_is_not_forgotten(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """After a failed fsync the next save first syncs the database.

    The kernel may have dropped pages of the log.
    """
    log = tmp_path / "strace"
    with trace_process(mount.process.pid, log, "fdatasync,fsync", "fdatasync,fsync:error=EIO:when=1"):
        assert save_file(mount.path / "k", b"lost") == "EIO"
        before = log.read_text().count("= 0")
        assert save_file(mount.path / "k", b"new") == ""
        after = log.read_text().count("= 0")
    assert after - before >= 2  # the log copied into the database, then the change
    assert client.get("k") == b"new"
    check_saving_works(mount, client)


# -- other processes -------------------------------------------------------------------------------------------------

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(journal: Path) -> Iterator[None]:
    """Let another process hold the journal's lock."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(10)


def test_locked(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """While another process holds the lock a save fails with EBUSY.

    Redis is unchanged, and reading works. Afterwards saving works.
    """
    with locked(mount.journal), monitor_writes(own_redis) as writes:
        descriptor = os.open(mount.path / "k", os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, b"new")
        assert errno_name(os.fsync, descriptor) == "EBUSY"
        assert writes == []
        assert client.get("k") == b"old"
    assert errno_name(os.close, descriptor) == ""  # which tries again
    assert client.get("k") == b"new"
    check_saving_works(mount, client)


def test_two_mounts_on_one_journal(
    own_redis: RedisServer, client: redis.Redis, mount: MountedServer, make_mount: MakeMount, tmp_path: Path
) -> None:
    """Two mounts share a journal.

    Both save, neither settles the other's pending changes, and the later of two edits of one file is a conflict.
    """
    folder = tmp_path / "second"
    folder.mkdir()
    other = make_mount(own_redis.tcp_url(), "--journal-file", str(mount.journal), folder=folder)
    for number in range(10):
        assert save_file(mount.path / f"a{number}", b"1") == ""
        assert save_file(other.path / f"b{number}", b"2") == ""
    first, second = (os.open(mounted.path / "k", os.O_WRONLY) for mounted in (mount, other))
    os.write(first, b"first")
    os.write(second, b"second")
    os.close(first)
    assert errno_name(os.close, second) == "ESTALE"
    assert client.get("k") == b"first"
    assert client.dbsize() == 21
    wait_until(lambda: sorted(set(change_states(mount))) == ["applied", "refused"], 5)
    rows = journal_changes(mount)
    assert len(rows) == 22
    assert len({row.session_id for row in rows}) == 2


# -- invalid files ---------------------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _other_program(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")
    path.chmod(0o600)


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO _sqlite_migrations VALUES (99, 'redisfuse', 'm9999_future', 'now')")
        connection.commit()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_garbage, _truncated, _other_program, _newer, _directory])
def test_not_a_journal(
    own_redis: RedisServer, client: redis.Redis, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A mount refuses a file that is not a journal, and does not change it."""
    path = tmp_path / "journal.db"
    Journal.open(path, create=True).close()
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    check_mount_refused(tmp_path, own_redis.tcp_url(), path)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert client.get("k") == b"old"


@pytest.mark.expected_log(f"{NOT_KEPT}.*was removed or replaced while in use")
@pytest.mark.parametrize("how", ["unlinked", "swapped"])
def test_a_journal_removed_under_the_mount(
    own_redis: RedisServer, client: redis.Redis, mount: MountedServer, how: str
) -> None:
    """After the journal is unlinked or replaced, saving fails with EIO.

    Redis is unchanged, until the journal is put back. The log has the journal's path.
    """
    backup, other = mount.journal.with_name("backup.db"), mount.journal.with_name("other.db")
    os.link(mount.journal, backup)
    if how == "swapped":
        shutil.copy(mount.journal, other)
        before = other.read_bytes()
        other.rename(mount.journal)
    else:
        mount.journal.unlink()
    with monitor_writes(own_redis) as writes:
        assert save_file(mount.path / "k", b"new") == "EIO"
    assert writes == []
    assert client.get("k") == b"old"
    if how == "swapped":
        assert mount.journal.read_bytes() == before
    wait_until(lambda: str(mount.journal) in mount.read_log())
    backup.rename(mount.journal)
    check_saving_works(mount, client)


@pytest.mark.expected_log(f"{NOT_KEPT}.*was truncated while in use", "closing the journal failed")
@pytest.mark.parametrize(("suffix", "part"), [("", 0.5), ("", 0.98), ("-wal", 0), ("-wal", 0.5), ("-wal", 0.98)])
def test_a_journal_truncated_under_the_mount(
    own_redis: RedisServer, mount: MountedServer, suffix: str, part: float
) -> None:
    """After the journal or its log lost its end, saving fails with EIO, Redis is unchanged, and the log says why.

    A further mount is refused, or its journal is sound.
    """
    for number in range(40):
        assert save_file(mount.path / f"n{number}", os.urandom(2000)) == ""
    file = mount.journal.with_name(mount.journal.name + suffix)
    os.truncate(file, int(file.stat().st_size * part))
    check_changes_fail(own_redis, mount, ("EIO",))
    wait_until(lambda: f"{mount.journal} or its log was truncated" in mount.read_log())
    assert mount.stop() == 0
    if not suffix:
        assert "damaged" in check_mount_refused(mount.path.parent, own_redis.tcp_url(), mount.journal)
        return
    done = run_redisfuse(mount.path.parent, "journal", "check", "--journal-file", str(mount.journal))
    problems = [line for line in done.stdout.splitlines() if "session has ended" not in line]
    assert problems in ([], [line for line in problems if "sound" in line]), done.stdout


def test_pages_overwritten_under_the_mount(mount: MountedServer) -> None:
    """Pages that another program overwrote are found by `journal check`, also while the mount continues."""
    for number in range(40):
        assert save_file(mount.path / f"n{number}", os.urandom(2000)) == ""
    with contextlib.closing(sqlite3.connect(mount.journal)) as raw:
        raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    words = ("journal", "check", "--journal-file", str(mount.journal))
    assert run_redisfuse(mount.path.parent, *words).returncode == 0
    with mount.journal.open("r+b", buffering=0) as file:
        file.seek(mount.journal.stat().st_size // 2)
        file.write(os.urandom(8192))
    done = run_redisfuse(mount.path.parent, *words)
    assert done.returncode == 1
    assert "damaged" in done.stdout + done.stderr


# -- limits of the process -------------------------------------------------------------------------------------------


@pytest.mark.expected_log(f"Too many open files.*{KEPT}")
def test_no_descriptors_left(client: redis.Redis, mount: MountedServer) -> None:
    """A mount without free descriptors fails single requests, and recovers."""
    pid = mount.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    client.set("fresh", "1")
    errors = {errno_name((mount.path / "fresh").read_bytes), save_file(mount.path / "k", b"new")}
    assert errors <= {"", "EIO", "EMFILE", "ENFILE"}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert mount.process.poll() is None
    wait_until(lambda: (mount.path / "fresh").read_bytes() == b"1", 5)
    check_saving_works(mount, client)


@pytest.mark.expected_log(f"the disk of the journal .* is full.*{KEPT}")
def test_file_size_limit(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """Past RLIMIT_FSIZE a save fails with ENOSPC, and the mount survives.

    Redis is unchanged.
    """
    pid = mount.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, before[1]))
    with monitor_writes(own_redis) as writes:
        assert save_file(mount.path / "k", os.urandom(300_000)) == "ENOSPC"
    assert writes == []
    assert client.get("k") == b"old"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    check_saving_works(mount, client)


# -- unmounting with unsaved data ------------------------------------------------------------------------------------


@pytest.mark.expected_log(f"{ENDED}.*{KEPT}")
def test_terminated_with_a_file_open(client: redis.Redis, mount: MountedServer) -> None:
    """SIGTERM does not save a file that is being written.

    Its bytes are in the journal, and the log reports it.
    """
    descriptor = os.open(mount.path / "k", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"half of")
    try:
        assert mount.stop() == 0
        assert not is_mounted(mount.path)
    finally:
        errno_name(os.close, descriptor)
    assert client.get("k") == b"old"
    [change] = journal_changes(mount, b"k")
    assert change.outcome == "refused"
    assert change.new.content is not None
    assert change.new.content.size == len(b"half of")
    assert f"change {change.id}" in mount.read_log()
    done = run_redisfuse(mount.path.parent, "apply", str(change.id), "--force")
    assert done.returncode == 0, done.stderr
    assert client.get("k") == b"half of"


def test_terminated_after_a_close(client: redis.Redis, mount: MountedServer) -> None:
    """A file closed before SIGTERM is saved, even if only truncated or created."""
    os.close(os.open(mount.path / "k", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT))
    mount.process.send_signal(signal.SIGTERM)
    assert mount.process.wait() == 0
    assert client.mget("k", "new") == [b"", b""]
    assert change_states(mount) == ["applied", "applied"]


def test_lazily_unmounted_with_a_file_open(client: redis.Redis, mount: MountedServer) -> None:
    """After umount -l a program with an open file completes its save.

    Then the mount's process exits.
    """
    descriptor = os.open(mount.path / "k", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"ne")
    subprocess.run(["umount", "-l", str(mount.path)], check=True, timeout=MOUNT_TIMEOUT_SECONDS)
    assert not is_mounted(mount.path)
    os.write(descriptor, b"w")
    os.close(descriptor)
    assert client.get("k") == b"new"
    assert mount.process.wait() == 0
    assert change_states(mount, b"k") == ["applied"]


@pytest.mark.expected_log(f"{ENDED}.*{KEPT}")
def test_terminated_while_the_server_hangs(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """After SIGTERM with a hanging server, the mount exits in time.

    The bytes of an open file are in the journal.
    """
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    own_redis.pause()
    start = time.monotonic()
    try:
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) in (0, 1)
        assert time.monotonic() - start < 15
        assert not is_mounted(mount.path)
    finally:
        own_redis.resume()
        errno_name(os.close, descriptor)
    assert client.get("k") == b"old"
    assert change_states(mount, b"k") == ["refused"]

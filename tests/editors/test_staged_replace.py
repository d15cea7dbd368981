"""The removal of a key that is renamed to a backup name is delayed, as new content may follow (docs/editing.md)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id, monitor_writes
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    MountedServer,
    flush_and_wait,
    is_mounted,
    mount_server,
    run_redisfuse,
    wait_until,
)
from tests.support.redis_server import RedisServer

TTL_MS = 3_600_000
PARK_SECONDS = 0.5  # --park-seconds of the shared mount
EXPIRED_SECONDS = PARK_SECONDS + 0.3  # after that no removal is pending and no file is held
REMOVED = "was renamed to the junk name .*: the key is removed"


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    directory = tmp_path_factory.mktemp("staged-replace")
    options = ("--binding", request.param, "--park-seconds", str(PARK_SECONDS), "--allow", "[^x]*")
    with mount_server(directory, server.tcp_url(), *options, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("d:f.txt", "old", px=TTL_MS)
    client.hset("h", "f", "old")
    wait_until(lambda: mount.status()["keys"] == 2 and (mount.path / "h.f").exists())
    wait_until((mount.path / "d" / "f.txt").exists)
    return client


@pytest.fixture
def file(client: redis.Redis, mount: MountedServer) -> Path:
    """Return the path of `d:f.txt`, which holds `old`."""
    assert client.exists("d:f.txt")
    return mount.path / "d" / "f.txt"


def assert_fails(error_number: int, call: Callable[..., object], *arguments: object) -> None:
    """Call a function and check that it fails with an errno."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is checked
        call(*arguments)
    assert raised.value.errno == error_number, raised.value


def backup_of(file: Path) -> Path:
    """Return the path of an editor's backup of a file."""
    return file.with_name(file.name + "~")


# -- no new content follows --------------------------------------------------------------------------------------------


@pytest.mark.expected_log(REMOVED)
def test_mv_by_hand(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """`mv f f~` removes f from Redis after the delay, as one change; the log reports where its content is."""
    before = last_change_id(mount)
    subprocess.run(["mv", str(file), str(backup_of(file))], check=True, timeout=20)
    assert not file.exists()
    assert os.listdir(file.parent) == ["f.txt~"]
    assert client.get("d:f.txt") == b"old"
    wait_until(lambda: not client.exists("d:f.txt"))
    assert not file.exists()
    assert backup_of(file).read_bytes() == b"old"
    wait_until(lambda: [row["state"] for row in journal_rows(mount, before)] == ["applied"])
    [row] = journal_rows(mount, before)
    assert (row["op"], row["path"]) == ("remove", "d/f.txt")
    assert "d/f.txt was renamed to the junk name d/f.txt~: the key is removed" in mount.read_log()
    process = run_redisfuse(
        mount.path.parent, "rollback", str(row["id"]), "--yes", "--journal-file", str(mount.journal)
    )
    assert process.returncode == 0, process.stderr
    assert client.get("d:f.txt") == b"old"
    assert 0 < client.pttl("d:f.txt") <= TTL_MS
    wait_until(file.exists)
    backup_of(file).unlink()


@pytest.mark.expected_log(REMOVED)
def test_a_directory_outlives_its_last_file(client: redis.Redis, file: Path) -> None:
    """A directory whose last file is removed after the delay stays until rmdir."""
    os.rename(file, backup_of(file))
    wait_until(lambda: not client.exists("d:f.txt"))
    backup_of(file).unlink()
    assert os.listdir(file.parent) == []
    file.parent.rmdir()


def test_mv_and_back(client: redis.Redis, mount: MountedServer, file: Path, server: RedisServer) -> None:
    """`mv f f~; mv f~ f` is no change: no write command, no row of the journal, no later removal."""
    before = last_change_id(mount)
    with monitor_writes(server) as commands:
        for name in (file, mount.path / "h.f"):
            os.rename(name, backup_of(name))
            os.rename(backup_of(name), name)
            assert name.read_bytes() == b"old"
        time.sleep(EXPIRED_SECONDS)
    assert commands == []
    assert journal_rows(mount, before) == []
    assert client.pttl("d:f.txt") > 0
    assert not backup_of(file).exists()


@pytest.mark.expected_log(REMOVED)
@pytest.mark.parametrize("way", ["mv", "mv twice", "trash"])
def test_the_expiry_returns_with_the_file(client: redis.Redis, mount: MountedServer, file: Path, way: str) -> None:
    """A file that is moved back after the delay expires when it did before."""
    trash = mount.path / ".Trash-1000"
    trash.mkdir()
    copy = trash / "f.txt" if way == "trash" else backup_of(file)
    expires_at = time.time() * 1000 + client.pttl("d:f.txt")
    os.rename(file, copy)
    if way == "mv twice":
        os.rename(copy, trash / "other")
        copy = trash / "other"
    wait_until(lambda: not client.exists("d:f.txt"))
    wait_until(lambda: f"junk name {copy.relative_to(mount.path)}: the key is removed" in mount.read_log())
    os.rename(copy, file)
    trash.rmdir()
    assert client.get("d:f.txt") == b"old"
    assert abs(time.time() * 1000 + client.pttl("d:f.txt") - expires_at) < 1000


@pytest.mark.expected_log(REMOVED)
def test_an_expiry_that_has_passed_does_not_return(client: redis.Redis, file: Path) -> None:
    """A file that is moved back after its key would have expired is there, without an expiry."""
    client.pexpire("d:f.txt", int(PARK_SECONDS * 1000) + 700)
    expires_at = time.monotonic() + PARK_SECONDS + 0.7
    os.rename(file, backup_of(file))
    wait_until(lambda: not client.exists("d:f.txt"))
    time.sleep(max(0.0, expires_at - time.monotonic()) + 0.1)
    os.rename(backup_of(file), file)
    assert client.get("d:f.txt") == b"old"
    assert client.pttl("d:f.txt") == -1


@pytest.mark.expected_log(REMOVED)
def test_the_expiry_of_a_hash_returns_with_its_field(client: redis.Redis, mount: MountedServer) -> None:
    """A field that is moved back after the delay, as the only one of its hash, brings back the expiry of the hash."""
    client.pexpire("h", TTL_MS)
    path = mount.path / "h.f"
    os.rename(path, backup_of(path))
    wait_until(lambda: not client.exists("h"))
    time.sleep(0.1)
    os.rename(backup_of(path), path)
    assert client.hget("h", "f") == b"old"
    assert 0 < client.pttl("h") <= TTL_MS


@pytest.mark.expected_log(REMOVED)
def test_the_unmount_commits(server: RedisServer, tmp_path: Path) -> None:
    """The unmount commits pending removals and held files, journaled."""
    client = server.client()
    client.flushall()
    client.mset({"f": "old", "g": "old"})
    with mount_server(tmp_path, server.tcp_url(), "--park-seconds", "600", write=True) as mount:
        os.rename(mount.path / "f", mount.path / "f~")
        descriptor = os.open(mount.path / "tmpkept1234", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, b"new")
        os.close(descriptor)
        time.sleep(0.3)
        assert sorted(client.keys()) == [b"f", b"g"]
        assert sorted(os.listdir(mount.path)) == ["f~", "g", "tmpkept1234"]
        assert mount.stop() == 0
        assert sorted(client.keys()) == [b"g", b"tmpkept1234"]
        assert client.get("tmpkept1234") == b"new"
        rows = {(row["op"], row["path"], row["state"]) for row in journal_rows(mount)}
        assert rows == {("remove", "f", "applied"), ("create", "tmpkept1234", "applied")}


def test_a_killed_mount_leaves_the_key(server: RedisServer, tmp_path: Path) -> None:
    """After a kill with a pending removal the key is still in Redis, and no row of the journal records a removal."""
    client = server.client()
    client.flushall()
    client.mset({"f": "old", "g": "old"})
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        os.rename(mount.path / "f", mount.path / "f~")
        (mount.path / "g").rename(mount.path / "g~")
        (mount.path / "g").open("xb").close()  # a new file, not yet written, over the pending removal
        mount.process.kill()
        mount.process.wait(MOUNT_TIMEOUT_SECONDS)
        assert client.get("f") == b"old"
        assert client.get("g") in (b"old", b"")  # its close may have committed the empty file
        subprocess.run(["fusermount", "-uz", str(mount.path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)
        wait_until(lambda: not is_mounted(mount.path))
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        assert sorted(os.listdir(mount.path)) == ["f", "g"]
        assert not [row for row in journal_rows(mount) if row["op"] == "remove"]


# -- another client changes the key ------------------------------------------------------------------------------------


def test_a_save_over_a_changed_key(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """Another client's change during the delay is a conflict for the save: ESTALE, and the journal keeps the edit."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    client.set("d:f.txt", "theirs")
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.write(descriptor, b"mine")
    assert_fails(errno.ESTALE, os.fsync, descriptor)
    assert_fails(errno.ESTALE, os.close, descriptor)  # the conflict is reported again
    assert client.get("d:f.txt") == b"theirs"
    wait_until(lambda: file.read_bytes() == b"theirs")
    assert file.stat().st_size == len(b"theirs")
    [row] = journal_rows(mount, before)
    assert row["state"] == "refused"
    time.sleep(EXPIRED_SECONDS)
    assert client.get("d:f.txt") == b"theirs"
    assert len(journal_rows(mount, before)) == 1
    change_id = str(row["id"])
    shown = run_redisfuse(mount.path.parent, "show", change_id, "--new", "--journal-file", str(mount.journal))
    assert shown.stdout == "mine", shown.stderr
    process = run_redisfuse(mount.path.parent, "apply", change_id, "--force", "--journal-file", str(mount.journal))
    assert process.returncode == 0, process.stderr
    assert client.get("d:f.txt") == b"mine"
    backup_of(file).unlink()


@pytest.mark.expected_log("was renamed or unlinked here, but stays in Redis")
def test_a_changed_key_is_not_removed(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A key that another client changed during the delay is not removed: the tree shows it and its new content."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    assert not file.exists()
    client.set("d:f.txt", "theirs!")
    assert not file.exists()  # the kernel has just cached that it does not exist
    wait_until(file.exists, EXPIRED_SECONDS + 2)
    assert file.read_bytes() == b"theirs!"
    assert "f.txt" in os.listdir(file.parent)
    assert client.get("d:f.txt") == b"theirs!"
    assert journal_rows(mount, before) == []
    assert "d/f.txt was renamed or unlinked here, but stays in Redis: it was changed" in mount.read_log()
    backup_of(file).unlink()


def test_a_key_deleted_by_another_client(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A key that another client deletes during the delay causes neither a change nor a log line."""
    before, old_log = last_change_id(mount), mount.read_log()
    os.rename(file, backup_of(file))
    client.delete("d:f.txt")
    time.sleep(EXPIRED_SECONDS)
    assert not file.exists()
    assert journal_rows(mount, before) == []
    assert mount.read_log() == old_log
    assert os.listdir(mount.path) == ["d", "h.f"]  # d has nothing but a backup
    assert os.listdir(file.parent) == ["f.txt~"]
    assert backup_of(file).read_bytes() == b"old"
    assert_fails(errno.ENOTEMPTY, os.rmdir, file.parent)
    backup_of(file).unlink()
    file.parent.rmdir()


def test_rm_during_the_delay(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """`mv f f~; touch f; rm f` removes the key immediately, as one change."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    with file.open("xb"):
        os.unlink(file)
    wait_until(lambda: not client.exists("d:f.txt"))
    os.rename(mount.path / "h.f", mount.path / "h.f~")
    os.mknod(mount.path / "h.f")
    assert client.hget("h", "f") == b""
    assert [(row["op"], row["path"]) for row in journal_rows(mount, before)] == [
        ("remove", "d/f.txt"),
        ("write", "h.f"),
    ]
    backup_of(file).unlink()
    (mount.path / "h.f~").unlink()


def test_mv_of_a_new_file_during_the_delay(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """Renaming a new file to the backup name too extends the delay; the save after it is the only change."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o644)
    os.rename(file, backup_of(file))
    os.close(descriptor)
    file.write_bytes(b"new")
    wait_until(lambda: client.get("d:f.txt") == b"new")
    time.sleep(EXPIRED_SECONDS)
    assert client.pttl("d:f.txt") > 0
    assert [row["op"] for row in journal_rows(mount, before)] == ["write"]
    backup_of(file).unlink()


# -- removals that are not delayed -------------------------------------------------------------------------------------


def test_keys_outside_allow(client: redis.Redis, mount: MountedServer) -> None:
    """Renaming a key outside --allow to a backup, or replacing it, fails with EACCES immediately."""
    client.set("x", "1")
    wait_until((mount.path / "x").exists)
    assert_fails(errno.EACCES, os.rename, mount.path / "x", mount.path / "x~")
    new = mount.path / "tmpabcdefgh"
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert_fails(errno.EACCES, os.rename, new, mount.path / "x")
    new.unlink()
    with (mount.path / "x").open("rb"):
        assert_fails(errno.EACCES, os.unlink, mount.path / "x")
    time.sleep(0.4)
    assert client.get("x") == b"1"


def test_collections(client: redis.Redis, mount: MountedServer) -> None:
    """A list is renamed to a backup name as a key; it can't be renamed into a junk directory or replaced by a file."""
    client.rpush("l", "a", "b")
    wait_until((mount.path / "l").exists)
    os.rename(mount.path / "l", mount.path / "l~")
    assert client.lrange("l~", 0, -1) == [b"a", b"b"]
    (mount.path / ".Trash-1").mkdir()
    assert_fails(errno.EXDEV, os.rename, mount.path / "l~", mount.path / ".Trash-1" / "l")
    subprocess.run(["mv", str(mount.path / "l~"), str(mount.path / ".Trash-1")], check=True, timeout=20)
    assert (mount.path / ".Trash-1" / "l~").read_bytes() == b"a\nb\n"
    assert not client.exists("l~")
    client.rpush("l", "a", "b")
    wait_until((mount.path / "l").exists)
    assert_fails(errno.EACCES, os.rename, mount.path / ".Trash-1" / "l~", mount.path / "l")
    assert client.lrange("l", 0, -1) == [b"a", b"b"]
    (mount.path / ".Trash-1" / "l~").unlink()
    (mount.path / ".Trash-1").rmdir()


@pytest.mark.expected_log(REMOVED)
def test_trash(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A file that a desktop moves to the trash is removed from Redis, journaled; moved back in time, it stays."""
    before = last_change_id(mount)
    (mount.path / ".Trash-1000" / "files").mkdir(parents=True)
    trashed = mount.path / ".Trash-1000" / "files" / "f.txt"
    os.rename(file, trashed)
    assert trashed.read_bytes() == b"old"
    os.rename(trashed, file)
    os.rename(file, trashed)
    wait_until(lambda: not client.exists("d:f.txt"))
    assert [row["op"] for row in journal_rows(mount, before)] == ["remove"]
    trashed.unlink()
    trashed.parent.rmdir()
    trashed.parent.parent.rmdir()


# -- held files --------------------------------------------------------------------------------------------------------


def test_a_held_file_that_stays(client: redis.Redis, mount: MountedServer) -> None:
    """A temporary file that is not renamed is committed --park-seconds after its close, as one change."""
    before = last_change_id(mount)
    path = mount.path / "tmpab12cd34"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, b"secret")
    os.fsync(descriptor)
    assert not client.exists("tmpab12cd34")
    os.close(descriptor)
    assert path.read_bytes() == b"secret"
    assert path.stat().st_size == 6
    assert "tmpab12cd34" in os.listdir(mount.path)
    with path.open("ab") as more:
        more.write(b"!")
    wait_until(lambda: client.get("tmpab12cd34") == b"secret!")
    assert [(row["op"], row["path"]) for row in journal_rows(mount, before)] == [("create", "tmpab12cd34")]
    assert path.read_bytes() == b"secret!"


def test_a_renamed_held_file(client: redis.Redis, mount: MountedServer) -> None:
    """A held file that is renamed to a name without a key becomes that key immediately, and no other."""
    before = last_change_id(mount)
    path = mount.path / "tmp12345678"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, b"new")
    os.close(descriptor)
    os.rename(path, mount.path / "report")
    assert client.get("report") == b"new"
    assert not path.exists()
    time.sleep(EXPIRED_SECONDS)
    assert not client.keys("tmp*")
    assert [(row["op"], row["path"]) for row in journal_rows(mount, before)] == [("create", "report")]


def test_a_descriptor_of_saved_junk_writes_to_the_key(client: redis.Redis, mount: MountedServer) -> None:
    """Writes to a temporary file after its rename over a key are saved in the key by fsync and close."""
    path = mount.path / ".goutputstream-ABC123"
    assert (mount.path / "h.f").read_bytes() == b"old"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(descriptor, b"new")
    os.rename(path, mount.path / "h.f")
    assert client.hget("h", "f") == b"new"
    os.write(descriptor, b" more")
    os.fsync(descriptor)
    assert client.hget("h", "f") == b"new more"
    os.write(descriptor, b" still")
    os.close(descriptor)
    assert client.hget("h", "f") == b"new more still"


# -- suspension and conflicts ------------------------------------------------------------------------------------------


def test_suspension_extends_the_delay(
    client: redis.Redis, mount: MountedServer, file: Path, server: RedisServer
) -> None:
    """A mount that was suspended for longer than --park-seconds does not remove the key before the editor saves."""
    os.rename(file, backup_of(file))
    mount.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * PARK_SECONDS)
    with monitor_writes(server) as commands:
        mount.process.send_signal(signal.SIGCONT)
        file.write_bytes(b"new")
        wait_until(lambda: client.get("d:f.txt") == b"new")
    assert [words[0] for words in commands] == ["SET"]
    assert client.pttl("d:f.txt") > 0
    backup_of(file).unlink()


def test_a_refused_edit_is_discarded(client: redis.Redis, mount: MountedServer) -> None:
    """After a conflict the file has the size and content that Redis holds, even if it was queried before."""
    path = mount.path / "k"
    client.set("k", "1")
    wait_until(path.exists)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"a long edit")
    client.set("k", "22")
    time.sleep(0.2)
    assert path.stat().st_size == 11
    assert_fails(errno.ESTALE, os.fsync, descriptor)
    wait_until(lambda: path.stat().st_size == 2)
    assert path.read_bytes() == b"22"
    assert_fails(errno.ESTALE, os.close, descriptor)
    assert client.get("k") == b"22"

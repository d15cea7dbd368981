"""A key that is renamed to a backup's name waits for its new content; what becomes of it in the end (DESIGN.md 7)."""

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

from tests.support.changes import journal_rows, last_change_id, monitor_writes
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    MountedServer,
    is_mounted,
    mount_server,
    run_redisfuse,
    wait_until,
)
from tests.support.redis_server import RedisServer

TTL = 3_600_000  # ms
PARKED = 0.5  # seconds: --park-seconds of the shared mount
OVER = PARKED + 0.3  # seconds after which nothing is parked or held any more


@pytest.fixture(scope="module", params=["fusepy", "mfusepy"])
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("parking")
    options = ("--binding", request.param, "--park-seconds", str(PARKED), "--allow", "[^x]*")
    with mount_server(folder, server.tcp_url(), *options, write=True) as mount:
        yield mount
        assert "Traceback" not in mount.read_log()


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    client.set("d:f.txt", "old", px=TTL)
    client.hset("h", "f", "old")
    wait_until(lambda: mount.status()["keys"] == 2 and (mount.path / "h.f").exists())
    wait_until((mount.path / "d" / "f.txt").exists)
    return client


@pytest.fixture
def file(client: redis.Redis, mount: MountedServer) -> Path:
    """The file of `d:f.txt`, which holds `old`."""
    assert client.exists("d:f.txt")
    return mount.path / "d" / "f.txt"


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call fails with an errno."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is checked
        call(*arguments)
    assert raised.value.errno == number, raised.value


def backup_of(file: Path) -> Path:
    """The name under which editors keep what a file held."""
    return file.with_name(file.name + "~")


# -- nothing new comes -------------------------------------------------------------------------------------------------


def test_moved_away_by_hand(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """`mv f f~` removes f from Redis when nothing new came, as one change; the log says where its content is."""
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
    done = run_redisfuse(mount.path.parent, "rollback", str(row["id"]), "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    assert client.get("d:f.txt") == b"old"
    assert 0 < client.pttl("d:f.txt") <= TTL
    wait_until(file.exists)
    backup_of(file).unlink()


def test_a_folder_outlives_its_parked_file(client: redis.Redis, file: Path) -> None:
    """When the last file of a folder goes so, the folder stays until rmdir."""
    os.rename(file, backup_of(file))
    wait_until(lambda: not client.exists("d:f.txt"))
    backup_of(file).unlink()
    assert os.listdir(file.parent) == []
    file.parent.rmdir()


def test_moved_away_and_back(client: redis.Redis, mount: MountedServer, file: Path, server: RedisServer) -> None:
    """`mv f f~; mv f~ f` is no change at all: nothing is sent, nothing journaled, and nothing goes later."""
    before = last_change_id(mount)
    with monitor_writes(server) as commands:
        for name in (file, mount.path / "h.f"):
            os.rename(name, backup_of(name))
            os.rename(backup_of(name), name)
            assert name.read_bytes() == b"old"
        time.sleep(OVER)
    assert commands == []
    assert journal_rows(mount, before) == []
    assert client.pttl("d:f.txt") > 0
    assert not backup_of(file).exists()


def test_it_ends_with_the_mount(server: RedisServer, tmp_path: Path) -> None:
    """At unmount what is parked is removed, and what is held back is made; both are journaled before the mount ends."""
    client = server.client()
    client.flushall()
    client.mset({"f": "old", "g": "old"})
    with mount_server(tmp_path, server.tcp_url(), "--park-seconds", "600", write=True) as mount:
        os.rename(mount.path / "f", mount.path / "f~")
        descriptor = os.open(mount.path / "kept", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, b"new")
        os.close(descriptor)
        time.sleep(0.3)
        assert sorted(client.keys()) == [b"f", b"g"]
        assert sorted(os.listdir(mount.path)) == ["f~", "g", "kept"]
        assert mount.stop() == 0
        assert sorted(client.keys()) == [b"g", b"kept"]
        assert client.get("kept") == b"new"
        rows = {(row["op"], row["path"], row["state"]) for row in journal_rows(mount)}
        assert rows == {("remove", "f", "applied"), ("create", "kept", "applied")}


def test_a_killed_mount_leaves_the_key(server: RedisServer, tmp_path: Path) -> None:
    """If the process dies with a key parked, or unlinked while open, the key is still in Redis and no row says else."""
    client = server.client()
    client.flushall()
    client.mset({"f": "old", "g": "old"})
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        os.rename(mount.path / "f", mount.path / "f~")
        (mount.path / "g").rename(mount.path / "g~")
        (mount.path / "g").open("xb").close()  # a new file, not yet written: parked below it
        mount.process.kill()
        mount.process.wait(MOUNT_TIMEOUT_SECONDS)
        assert client.get("f") == b"old"
        assert client.get("g") in (b"old", b"")  # its close may have made it empty
        subprocess.run(["fusermount", "-uz", str(mount.path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)
        wait_until(lambda: not is_mounted(mount.path))
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        assert sorted(os.listdir(mount.path)) == ["f", "g"]
        assert not [row for row in journal_rows(mount) if row["op"] == "remove"]


# -- somebody else comes -----------------------------------------------------------------------------------------------


def test_changed_while_parked_then_saved(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """Another client's change to a parked key is a conflict for the new save: ESTALE, and the edit is kept."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    client.set("d:f.txt", "theirs")
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.write(descriptor, b"mine")
    refused(errno.ESTALE, os.fsync, descriptor)
    refused(errno.ESTALE, os.close, descriptor)  # it still was not saved
    assert client.get("d:f.txt") == b"theirs"
    wait_until(lambda: file.read_bytes() == b"theirs")
    assert file.stat().st_size == len(b"theirs")
    [row] = journal_rows(mount, before)
    assert row["state"] == "refused"
    time.sleep(OVER)
    assert client.get("d:f.txt") == b"theirs"
    assert len(journal_rows(mount, before)) == 1
    id = str(row["id"])
    shown = run_redisfuse(mount.path.parent, "show", id, "--new", "--journal-file", str(mount.journal))
    assert shown.stdout == "mine", shown.stderr
    done = run_redisfuse(mount.path.parent, "apply", id, "--force", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    assert client.get("d:f.txt") == b"mine"
    backup_of(file).unlink()


def test_changed_while_parked_then_left(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A parked key that another client changed is not removed when its time is over: it is back, with their content."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    assert not file.exists()
    client.set("d:f.txt", "theirs!")
    assert not file.exists()  # so the kernel has just been told that it is not there
    wait_until(file.exists, OVER + 2)
    assert file.read_bytes() == b"theirs!"
    assert "f.txt" in os.listdir(file.parent)
    assert client.get("d:f.txt") == b"theirs!"
    assert journal_rows(mount, before) == []
    assert "d/f.txt was renamed or unlinked here, but stays in Redis: it was changed" in mount.read_log()
    backup_of(file).unlink()


def test_gone_while_parked(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A parked key that another client deletes is just gone: no change of ours, no error in the log."""
    before, said = last_change_id(mount), mount.read_log()
    os.rename(file, backup_of(file))
    client.delete("d:f.txt")
    time.sleep(OVER)
    assert not file.exists()
    assert journal_rows(mount, before) == []
    assert mount.read_log() == said
    assert os.listdir(mount.path) == ["d", "h.f"]  # a folder with nothing but a backup
    assert os.listdir(file.parent) == ["f.txt~"]
    assert backup_of(file).read_bytes() == b"old"
    refused(errno.ENOTEMPTY, os.rmdir, file.parent)
    backup_of(file).unlink()
    file.parent.rmdir()


def test_a_parked_file_can_be_removed(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """`mv f f~; touch f; rm f` removes the key at once, as one change."""
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


def test_a_parked_file_that_is_moved_on(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """A new file that goes to the backup's name too leaves the key parked; the save after it is the one change."""
    before = last_change_id(mount)
    os.rename(file, backup_of(file))
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o644)
    os.rename(file, backup_of(file))
    os.close(descriptor)
    file.write_bytes(b"new")
    wait_until(lambda: client.get("d:f.txt") == b"new")
    time.sleep(OVER)
    assert client.pttl("d:f.txt") > 0
    assert [row["op"] for row in journal_rows(mount, before)] == ["write"]
    backup_of(file).unlink()


# -- what is not parked ------------------------------------------------------------------------------------------------


def test_keys_that_may_not_be_changed(client: redis.Redis, mount: MountedServer) -> None:
    """A key outside --allow can't be renamed to a backup, nor replaced: EACCES at once."""
    client.set("x", "1")
    wait_until((mount.path / "x").exists)
    refused(errno.EACCES, os.rename, mount.path / "x", mount.path / "x~")
    new = mount.path / "tmpabcdefgh"
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    refused(errno.EACCES, os.rename, new, mount.path / "x")
    new.unlink()
    with (mount.path / "x").open("rb"):
        refused(errno.EACCES, os.unlink, mount.path / "x")
    time.sleep(0.4)
    assert client.get("x") == b"1"


def test_collections(client: redis.Redis, mount: MountedServer) -> None:
    """A list is renamed to a backup's name as a key, can't go into a folder of junk, nor be replaced by a file."""
    client.rpush("l", "a", "b")
    wait_until((mount.path / "l").exists)
    os.rename(mount.path / "l", mount.path / "l~")
    assert client.lrange("l~", 0, -1) == [b"a", b"b"]
    (mount.path / ".Trash-1").mkdir()
    refused(errno.EXDEV, os.rename, mount.path / "l~", mount.path / ".Trash-1" / "l")
    subprocess.run(["mv", str(mount.path / "l~"), str(mount.path / ".Trash-1")], check=True, timeout=20)
    assert (mount.path / ".Trash-1" / "l~").read_bytes() == b"a\nb\n"
    assert not client.exists("l~")
    client.rpush("l", "a", "b")
    wait_until((mount.path / "l").exists)
    refused(errno.EACCES, os.rename, mount.path / ".Trash-1" / "l~", mount.path / "l")
    assert client.lrange("l", 0, -1) == [b"a", b"b"]
    (mount.path / ".Trash-1" / "l~").unlink()
    (mount.path / ".Trash-1").rmdir()


def test_put_into_the_trash(client: redis.Redis, mount: MountedServer, file: Path) -> None:
    """What a desktop moves into the trash goes from Redis, journaled; taken out in time, it never was away."""
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


# -- held back ---------------------------------------------------------------------------------------------------------


def test_a_held_file_that_stays(client: redis.Redis, mount: MountedServer) -> None:
    """A file made with O_EXCL and mode 0600 is in Redis a while after it was closed, as one change, not before."""
    before = last_change_id(mount)
    path = mount.path / "id_rsa"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, b"secret")
    os.fsync(descriptor)
    assert not client.exists("id_rsa")
    os.close(descriptor)
    assert path.read_bytes() == b"secret"
    assert path.stat().st_size == 6
    assert "id_rsa" in os.listdir(mount.path)
    with path.open("ab") as more:
        more.write(b"!")
    wait_until(lambda: client.get("id_rsa") == b"secret!")
    assert [(row["op"], row["path"]) for row in journal_rows(mount, before)] == [("create", "id_rsa")]
    assert path.read_bytes() == b"secret!"


def test_a_held_file_with_a_new_name(client: redis.Redis, mount: MountedServer) -> None:
    """Renamed to a name that is no key yet, it is that key at once, and only that."""
    before = last_change_id(mount)
    path = mount.path / "tmp12345678"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, b"new")
    os.close(descriptor)
    os.rename(path, mount.path / "report")
    assert client.get("report") == b"new"
    assert not path.exists()
    time.sleep(OVER)
    assert not client.keys("tmp*")
    assert [(row["op"], row["path"]) for row in journal_rows(mount, before)] == [("create", "report")]


def test_junk_that_was_saved_is_closed(client: redis.Redis, mount: MountedServer) -> None:
    """Who goes on writing to a temporary file after it was renamed over a key is told so, instead of losing bytes."""
    path = mount.path / ".goutputstream-ABC123"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(descriptor, b"new")
    os.rename(path, mount.path / "h.f")
    assert client.hget("h", "f") == b"new"
    refused(errno.ESTALE, os.write, descriptor, b"more")
    os.close(descriptor)
    assert client.hget("h", "f") == b"new"


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_stopped_process_is_not_late(
    client: redis.Redis, mount: MountedServer, file: Path, server: RedisServer
) -> None:
    """A mount that stood still for longer than --park-seconds gives the editor its time all the same."""
    os.rename(file, backup_of(file))
    mount.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * PARKED)
    with monitor_writes(server) as commands:
        mount.process.send_signal(signal.SIGCONT)
        file.write_bytes(b"new")
        wait_until(lambda: client.get("d:f.txt") == b"new")
    assert [words[0] for words in commands] == ["SET"]
    assert client.pttl("d:f.txt") > 0
    backup_of(file).unlink()


def test_a_refused_edit_leaves_no_trace(client: redis.Redis, mount: MountedServer) -> None:
    """After a conflict the file is what Redis holds, in size and content, whatever was asked meanwhile."""
    path = mount.path / "k"
    client.set("k", "1")
    wait_until(path.exists)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"a long edit")
    client.set("k", "22")
    time.sleep(0.2)
    assert path.stat().st_size == 11
    refused(errno.ESTALE, os.fsync, descriptor)
    wait_until(lambda: path.stat().st_size == 2, 2)
    assert path.read_bytes() == b"22"
    refused(errno.ESTALE, os.close, descriptor)
    assert client.get("k") == b"22"

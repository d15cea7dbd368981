"""Temporary files are held back, other files are not; what a close or fsync acknowledged is durable in any case."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id, watch_presence
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

TTL_MS = 3_600_000
HELD = "held by a mount that died"  # logged by the next mount
HOLD_SECONDS = 600  # longer than any test: nothing here is written because its time is over


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    options = ("--binding", request.param, "--park-seconds", str(HOLD_SECONDS))
    with mount_server(tmp_path_factory.mktemp("held"), server.tcp_url(), *options, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("d:k", "old", px=TTL_MS)
    wait_until((mount.path / "d" / "k").exists)
    return client


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a private file on another filesystem."""
    path = tmp_path / "outside"
    path.write_bytes(b"new")
    path.chmod(0o600)
    return path


def run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, timeout=20)


def create_held(directory: Path, content: bytes = b"precious") -> Path:
    """Create, write and close a file as programs create temporary ones."""
    descriptor, name = tempfile.mkstemp(dir=directory)
    os.write(descriptor, content)
    os.close(descriptor)
    return Path(name)


def states(mount: MountedServer, after: int = 0) -> list[tuple[str, str]]:
    return [(row["op"], row["state"]) for row in journal_rows(mount, after)]


# -- files that are not held -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("mv",), ("install", "-m", "600"), ("cp", "-p"), ("cp", "-p", "--remove-destination"), ("cp", "-a")]
)
@pytest.mark.parametrize("name", ["k", "new"])
def test_private_files_are_saved_at_once(
    client: redis.Redis, mount: MountedServer, outside: Path, command: tuple[str, ...], name: str
) -> None:
    """A private file that a command moves or copies into the mount is in Redis when the command ends."""
    run(*command, outside, mount.path / "d" / name)
    assert client.get(f"d:{name}") == b"new"
    assert (client.pttl(f"d:{name}") > TTL_MS - 60_000) == (name == "k")


def test_copies_within_the_mount_are_saved_at_once(client: redis.Redis, mount: MountedServer) -> None:
    """Every file of a mount is private, and its copies are saved at once, too."""
    run("cp", mount.path / "d" / "k", mount.path / "d" / "k.backup")
    assert client.get("d:k.backup") == b"old"


def test_mv_over_a_key_replaces_it_in_milliseconds(
    server: RedisServer, client: redis.Redis, mount: MountedServer, outside: Path
) -> None:
    """`mv` from another filesystem removes the key and creates it again immediately."""
    with watch_presence(server, b"d:k") as presence:
        started = time.monotonic()
        run("mv", outside, mount.path / "d" / "k")
        seconds = time.monotonic() - started
    assert client.get("d:k") == b"new"
    assert presence.missing * 0.0005 < min(seconds, 1)


@pytest.mark.expected_log("the server is out of memory")
def test_a_full_server_refuses_a_private_copy(own_redis: RedisServer, outside: Path, tmp_path: Path) -> None:
    """`cp -p` of a private file fails where the server has no memory for it."""
    client = own_redis.client()
    with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
        client.config_set("maxmemory", 1)
        process = subprocess.run(
            ["cp", "-p", outside, mount.path / "copy"], capture_output=True, text=True, timeout=20, check=False
        )
        assert process.returncode == 1
        assert "No space left" in process.stderr


# -- the copy in the journal -------------------------------------------------------------------------------------------


def test_a_closed_temporary_file_is_in_the_journal(client: redis.Redis, mount: MountedServer) -> None:
    """A held file has one row in the state `held`, with the content as of its last close or fsync."""
    before = last_change_id(mount)
    path = create_held(mount.path / "d")
    assert states(mount, before) == [("create", "held")]
    with path.open("ab") as file:
        file.write(b"!")
        file.flush()
        assert states(mount, before) == [("create", "held")]
        os.fsync(file.fileno())
    [row] = journal_rows(mount, before)
    assert row["state"] == "held"
    shown = run_redisfuse(mount.path.parent, "show", str(row["id"]), "--new", "--journal-file", str(mount.journal))
    assert shown.stdout == "precious!", shown.stderr
    assert not client.exists("d:" + path.name)
    for command in ("rollback", "apply"):
        process = run_redisfuse(mount.path.parent, command, str(row["id"]), "--journal-file", str(mount.journal))
        assert process.returncode != 0
        assert "held" in process.stderr or "temporary" in process.stderr
    os.rename(path, mount.path / "d" / "k")
    assert client.get("d:k") == b"precious!"
    assert client.pttl("d:k") > 0
    wait_until(lambda: states(mount, before) == [("write", "applied")])


@pytest.mark.usefixtures("client")
def test_a_removed_temporary_file_leaves_no_row(mount: MountedServer) -> None:
    """A held file that is removed, or renamed to a junk name, is not in the journal any more."""
    before = last_change_id(mount)
    create_held(mount.path / "d").unlink()
    assert states(mount, before) == []
    path = create_held(mount.path / "d")
    os.rename(path, mount.path / "d" / "k~")
    assert states(mount, before) == []
    (mount.path / "d" / "k~").unlink()


@pytest.mark.usefixtures("client")
def test_an_empty_temporary_file_is_journaled_by_fsync(mount: MountedServer) -> None:
    """A probe, which is created and removed at once, costs nothing; fsync(2) of an empty file makes it durable."""
    before = last_change_id(mount)
    path = create_held(mount.path / "d", b"")
    assert states(mount, before) == []
    with path.open("ab") as file:
        os.fsync(file.fileno())
    assert states(mount, before) == [("create", "held")]
    path.unlink()


def test_a_rename_that_fails_keeps_the_copy(client: redis.Redis, mount: MountedServer) -> None:
    """A held file that can't be renamed over a key is held as before."""
    client.rpush("d:list", "a")
    wait_until((mount.path / "d" / "list").exists)
    before = last_change_id(mount)
    path = create_held(mount.path / "d")
    assert errno_name(os.rename, path, mount.path / "d" / "list") == "EACCES"
    assert path.read_bytes() == b"precious"
    assert states(mount, before) == [("create", "held")]
    path.unlink()


# -- the mount dies ----------------------------------------------------------------------------------------------------


def sync_held(directory: Path) -> Path:
    """Create and write a temporary file, and sync it without closing it."""
    descriptor, name = tempfile.mkstemp(dir=directory)
    os.write(descriptor, b"precious")
    os.fsync(descriptor)
    return Path(name)


def kill(mount: MountedServer) -> None:
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait(20)
    subprocess.run(["fusermount", "-uz", mount.path], check=True, timeout=20)


@pytest.mark.parametrize("create", [create_held, sync_held])
@pytest.mark.parametrize("by", [pytest.param("mount", marks=pytest.mark.expected_log(HELD)), "recover"])
def test_a_killed_mounts_temporary_file_is_written(
    own_redis: RedisServer, tmp_path: Path, create: Callable[[Path], Path], by: str
) -> None:
    """The next mount, or `redisfuse recover`, writes what close or fsync acknowledged, with its expiry."""
    client = own_redis.client()
    with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
        path = create(mount.path)
        os.setxattr(path, "user.redis.ttl", b"%d" % TTL_MS)
        kill(mount)
    assert client.dbsize() == 0
    if by == "mount":
        with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
            assert path.read_bytes() == b"precious"
    else:
        checked = run_redisfuse(tmp_path, "journal", "check")
        assert "is held although its session has ended" in checked.stdout
        process = run_redisfuse(tmp_path, "recover")
        assert process.returncode == 0, process.stderr
        assert f"{path.name}" in process.stdout
        assert "was made" in process.stdout
    assert client.get(path.name) == b"precious"
    assert TTL_MS - 60_000 < client.pttl(path.name) <= TTL_MS
    assert states(mount) == [("create", "applied")]


def test_a_killed_mount_does_not_bring_back_what_was_removed(own_redis: RedisServer, tmp_path: Path) -> None:
    """A temporary file that was removed, or renamed over a key, is not written by recovery."""
    client = own_redis.client()
    with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
        create_held(mount.path).unlink()
        os.rename(create_held(mount.path), mount.path / "k")
        kill(mount)
    with mount_server(tmp_path, own_redis.tcp_url(), write=True):
        assert client.keys() == [b"k"]
        assert client.get("k") == b"precious"


@pytest.mark.expected_log(HELD)
@pytest.mark.parametrize("reason", ["taken", "full"])
def test_a_temporary_file_that_recovery_can_not_write(own_redis: RedisServer, tmp_path: Path, reason: str) -> None:
    """Where the key exists, or the server is full, the content is kept as a change that can be applied."""
    client = own_redis.client()
    with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
        path = create_held(mount.path)
        kill(mount)
    if reason == "taken":
        client.set(path.name, "theirs")
    else:
        client.config_set("maxmemory", 1)
    with mount_server(tmp_path, own_redis.tcp_url(), write=True):
        pass
    client.config_set("maxmemory", 0)
    assert client.get(path.name) == (b"theirs" if reason == "taken" else None)
    [row] = journal_rows(mount)
    assert row["state"] == ("refused" if reason == "taken" else "failed")
    assert run_redisfuse(tmp_path, "apply", str(row["id"]), "--force").returncode == 0
    assert client.get(path.name) == b"precious"


def test_a_running_mounts_temporary_file_is_left_to_it(client: redis.Redis, mount: MountedServer) -> None:
    """`redisfuse recover` does not write what a running mount holds."""
    path = create_held(mount.path / "d")
    process = run_redisfuse(mount.path.parent, "recover", "--journal-file", str(mount.journal))
    assert process.returncode == 0, process.stderr
    assert not client.exists("d:" + path.name)
    path.unlink()


# -- expiries ----------------------------------------------------------------------------------------------------------


def ttl(path: Path) -> int:
    return int(os.getxattr(path, "user.redis.ttl"))


def test_an_expiry_of_a_held_file(client: redis.Redis, mount: MountedServer) -> None:
    """user.redis.ttl of a file that is not in Redis yet can be set and read, and is set with its first commit."""
    path = create_held(mount.path / "d")
    with pytest.raises(OSError, match="No data"):
        ttl(path)
    os.setxattr(path, "user.redis.ttl", b"5000000")
    assert 4_900_000 < ttl(path) <= 5_000_000
    assert os.listxattr(path) == ["user.redis.ttl"]
    assert errno_name(os.setxattr, path, "user.redis.ttl", b"0") == "EINVAL"
    os.rename(path, mount.path / "d" / "k")
    assert 4_900_000 < client.pttl("d:k") <= 5_000_000
    with (mount.path / "d" / "open").open("xb") as file:
        os.setxattr(file.fileno(), "user.redis.ttl", b"5000000")
        os.setxattr(file.fileno(), "user.redis.ttl", b"-1")
        assert ttl(mount.path / "d" / "open") == -1
        file.write(b"x")
    assert client.pttl("d:open") == -1


@pytest.mark.parametrize(
    "command", [("cp", "-a"), ("rsync", "-aX"), ("mv",), ("rsync", "-aX", "--inplace")], ids=" ".join
)
@pytest.mark.parametrize("name", ["k", "new"])
def test_expiries_survive_copies(
    client: redis.Redis, mount: MountedServer, tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    """Programs that copy extended attributes carry the expiry out of the mount and back."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    client.set("d:k", "old", px=2 * TTL_MS)
    outside = tmp_path / "k"
    run(*command, mount.path / "d" / "k", outside)
    if "user.redis.ttl" not in os.listxattr(outside):
        pytest.skip("needs a temporary directory on a filesystem with extended attributes")
    client.set("d:k", "other", px=TTL_MS)
    if command == ("mv",):
        client.delete("d:k")
    run(*command, outside, mount.path / "d" / name)
    assert client.get(f"d:{name}") == b"old"
    assert 2 * TTL_MS - 60_000 < client.pttl(f"d:{name}") <= 2 * TTL_MS


def test_an_expiry_carries_over_to_the_next_file_of_the_program(client: redis.Redis, mount: MountedServer) -> None:
    """Where one program removes a file and creates it again within a second, the expiry stays; else it doesn't."""
    path = mount.path / "d" / "k"

    def recreate(pause: float = 0.0) -> int:
        client.set("d:k", "old", px=TTL_MS)
        path.unlink()
        time.sleep(pause)
        path.write_bytes(b"new")
        assert client.get("d:k") == b"new"
        ttl: int = client.pttl("d:k")
        return ttl

    assert recreate() > TTL_MS - 60_000
    assert recreate(1.1) == -1
    client.set("d:k", "old", px=TTL_MS)
    run("rm", path)
    path.write_bytes(b"new")
    assert client.pttl("d:k") == -1


def test_a_key_stays_a_key(client: redis.Redis, mount: MountedServer, outside: Path) -> None:
    """A key with a dot in its name that a program replaces does not become a field of a hash."""
    client.set("d:notes.txt", "old", px=TTL_MS)
    path = mount.path / "d" / "notes.txt"
    wait_until(path.exists)
    run("mv", outside, path)
    assert client.get("d:notes.txt") == b"new"
    assert client.pttl("d:notes.txt") > TTL_MS - 60_000


def test_an_expiry_of_a_hash_carries_over(client: redis.Redis, mount: MountedServer) -> None:
    """Where the only field of a hash is removed and created again, the hash expires as before."""
    client.hset("d:h", "f", "old")
    client.pexpire("d:h", TTL_MS)
    path = mount.path / "d" / "h.f"
    wait_until(path.exists)
    path.unlink()
    path.write_bytes(b"new")
    assert client.hget("d:h", "f") == b"new"
    assert client.pttl("d:h") > TTL_MS - 60_000


@pytest.mark.usefixtures("client")
def test_the_attributes_of_a_copy_are_its_own(mount: MountedServer) -> None:
    """Setting the attributes that describe a key succeeds without effect, as chmod(2) does."""
    path = mount.path / "d" / "k"
    for name in ("key", "type", "encoding", "length"):
        before = os.getxattr(path, f"user.redis.{name}")
        os.setxattr(path, f"user.redis.{name}", b"other")
        assert os.getxattr(path, f"user.redis.{name}") == before
    assert errno_name(os.setxattr, path, "user.redis.other", b"") == "ENOTSUP"

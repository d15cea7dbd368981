"""Writing through a real mount: each save is one change, in Redis and in the journal, and changes no other key."""

import contextlib
import mmap
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id, monitor_writes
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

MIB = 1024 * 1024


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("writing")
    with mount_server(folder, server.tcp_url(), "--binding", request.param, "--park-seconds", "1", write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    wait_until(lambda: mount.status()["ready"] and not mount.status()["keys"])
    return client


def shell(mount: MountedServer, script: str) -> None:
    subprocess.run(["bash", "-c", script], cwd=mount.path, check=True, timeout=30, capture_output=True)


@pytest.mark.parametrize(
    ("script", "content"),
    [
        ("echo x > k", b"x\n"),
        ("echo y >> k", b"old\ny\n"),
        ("sh -c 'echo a; echo b' > k", b"a\nb\n"),
        ("sh -c '/bin/echo a; /bin/echo b; /bin/echo c' > k", b"a\nb\nc\n"),
        ("{ /bin/echo a; /bin/echo b; } > k", b"a\nb\n"),
        ("echo t | tee k", b"t\n"),
        ("echo t | tee -a k", b"old\nt\n"),
        ("printf X | dd of=k conv=notrunc bs=1 seek=1", b"oXd\n"),
        ("truncate -s 2 k", b"ol"),
        ("truncate -s 6 k", b"old\n\0\0"),
        (": > k", b""),
        ("cp /etc/hostname k", None),
        ("python3 -c \"open('k', 'r+').write('NEW')\"", b"NEW\n"),
    ],
)
def test_a_redirection_makes_one_change(
    server: RedisServer, client: redis.Redis, mount: MountedServer, script: str, content: bytes | None
) -> None:
    """A redirection of the shell is one write command and one row, and keeps the TTL."""
    client.set("k", "old\n", px=600_000)
    wait_until(lambda: (mount.path / "k").exists())
    before = last_change_id(mount)
    with monitor_writes(server, b"k") as commands:
        shell(mount, script)
        expected = Path("/etc/hostname").read_bytes() if content is None else content
        wait_until(lambda: client.get("k") == expected)
        wait_until(lambda: [row["state"] for row in journal_rows(mount, before)] == ["applied"])
    assert len(commands) == 1, commands
    assert 590_000 < client.pttl("k") <= 600_000
    [row] = journal_rows(mount, before)
    assert (row["state"], row["path"]) == ("applied", "k")


def test_a_file_that_was_just_removed_can_be_created(client: redis.Redis, mount: MountedServer) -> None:
    """O_CREAT of a name that the kernel caches creates the file if another client has just removed the key."""
    created = 0
    for _ in range(20):
        client.set("gone", "before")
        time.sleep(0.05)
        wait_until(lambda: (mount.path / "gone").exists())
        client.delete("gone")
        descriptor = os.open(mount.path / "gone", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"created")
        with contextlib.suppress(OSError):  # ESTALE: the open did not know of the removal yet
            os.close(descriptor)
            assert client.get("gone") == b"created"
            created += 1
    assert created


def test_new_files_become_strings_and_fields(client: redis.Redis, mount: MountedServer) -> None:
    """A new file is a string, or a field if its name has a dot: `HASH.FIELD`.

    A name with the suffix `.lock`, or with an existing string's name before the dot, is a string.
    """
    (mount.path / "plain").write_text("1")
    (mount.path / "hash.field").write_text("2")
    (mount.path / "x.lock").write_text("3")
    (mount.path / "plain.txt").write_text("4")
    (mount.path / "dir").mkdir()
    (mount.path / "dir" / "leaf").write_text("5")
    assert client.get("plain") == b"1"
    assert client.hgetall("hash") == {b"field": b"2"}
    assert client.get("x.lock") == b"3"
    assert client.get("plain.txt") == b"4"
    assert client.get("dir:leaf") == b"5"
    assert sorted(os.listdir(mount.path)) == ["dir", "hash.field", "plain", "plain.txt", "x.lock"]


def test_a_temporary_file_of_a_new_key_is_no_hash(client: redis.Redis, mount: MountedServer) -> None:
    """`NAME.tmp` can be renamed to NAME, as programs create files; in a hash, it is a field like any other."""
    shell(mount, "printf new > fresh.tmp && mv fresh.tmp fresh; printf new > fresh2.part && mv fresh2.part fresh2")
    assert (client.get("fresh"), client.get("fresh2")) == (b"new", b"new")
    client.hset("h", "f", "1")
    wait_until((mount.path / "h.f").exists)
    (mount.path / "h.tmp").write_bytes(b"2")
    assert client.hgetall("h") == {b"f": b"1", b"tmp": b"2"}


def test_bad_names_are_refused(client: redis.Redis, mount: MountedServer) -> None:
    """A name that is no encoding of a key is EINVAL; a name over 255 bytes is ENAMETOOLONG."""
    for name, error in (("a:b", 22), ("x" * 256, 36)):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is checked
            (mount.path / name).write_text("x")
        assert raised.value.errno == error, name
    assert client.dbsize() == 0


def test_collections_are_read_only_but_can_be_removed(client: redis.Redis, mount: MountedServer) -> None:
    """A list can't be opened for writing (EACCES), but removed; a rollback restores it with its TTL."""
    client.rpush("list", "a", "b")
    client.pexpire("list", 600_000)
    wait_until(lambda: (mount.path / "list").exists())
    with pytest.raises(PermissionError):
        (mount.path / "list").open("w")
    (mount.path / "list").unlink()
    assert not client.exists("list")
    change = last_change_id(mount)
    done = run_redisfuse(mount.path.parent, "rollback", str(change), "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    assert client.lrange("list", 0, -1) == [b"a", b"b"]
    assert 500_000 < client.pttl("list") <= 600_000


def test_directories_live_until_rmdir(client: redis.Redis, mount: MountedServer) -> None:
    """mkdir, emptying and rmdir behave as in any filesystem, and write nothing to Redis."""
    path = mount.path / "d"
    path.mkdir()
    (path / "f").write_text("1")
    with pytest.raises(OSError, match="not empty"):
        path.rmdir()
    (path / "f").unlink()
    assert os.listdir(path) == []
    assert client.dbsize() == 0
    path.rmdir()
    assert not path.exists()
    client.set("e:f", "1")
    wait_until(lambda: (mount.path / "e" / "f").exists())
    (mount.path / "e" / "f").unlink()
    assert (mount.path / "e").is_dir()
    (mount.path / "e").rmdir()


def test_renames(client: redis.Redis, mount: MountedServer) -> None:
    """Rename strings, fields, whole keys and directories; a string takes over the TTL of the string it replaces."""
    client.set("a", "A")
    client.set("b", "B", px=600_000)
    client.hset("h", mapping={"f": "F"})
    client.rpush("l", "1")
    client.mset({"dir:x": "1", "dir:sub:y": "2"})
    wait_until(lambda: mount.status()["keys"] == 6)
    path = mount.path
    os.rename(path / "a", path / "b")
    assert client.get("b") == b"A"
    assert client.pttl("b") > 500_000
    os.rename(path / "h.f", path / "h.g")
    assert client.hgetall("h") == {b"g": b"F"}
    os.rename(path / "b", path / "h.s")
    assert client.hget("h", "s") == b"A"
    os.rename(path / "h.g", path / "out")
    assert client.get("out") == b"F"
    os.rename(path / "l", path / "m")
    assert client.lrange("m", 0, -1) == [b"1"]
    os.rename(path / "dir", path / "other")
    assert sorted(client.keys("*:*")) == [b"other:sub:y", b"other:x"]
    assert (path / "other" / "sub" / "y").read_text() == "2"
    assert not (path / "dir").exists()


def test_ttl_by_extended_attribute(client: redis.Redis, mount: MountedServer) -> None:
    """Setting user.redis.ttl sets the expiry, and -1 removes it; both are journaled."""
    client.set("k", "1")
    wait_until(lambda: (mount.path / "k").exists())
    before = last_change_id(mount)
    os.setxattr(mount.path / "k", "user.redis.ttl", b"60000")
    assert 50_000 < client.pttl("k") <= 60_000
    os.setxattr(mount.path / "k", "user.redis.ttl", b"-1")
    assert client.pttl("k") == -1
    assert [row["op"] for row in journal_rows(mount, before)] == ["expire", "expire"]
    for value in (b"soon", b"-5"):
        with pytest.raises(OSError, match="Invalid"):
            os.setxattr(mount.path / "k", "user.redis.ttl", value)


def test_two_handles_share_one_file(client: redis.Redis, mount: MountedServer) -> None:
    """Two descriptors of a file see each other's writes at once, also after the file is unlinked."""
    path = mount.path / "k"
    with path.open("w+b", buffering=0) as one, path.open("r+b", buffering=0) as two:
        one.write(b"hello")
        assert two.read() == b"hello"
        two.seek(0)
        two.write(b"J")
        one.seek(0)
        assert one.read() == b"Jello"
        assert os.fstat(one.fileno()).st_size == 5
        path.unlink()
        assert not client.exists("k")
        assert not path.exists()
        assert "k" not in os.listdir(mount.path)
        one.seek(0)
        assert one.read() == b"Jello"
        one.write(b"!")
        assert os.fstat(two.fileno()).st_size == 6
    assert not client.exists("k")
    assert client.keys("*fuse*") == []


def test_mmap_writes(client: redis.Redis, mount: MountedServer) -> None:
    """A write through a shared mapping is saved."""
    client.set("k", b"0123456789")
    wait_until(lambda: (mount.path / "k").exists())
    with (mount.path / "k").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[2:4] = b"XY"
        mapping.flush()
    wait_until(lambda: client.get("k") == b"01XY456789")


def test_a_folder_of_long_names_is_removed(client: redis.Redis, mount: MountedServer) -> None:
    """`rm -r` removes keys whose long names are split into directories.

    A piece of a name is a directory like any other: rmdir fails while it contains a key.
    """
    client.mset({b"q:" + b"L" * 400: "x", b"q:" + b"L" * 700: "y", "q:z": "z"})
    wait_until(lambda: (mount.path / "q" / "z").exists())
    (piece,) = (path for path in (mount.path / "q").iterdir() if path.is_dir())
    with pytest.raises(OSError, match="not empty"):
        piece.rmdir()
    subprocess.run(["rm", "-r", mount.path / "q"], check=True, timeout=30)
    assert client.dbsize() == 0
    assert not piece.exists()
    assert not (mount.path / "q").exists()


@pytest.mark.parametrize("source", ["view%json", "list", "gone"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_rename_that_fails_leaves_the_open_file(
    client: redis.Redis, mount: MountedServer, source: str, flags: int
) -> None:
    """The open target of a failed rename still exists, and later writes to it are saved."""
    client.mset({"view": "x", "gone": "x"})
    client.rpush("list", "x")
    client.hset("h", "f", "field")
    client.set("k", "precious", px=1_000_000)
    target = mount.path / ("h.f" if source == "list" else "k")
    wait_until(lambda: target.exists() and (mount.path / source).exists())
    before = last_change_id(mount)
    descriptor = os.open(target, flags)
    content = target.read_bytes()
    if flags == os.O_RDWR:
        os.pwrite(descriptor, b"P", 0)
        content = b"P" + content[1:]
    if source == "gone":
        client.delete("gone")
    with pytest.raises(OSError, match=r"denied|Invalid|No such file"):
        (mount.path / source).rename(target)
    time.sleep(0.5)  # the target's removal is pending for 0.2 seconds
    assert target.read_bytes() == os.pread(descriptor, 100, 0) == content
    assert os.fstat(descriptor).st_size == len(content)
    if flags == os.O_RDWR:
        os.pwrite(descriptor, b"!", len(content))
        content += b"!"
    os.close(descriptor)
    assert target.read_bytes() == content
    assert (client.hget("h", "f") if source == "list" else client.get("k")) == content
    assert client.pttl("k") > 0
    assert [row["op"] for row in journal_rows(mount, before)] == ["write"] * (flags == os.O_RDWR)
    target.unlink()
    assert not client.exists("h" if source == "list" else "k")


def test_a_string_does_not_replace_an_open_list(client: redis.Redis, mount: MountedServer) -> None:
    """A rename of a string onto an open list fails, as onto any list; a rename of another list replaces it."""
    client.set("k", "v")
    client.rpush("list", "x")
    client.rpush("list2", "y")
    wait_until(lambda: all((mount.path / name).exists() for name in ("k", "list", "list2")))
    with (mount.path / "list").open("rb") as file:
        with pytest.raises(PermissionError):
            (mount.path / "k").rename(mount.path / "list")
        time.sleep(0.5)
        assert client.lrange("list", 0, -1) == [b"x"]
        (mount.path / "list2").rename(mount.path / "list")
        assert file.read() == b"x\n"
    assert client.lrange("list", 0, -1) == [b"y"]
    with (mount.path / "list").open("rb"):
        (mount.path / "list").unlink()
        wait_until(lambda: not client.exists("list"))


def test_a_conflicting_save_is_refused_and_journaled(client: redis.Redis, mount: MountedServer) -> None:
    """A value that another client changed since the open is not overwritten (ESTALE); `apply` writes it later."""
    client.set("k", "mine")
    wait_until(lambda: (mount.path / "k").exists())
    before = last_change_id(mount)
    file = (mount.path / "k").open("r+b", buffering=0)
    file.write(b"edit")
    client.set("k", "theirs")
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is checked
        file.close()
    assert raised.value.errno == 116
    assert client.get("k") == b"theirs"
    [row] = journal_rows(mount, before)
    assert row["state"] == "refused"
    wait_until(lambda: (mount.path / "k").read_bytes() == b"theirs")
    done = run_redisfuse(mount.path.parent, "apply", str(row["id"]), "--force", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    assert client.get("k") == b"edit"


def test_an_append_sends_little(client: redis.Redis, mount: MountedServer) -> None:
    """Appending 1 KiB to a 100 MB string sends and journals at most 64 KiB."""
    client.set("big", bytes(100_000_000))
    wait_until(lambda: (mount.path / "big").exists())
    time.sleep(1)
    before = mount.status()
    size = mount.journal.stat().st_size
    shell(mount, "head -c 1024 /dev/zero >> big")
    wait_until(lambda: client.strlen("big") == 100_001_024)
    after = mount.status()
    assert after["bytes_sent"] - before["bytes_sent"] < 64 * 1024
    assert after["bytes_received"] - before["bytes_received"] < 64 * 1024
    assert mount.journal.stat().st_size - size < 64 * 1024
    client.delete("big")


def test_a_large_file_is_exact_in_little_memory(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """A file of 200 MB is saved byte by byte, and the process stays below 64 MiB over idle."""
    import psutil

    source = tmp_path / "source"
    with source.open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1_000_000))
    process = psutil.Process(mount.process.pid)
    idle = process.memory_info().rss
    highest = [idle]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        shutil.copyfile(source, mount.path / "large")
    finally:
        done.set()
        watcher.join()
    assert client.get("large") == source.read_bytes()
    assert highest[0] - idle < 64 * MIB
    client.delete("large")


def test_a_size_over_the_limit_is_refused(client: redis.Redis, mount: MountedServer) -> None:
    """A size over 512 MiB is EFBIG, and the key is unchanged."""
    client.set("k", "x")
    wait_until(lambda: (mount.path / "k").exists())
    with pytest.raises(OSError, match="too large"):
        os.truncate(mount.path / "k", 512 * MIB + 1)
    assert client.get("k") == b"x"


def test_the_journal_is_readable_with_sqlite(client: redis.Redis, mount: MountedServer) -> None:
    """The view `history` shows the changes as text."""
    (mount.path / "k").write_text("1")
    wait_until(lambda: client.get("k") == b"1")
    with sqlite3.connect(f"file:{mount.journal}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT op, path, key FROM history ORDER BY id DESC LIMIT 1").fetchall()
    assert rows == [("create", "k", "k")]


def test_empty_directories_roll_back(client: redis.Redis, mount: MountedServer) -> None:
    """A rename and an rmdir of empty directories are rolled back while mounted, and the mount soon shows it."""
    assert client.dbsize() == 0
    path = mount.path
    (path / "made").mkdir()
    (path / "made" / "inner").mkdir()
    before = last_change_id(mount)
    os.rename(path / "made", path / "moved")
    assert (path / "moved" / "inner").is_dir()
    assert not (path / "made").exists()
    assert {row["op"] for row in journal_rows(mount, before)} == {"rename"}
    done = run_redisfuse(
        path.parent, "rollback", str(last_change_id(mount)), "--yes", "--journal-file", str(mount.journal)
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: (path / "made" / "inner").is_dir() and not (path / "moved").exists())
    (path / "made" / "inner").rmdir()
    change = last_change_id(mount)
    done = run_redisfuse(path.parent, "rollback", str(change), "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: (path / "made" / "inner").is_dir())
    (path / "made" / "inner").rmdir()
    (path / "made").rmdir()

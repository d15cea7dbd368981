"""Files have identity: descriptors, mappings and working directories stay with their file, whatever its name is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.expected_state import renameat2
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("identity")
    with mount_server(folder, server.tcp_url(), "--binding", request.param, write=True) as mount:
        mount.wait_coherent()
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    wait_until(lambda: mount.status()["ready"] and not mount.status()["keys"])
    return client


@pytest.fixture
def folder(mount: MountedServer, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Create a directory in the mount, which a test may enter."""
    path = mount.path / f"d{abs(hash(request.node.name)) % 10**9}"
    path.mkdir()
    with contextlib.chdir("/"):
        yield path


def errno_of(call: object, *arguments: object) -> int:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is compared
        call(*arguments)  # type: ignore[operator]
    return caught.value.errno or 0


# -- working directories -----------------------------------------------------------------------------------------------


def test_a_working_directory_stays_valid(client: redis.Redis, folder: Path) -> None:
    """getcwd(3) works while keys come and go in a directory, by this mount and by another client."""
    os.chdir(folder)
    key = f"{folder.name}:theirs"
    for step in (
        lambda: Path("x").write_text("1"),
        lambda: os.unlink("x"),
        lambda: Path("y").write_text("1"),
        lambda: os.rename("y", "z"),
        lambda: client.set(key, 1),
        lambda: client.delete(key),
        lambda: os.mkdir("sub"),
        lambda: os.rmdir("sub"),
    ):
        step()  # type: ignore[no-untyped-call]
        for pause in (0, 0.2):
            time.sleep(pause)
            assert os.getcwd() == str(folder)
            os.listdir(".")


def test_a_new_working_directory_stays_valid(client: redis.Redis, folder: Path) -> None:
    """getcwd(3) works in a new directory, although the notification that its name came arrives after mkdir(2)."""
    keys = [f"{folder.name}:busy:{number}" for number in range(500)]
    client.mset(dict.fromkeys(keys, "0"))
    wait_until(lambda: (folder / "busy" / "499").exists())
    for number in range(20):
        for key in keys:
            (folder / "busy" / key.rpartition(":")[2]).stat()
        client.mset(dict.fromkeys(keys, str(number)))  # the kernel is notified of each first
        os.mkdir(folder / f"new{number}")
        os.chdir(folder / f"new{number}")
        for _ in range(10):
            time.sleep(0.002)
            assert os.getcwd() == str(folder / f"new{number}")
        os.chdir("/")


def test_a_directory_with_the_name_of_a_removed_file_stays_valid(folder: Path) -> None:
    """The notification that the file went doesn't drop the directory that has its name by then."""
    names = [f"f{number}" for number in range(10)]
    for name in names:
        (folder / name).write_text("1")
    time.sleep(1)  # the notifications of their creation are written
    for name in names:
        os.unlink(folder / name)
        os.mkdir(folder / name)
        os.chdir(folder / name)
        for _ in range(20):
            time.sleep(0.002)
            assert os.getcwd() == str(folder / name)
        os.chdir("/")


def test_everything_survives_a_rename_above_it(client: redis.Redis, folder: Path) -> None:
    """A working directory, an open file, a mapping and a lock stay usable when a directory above is renamed."""
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "f").write_bytes(b"0123456789")
    os.chdir(folder / "a" / "b")
    with open("f", "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert mapped[:4] == b"0123"
        os.rename(folder / "a", folder / "renamed")
        assert os.getcwd() == str(folder / "renamed" / "b")
        assert os.listdir(".") == ["f"]
        assert mapped[:] == b"0123456789"
        mapped[:2] = b"MM"
        mapped.flush()
        os.pwrite(file.fileno(), b"W", 9)
        os.fsync(file.fileno())
        assert client.get(f"{folder.name}:renamed:b:f") == b"MM2345678W"
        other = os.open(folder / "renamed" / "b" / "f", os.O_RDWR)
        assert errno_of(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EWOULDBLOCK
        os.close(other)
        Path("new").write_text("1")
    assert client.exists(f"{folder.name}:renamed:b:new")
    assert not client.keys(f"{folder.name}:a*")


def test_an_open_directory_is_listed_after_its_rename(client: redis.Redis, folder: Path) -> None:
    """A descriptor of a directory lists it under its new name, wherever the listing was when the name changed."""
    names = [f"{number:04}" for number in range(1500)]  # more than the kernel fetches at once, and than one batch
    client.mset({f"{folder.name}:a:{name}": 1 for name in names})
    wait_until(lambda: (folder / "a" / names[-1]).exists() and len(os.listdir(folder / "a")) == len(names))
    descriptor = os.open(folder / "a", os.O_RDONLY)
    try:
        os.rename(folder / "a", folder / "b")
        assert sorted(os.listdir(descriptor)) == names
        with os.scandir(descriptor) as entries:
            listed = [next(entries).name]
            os.rename(folder / "b", folder / "a")
            listed += [entry.name for entry in entries]
        assert sorted(listed) == names
        os.mkdir(folder / "b")
        os.mknod(folder / "b" / "other")
        assert sorted(os.listdir(descriptor)) == names
        with os.scandir(descriptor) as entries:  # renamed twice: the listing fails, since it can't be complete
            next(entries)
            os.rename(folder / "a", folder / "c")
            for _ in range(1200):
                next(entries)
            os.rename(folder / "c", folder / "a")
            assert errno_of(list, entries) == errno.ESTALE
        assert sorted(os.listdir(descriptor)) == names
    finally:
        os.close(descriptor)


def test_attributes_of_directories(folder: Path) -> None:
    """Every listed attribute of an empty directory can be read, and set without effect: programs copy them."""
    (folder / "empty").mkdir()
    attributes = {name: os.getxattr(folder / "empty", name) for name in os.listxattr(folder / "empty")}
    assert attributes["user.redis.listed-as"] == b"fields"
    for name, value in attributes.items():
        os.setxattr(folder / "empty", name, value)
    shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))
    descriptor = os.open(folder / "empty", os.O_RDONLY)
    try:
        os.rmdir(folder / "empty")
        assert os.listxattr(descriptor) == []
        assert errno_of(os.getxattr, descriptor, "user.redis.prefix") == errno.ENODATA
    finally:
        os.close(descriptor)


def test_listed_attributes_follow_the_name(client: redis.Redis, folder: Path) -> None:
    """The attributes that an inode is known to have are those of its name now: a key's, then a field's."""
    field = "user.redis.field"
    client.hset(f"{folder.name}:hash", "other", "1")
    wait_until((folder / "hash").exists)
    (folder / "f").write_bytes(b"content")
    wait_until(lambda: "user.redis.key" in os.listxattr(folder / "f"))
    descriptor = os.open(folder / "f", os.O_PATH)
    try:
        assert field not in os.listxattr(folder / "f")
        os.rename(folder / "f", folder / "hash.f")
        assert os.listxattr(f"/proc/self/fd/{descriptor}") == os.listxattr(folder / "hash.f")
        assert field in os.listxattr(folder / "hash.f")
    finally:
        os.close(descriptor)
    client.delete(f"{folder.name}:hash")
    wait_until(lambda: not (folder / "hash.f").exists())
    client.set(f"{folder.name}:hash.f", "a key")
    wait_until((folder / "hash.f").exists, 5)
    assert field not in os.listxattr(folder / "hash.f")


# -- unlinked and renamed files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_an_open_file_that_is_removed(client: redis.Redis, folder: Path, size: int) -> None:
    """The key is gone when unlink(2) returns, nothing hidden appears, and the descriptor keeps its bytes."""
    content = os.urandom(size)
    (folder / "f").write_bytes(content)
    with open(folder / "f", "r+b", buffering=0) as file:
        os.unlink(folder / "f")
        assert not client.exists(f"{folder.name}:f")
        assert os.listdir(folder) == []
        assert not (folder / "f").exists()
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size) == (0, size)
        assert os.pread(file.fileno(), size, 0) == content
        os.pwrite(file.fileno(), b"mine", 2)
        os.ftruncate(file.fileno(), 8)
        assert os.pread(file.fileno(), 100, 0) == content[:2] + b"mine" + content[6:8]
        assert os.fstat(file.fileno()).st_size == 8
        (folder / "f").write_bytes(b"new")
        os.fsync(file.fileno())
    assert client.get(f"{folder.name}:f") == b"new"
    assert not client.keys("*fuse_hidden*")


def test_an_unlinked_file_is_not_the_new_one_of_its_name(client: redis.Redis, folder: Path) -> None:
    """Calls on an unlinked file through /proc don't reach the file that has its name by now."""
    path = folder / "f"
    path.write_bytes(b"the unlinked one")
    with path.open("rb+", buffering=0) as file:
        path.unlink()
        path.write_bytes(b"the new one")
        os.setxattr(path, "user.redis.ttl", b"1000000")
        own = f"/proc/self/fd/{file.fileno()}"
        assert errno_of(os.getxattr, own, "user.redis.ttl") == errno.ENODATA
        assert errno_of(os.setxattr, own, "user.redis.ttl", b"5") == errno.ENOENT
        os.truncate(own, 3)
        assert file.read() == b"the"
        with open(own, "rb") as again:
            assert again.read() == b"the"
    assert path.read_bytes() == b"the new one"
    assert client.get(f"{folder.name}:f") == b"the new one"
    assert client.ttl(f"{folder.name}:f") > 900


def test_an_open_file_keeps_its_path(client: redis.Redis, folder: Path) -> None:
    """/proc/PID/fd shows the path of an open file after saves through it and changes by other clients."""
    path = folder / "f"
    path.write_bytes(b"some content")
    with path.open("rb+", buffering=0) as file:
        link = f"/proc/self/fd/{file.fileno()}"
        file.write(b"S")
        os.fsync(file.fileno())
        assert os.readlink(link) == str(path)
        client.set(f"{folder.name}:f", "changed")
        client.set(f"{folder.name}:g", "announced after it")
        wait_until((folder / "g").exists)
        assert os.readlink(link) == str(path)


def test_a_rename_over_an_open_file(client: redis.Redis, folder: Path) -> None:
    """The name has the new file at once; descriptors of the replaced one keep reading and writing its old bytes."""
    (folder / "old").write_bytes(b"old bytes")
    (folder / "new").write_bytes(b"new")
    with open(folder / "old", "r+b", buffering=0) as replaced, open(folder / "new", "r+b", buffering=0) as moved:
        assert os.read(replaced.fileno(), 3) == b"old"
        os.rename(folder / "new", folder / "old")
        assert client.get(f"{folder.name}:old") == b"new"
        assert (folder / "old").read_bytes() == b"new"
        assert os.pread(replaced.fileno(), 100, 0) == b"old bytes"
        os.pwrite(replaced.fileno(), b"OLD", 0)
        assert os.fstat(replaced.fileno()).st_nlink == 0
        os.pwrite(moved.fileno(), b"NEWER", 0)
    assert client.get(f"{folder.name}:old") == b"NEWER"
    assert os.listdir(folder) == ["old"]


def test_a_rename_over_an_open_file_that_fails(client: redis.Redis, folder: Path) -> None:
    """After a refused rename the file that was to be replaced still has its key, and its descriptor saves there."""
    client.rpush(f"{folder.name}:list", 1)
    wait_until(lambda: (folder / "list").exists())
    (folder / "f").write_bytes(b"content")
    with open(folder / "f", "r+b", buffering=0) as file:
        assert errno_of(os.rename, folder / "f", folder / "list") == errno.EACCES
        os.write(file.fileno(), b"C")
    assert client.get(f"{folder.name}:f") == b"Content"


@pytest.mark.possible_log("was renamed to the junk name")  # on a busy machine it is there for more than --park-seconds
def test_a_descriptor_follows_its_file_into_memory_and_back(client: redis.Redis, folder: Path) -> None:
    """A file renamed to a junk name and from one: writes of its descriptor go where the file is."""
    (folder / "f").write_bytes(b"one")
    with open(folder / "f", "r+b", buffering=0) as file:
        os.rename(folder / "f", folder / ".f.swp")
        os.pwrite(file.fileno(), b"two", 0)
        assert (folder / ".f.swp").read_bytes() == b"two"
        os.rename(folder / ".f.swp", folder / "g")
        os.pwrite(file.fileno(), b"three", 0)
        os.fsync(file.fileno())
        assert client.get(f"{folder.name}:g") == b"three"
        os.pwrite(file.fileno(), b"T", 0)
    assert client.get(f"{folder.name}:g") == b"Three"


# -- attributes of directories -----------------------------------------------------------------------------------------


def test_links_of_directories(client: redis.Redis, folder: Path) -> None:
    """st_nlink of a directory is 2 and its subdirectories: of keys, empty ones, and junk."""
    assert folder.stat().st_nlink == 2
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "f").write_text("1")
    (folder / "file").write_text("1")
    (folder / ".git").mkdir()
    assert folder.stat().st_nlink == 5
    client.set(f"{folder.name}:theirs:k", 1)
    wait_until(lambda: folder.stat().st_nlink == 6)
    os.rmdir(folder / "empty")
    assert folder.stat().st_nlink == 5


def test_times_of_directories(folder: Path) -> None:
    """Each change of a name moves mtime and ctime of its directory; the times of a new directory are now."""
    assert abs(folder.stat().st_mtime - time.time()) < 5
    before = time.time_ns()
    (folder / "sub").mkdir()
    assert (folder / "sub").stat().st_mtime_ns >= before
    (folder / "f").write_text("1")
    for change in (
        lambda: os.mkdir(folder / "d"),
        lambda: os.rmdir(folder / "d"),
        lambda: os.close(os.open(folder / "c", os.O_CREAT | os.O_WRONLY)),
        lambda: os.rename(folder / "c", folder / "r"),
        lambda: os.rename(folder / "r", folder / "sub" / "r"),
        lambda: os.unlink(folder / "f"),
        lambda: (folder / ".x.swp").write_text("junk"),
        lambda: os.unlink(folder / ".x.swp"),
    ):
        earlier = folder.stat()
        time.sleep(0.002)
        change()  # type: ignore[no-untyped-call]
        later = folder.stat()
        assert later.st_mtime_ns > earlier.st_mtime_ns
        assert later.st_ctime_ns > earlier.st_ctime_ns
    (folder / "empty").mkdir()
    made_ns = (folder / "empty").stat().st_mtime_ns
    os.rename(folder / "empty", folder / "renamed")
    assert (folder / "renamed").stat().st_mtime_ns >= made_ns


def test_calls_that_redis_has_no_place_for(folder: Path) -> None:
    """RENAME_EXCHANGE is EINVAL, O_TMPFILE and fallocate(2) are EOPNOTSUPP; RENAME_NOREPLACE works."""
    (folder / "f").write_text("f")
    (folder / "g").write_text("g")
    assert errno_of(renameat2, folder / "f", folder / "g", RENAME_EXCHANGE) == errno.EINVAL
    assert errno_of(renameat2, folder / "f", folder / "g", RENAME_NOREPLACE) == errno.EEXIST
    renameat2(folder / "f", folder / "h", RENAME_NOREPLACE)
    assert errno_of(os.open, folder, os.O_TMPFILE | os.O_RDWR) == errno.EOPNOTSUPP
    with open(folder / "g", "r+b") as file:
        assert LIBC.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(100)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
    assert sorted(os.listdir(folder)) == ["g", "h"]


# -- one version -------------------------------------------------------------------------------------------------------


def test_no_acknowledged_increment_is_lost(server: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """Two writers of one counter, on the mount and on the server: the sum of acknowledged increments is the result."""
    client.set("s:n", b"%012d" % 0)
    path, stop = mount.path / "s" / "n", threading.Event()
    wait_until(path.exists)
    acknowledged = [0, 0]

    def increment_here() -> None:
        while not stop.is_set():
            try:
                descriptor = os.open(path, os.O_RDWR)
                try:
                    value = int(os.pread(descriptor, 12, 0))
                    os.pwrite(descriptor, b"%012d" % (value + 1), 0)
                finally:
                    os.close(descriptor)
                acknowledged[0] += 1
            except OSError:
                pass

    def increment_there() -> None:
        other = server.client()
        while not stop.is_set():
            with other.pipeline() as pipe:
                try:
                    pipe.watch("s:n")
                    value = int(pipe.get("s:n")) + 1  # type: ignore[arg-type]
                    pipe.multi()
                    pipe.set("s:n", b"%012d" % value)
                    pipe.execute()
                    acknowledged[1] += 1
                except redis.WatchError:
                    pass
            time.sleep(0.005)

    threads = [threading.Thread(target=increment_here), threading.Thread(target=increment_there)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    try:
        wait_until(lambda: min(acknowledged) > 10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert int(client.get("s:n")) == sum(acknowledged)  # type: ignore[arg-type]


def test_after_a_refused_save_the_next_open_reads_what_redis_holds(client: redis.Redis, mount: MountedServer) -> None:
    """Neither the refused bytes nor older ones, in each of a hundred rounds."""
    client.set("a:k", b"00000000base")
    path = mount.path / "a" / "k"
    wait_until(path.exists)

    def edit(tail: bytes, theirs: bytes | None) -> bool:
        descriptor = os.open(path, os.O_RDWR)
        value = os.pread(descriptor, 12, 0)
        if theirs is not None:
            client.set("a:k", theirs)
        os.pwrite(descriptor, value[:8] + tail, 0)
        try:
            os.close(descriptor)
        except OSError:
            return False
        return True

    for number in range(100):
        theirs = b"%08dthei" % number
        client.set("a:k", b"%08dbase" % number)
        time.sleep(0.02)
        assert not edit(b"MINE", theirs)
        assert path.read_bytes() == theirs
        assert edit(b"SAVE", None)


def test_a_descriptor_reads_what_its_open_fetched(server: RedisServer, tmp_path: Path) -> None:
    """In a read-only mount a changed file is a new inode: an open descriptor reads the old bytes, uncached ones too."""
    client = server.client()
    client.flushall()
    first, second = os.urandom(60_000), os.urandom(70_000)
    client.set("k", first)
    with mount_server(tmp_path, server.tcp_url()) as mount:
        mount.wait_coherent()
        wait_until(lambda: (mount.path / "k").exists())
        with open(mount.path / "k", "rb", buffering=0) as file:
            old_inode = os.fstat(file.fileno())
            assert os.pread(file.fileno(), 10, 0) == first[:10]
            client.set("k", second)
            wait_until(lambda: (mount.path / "k").read_bytes() == second)
            assert os.pread(file.fileno(), 100_000, 0) == first
            assert os.fstat(file.fileno()).st_size == len(first)
            assert (mount.path / "k").stat().st_size == len(second)
            assert os.fstat(file.fileno()).st_ino == old_inode.st_ino
            subprocess.run([sys.executable, "-c", "open('/proc/sys/vm/drop_caches','w').write('1')"], check=False)
            assert os.pread(file.fileno(), 100_000, 0) == first

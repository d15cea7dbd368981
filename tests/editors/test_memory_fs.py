"""Junk created through a mount works as any file, and none of it reaches Redis or the journal (docs/editing.md)."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id, monitor_writes
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        server.client().mset({"k": "data", "d:k": "data", "nums:1": "one", "nums:4913": "forty-nine"})
        server.client().set("d:big", bytes(2 * MIB))
        server.client().hset("user", "bio", "old")
        yield server


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    directory = tmp_path_factory.mktemp("memory-fs")
    options = ("--binding", request.param, "--scratch-memory", "1MiB", "--park-seconds", "0.5")
    with mount_server(directory, server.tcp_url(), *options, write=True) as mount:
        yield mount


@pytest.fixture
def path(server: RedisServer, mount: MountedServer) -> Iterator[Path]:
    """Yield the mount; check at the end that Redis and the journal are unchanged and no command has written."""
    client = server.client()
    keys, before = sorted(client.keys()), last_change_id(mount)
    with monitor_writes(server) as commands:
        yield mount.path
    assert commands == []
    assert sorted(client.keys()) == keys
    assert journal_rows(mount, before) == []


def assert_fails(error_number: int, call: Callable[..., object], *arguments: object) -> None:
    """Call a function and check that it fails with an errno."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is checked
        call(*arguments)
    assert raised.value.errno == error_number, raised.value


@pytest.mark.parametrize(
    "name", [".DS_Store", "._k", "._d", "d/._k", "d/.k.swp", "user.bio~", ".user.bio.swp", "k~", "#k#", "d/Thumbs.db"]
)
def test_a_junk_file(name: str, path: Path) -> None:
    """A junk file is created, written, read, listed, mapped, renamed and removed as any other."""
    file = path / name
    with file.open("xb") as out:
        out.write(b"hello world")
    assert_fails(errno.EEXIST, os.open, file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert file.read_bytes() == b"hello world"
    assert file.name in os.listdir(file.parent)
    with file.open("r+b") as both:
        with mmap.mmap(both.fileno(), 0) as mapping:
            mapping[0:5] = b"HELLO"
            mapping.flush()
        both.seek(6)
        both.write(b"there, you")
        both.flush()
        assert os.fstat(both.fileno()).st_size == 16
    assert file.read_bytes() == b"HELLO there, you"
    os.truncate(file, 5)
    with file.open("ab") as one, file.open("ab") as two:
        one.write(b"1")
        one.flush()
        two.write(b"2")
        two.flush()
        one.write(b"3")
    assert file.read_bytes() == b"HELLO123"
    os.chmod(file, 0o640)
    os.utime(file, ns=(1, 1_000_000_000_000_000_000))
    status = file.stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns, status.st_size) == (0o640, 1_000_000_000_000_000_000, 8)
    other = file.with_name(".other.swp")
    os.rename(file, other)
    assert not file.exists()
    assert other.read_bytes() == b"HELLO123"
    with other.open("rb") as reader:
        other.unlink()
        assert reader.read() == b"HELLO123"
        assert not [name for name in os.listdir(file.parent) if name.startswith(".")]
    assert_fails(errno.ENOENT, other.stat)


def test_extended_attributes(path: Path) -> None:
    """Extended attributes of junk, as Finder sets them, are stored, listed, replaced and removed."""
    file = path / ".DS_Store"
    file.touch()
    os.setxattr(file, "user.com.apple.FinderInfo", b"x" * 32)
    os.setxattr(file, "user.note", b"1", os.XATTR_CREATE)
    assert_fails(errno.EEXIST, os.setxattr, file, "user.note", b"2", os.XATTR_CREATE)
    os.setxattr(file, "user.note", b"2", os.XATTR_REPLACE)
    assert sorted(os.listxattr(file)) == ["user.com.apple.FinderInfo", "user.note"]
    assert os.getxattr(file, "user.note") == b"2"
    os.removexattr(file, "user.note")
    assert_fails(errno.ENODATA, os.getxattr, file, "user.note")
    file.unlink()


def test_a_junk_directory(path: Path) -> None:
    """Everything in a junk directory is junk, whatever its name; the directory is renamed and removed as a whole."""
    trash = path / ".Trash-1000"
    (trash / "files" / "deep").mkdir(parents=True)
    (trash / "files" / "plain.txt").write_text("1")
    (trash / "files" / "deep" / "k").write_text("2")
    (trash / "info").mkdir()
    assert sorted(os.listdir(trash)) == ["files", "info"]
    assert (trash / "files").is_dir()
    assert_fails(errno.ENOTEMPTY, os.rmdir, trash)
    os.rename(trash / "files" / "deep", trash / "info" / "deeper")
    assert (trash / "info" / "deeper" / "k").read_text() == "2"
    other = path / ".Trash-1001"
    os.rename(trash, other)
    assert (other / "files" / "plain.txt").read_text() == "1"
    assert_fails(errno.EXDEV, os.rename, other / "files", path / "files")
    assert_fails(errno.EXDEV, os.rename, path / "d", other / "d")
    shutil.rmtree(other)
    assert not other.exists()


def test_companions_of_directories(path: Path) -> None:
    """AppleDouble files and backups that belong to a directory of keys are junk."""
    (path / "d" / ".DS_Store").touch()
    (path / "._d").touch()
    (path / "d~").mkdir()
    assert {"._d", "d~"} <= set(os.listdir(path))
    (path / "d" / ".DS_Store").unlink()
    (path / "._d").unlink()
    (path / "d~").rmdir()


def test_junk_in_an_empty_directory(mount: MountedServer, server: RedisServer) -> None:
    """Junk can be in and beside a directory that mkdir created; rmdir fails until its junk is removed."""
    directory = mount.path / "made"
    before = last_change_id(mount)
    directory.mkdir()
    names = (".DS_Store", ".new.swp")
    for name in names:
        (directory / name).write_bytes(b"x")
    directory.with_name("._made").write_bytes(b"x")
    assert sorted(os.listdir(directory)) == sorted(names)
    assert_fails(errno.ENOTEMPTY, os.rmdir, directory)
    os.rename(directory, directory.with_name("renamed"))
    assert sorted(os.listdir(directory.with_name("renamed"))) == sorted(names)
    shutil.rmtree(directory.with_name("renamed"))
    directory.with_name("._made").unlink()
    assert not server.client().keys("*made*")
    rows = journal_rows(mount, before)
    assert list(dict.fromkeys(row["op"] for row in rows)) == ["mkdir", "rename", "rmdir"]
    assert not [row for row in rows if "swp" in row["path"] or "DS_Store" in row["path"]]


def test_a_probe_beside_a_key(path: Path) -> None:
    """The probe 4913 of vim does not change a key of that name, and creates none elsewhere."""
    assert_fails(errno.EEXIST, os.open, path / "nums" / "4913", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    for number in ("d/4913", "nums/5036"):
        os.close(os.open(path / number, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        os.chmod(path / number, 0o644)
        os.unlink(path / number)
        assert not (path / number).exists()


def test_a_removed_temporary_file(path: Path) -> None:
    """A temporary file that is created, synced, read and removed never reaches Redis."""
    file = path / "d" / "tmpsess1234"
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.write(descriptor, b"secret")
    os.fsync(descriptor)
    os.close(descriptor)
    assert file.read_bytes() == b"secret"
    assert "tmpsess1234" in os.listdir(path / "d")
    file.unlink()


def test_the_memory_is_bounded(path: Path) -> None:
    """Writes beyond --scratch-memory fail with ENOSPC; removing a file frees its memory."""
    file = path / ".k.swp"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)

    def fill() -> None:
        while True:  # the kernel may split a write, and a part may succeed
            os.write(descriptor, bytes(MIB // 4))

    assert_fails(errno.ENOSPC, fill)
    size = os.fstat(descriptor).st_size
    assert MIB // 2 < size <= MIB
    assert_fails(errno.ENOSPC, os.ftruncate, descriptor, 2 * MIB)
    assert os.fstat(descriptor).st_size == size
    os.close(descriptor)
    file.unlink()

    def can_write() -> bool:
        try:
            file.write_bytes(bytes(MIB * 3 // 4))
        except OSError:
            return False
        return True

    wait_until(can_write)  # the kernel sends the RELEASE of the removed file a little later
    file.unlink()


def test_a_backup_that_does_not_fit(path: Path, server: RedisServer) -> None:
    """Renaming a key that exceeds --scratch-memory to a junk name fails with ENOSPC and changes nothing."""
    client = server.client()
    assert_fails(errno.ENOSPC, os.rename, path / "d" / "big", path / "d" / "big~")
    assert client.strlen("d:big") == 2 * MIB
    assert (path / "d" / "big").stat().st_size == 2 * MIB


def test_copying_a_junk_directory(path: Path, tmp_path: Path) -> None:
    """`cp -a` of a junk directory succeeds, attributes included."""
    source = tmp_path / "x.sb-1a2b3c4d-AbCdEf"
    source.mkdir()
    (source / ".DS_Store").write_bytes(b"x")
    (source / "y").write_bytes(b"y")
    subprocess.run(["cp", "-a", str(source), str(path)], check=True, timeout=20)
    assert (path / source.name / "y").read_bytes() == b"y"
    assert (path / source.name / "y").stat().st_mtime_ns // 1000 == (source / "y").stat().st_mtime_ns // 1000
    shutil.rmtree(path / source.name)


def test_the_unmount_removes_junk(server: RedisServer, tmp_path: Path) -> None:
    """After the unmount no junk is in Redis or the journal, and the next mount shows none."""
    for _ in range(2):
        with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
            assert sorted(os.listdir(mount.path)) == ["d", "k", "nums", "user.bio"]
            (mount.path / ".DS_Store").write_bytes(b"x")
            (mount.path / "._k").write_bytes(b"x")
            mount.stop()
            assert not journal_rows(mount)
    assert len(server.client().keys()) == 6


def test_a_read_only_mount_rejects_junk(server: RedisServer, tmp_path: Path) -> None:
    """In a read-only mount creating junk fails with EROFS."""
    with mount_server(tmp_path, server.tcp_url()) as mount:
        for name in (".DS_Store", ".k.swp", "k~", "4913"):
            assert_fails(errno.EROFS, os.open, mount.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        assert_fails(errno.EROFS, os.mkdir, mount.path / ".Trash-1000")
        assert_fails(errno.EROFS, os.rename, mount.path / "k", mount.path / "k~")


def test_without_the_filter(server: RedisServer, tmp_path: Path) -> None:
    """With --no-junk-filter every name is data; --keep makes one data, and --junk makes another junk."""
    client: redis.Redis = server.client()
    with mount_server(tmp_path, server.tcp_url(), "--no-junk-filter", write=True) as mount:
        (mount.path / ".DS_Store").write_bytes(b"x")
        assert client.get(".DS_Store") == b"x"
        assert ".DS_Store" in os.listdir(mount.path)
        (mount.path / ".DS_Store").unlink()
    with mount_server(tmp_path, server.tcp_url(), "--keep", ".DS_Store", "--junk", "*.bak", write=True) as mount:
        (mount.path / ".DS_Store").write_bytes(b"x")
        (mount.path / "k.bak").write_bytes(b"x")
        assert client.get(".DS_Store") == b"x"
        assert not client.exists("k.bak")
        assert client.get("k") == b"data"
        (mount.path / ".DS_Store").unlink()

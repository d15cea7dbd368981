"""The session of `redisfuse.fuse` on real kernel mounts, over the inode table in memory of `kernel_tree`."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redisfuse.errors import MountError, UsageError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.fuse import wire
from redisfuse.fuse.device import list_bindings, select_device
from redisfuse.fuse.dispatch import Dispatcher
from redisfuse.fuse.init import negotiate
from redisfuse.fuse.interface import FuseSessionOptions
from redisfuse.fuse.request import Request
from redisfuse.fuse.wire import Opcode
from redisfuse.fuse.worker_pool import LeaderFollowerPool
from tests.support.kernel_tree import InMemoryOperations, Inode, populate
from tests.support.memory_mount import MemoryMount

BINDINGS = ["fusepy", "mfusepy"]
LIBC = ctypes.CDLL(None, use_errno=True)
BLOCKING = ["lookup", "getattr", "open", "read", "write", "flush", "release", "readdir", "create"]


@pytest.fixture(scope="module", params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared(binding: str) -> Iterator[MemoryMount]:
    """Mount for the tests that leave the mount as it was, apart from files of their own."""
    with MemoryMount(binding, tree={"small": 2000, "large": 100_000}) as mounted:
        yield mounted


@pytest.fixture
def mount(shared: MemoryMount) -> MemoryMount:
    shared.send_request("counts")
    return shared


@pytest.fixture(scope="module")
def cached(binding: str) -> Iterator[MemoryMount]:
    """Mount so that the kernel caches everything for an hour, until it is invalidated."""
    with MemoryMount(binding, tree={"d": 100}, valid=3600, keep_cache=True, explicit_invalidation=True) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def unopened(binding: str) -> Iterator[MemoryMount]:
    """Mount read-only; the kernel opens files without a request."""
    with MemoryMount(binding, tree={"d": 100}, valid=3600, no_open=True, read_only=True) as mounted:
        yield mounted


def call_errno(call: Callable[[], object]) -> int:
    """Return the errno with which a call fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is compared
        call()
    return caught.value.errno or 0


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def notify(mounted: MemoryMount, what: str, path: str = "/") -> None:
    mounted.send_request("notify", what=what, path=path)
    assert mounted.send_request("drain")


# -- the wire ----------------------------------------------------------------------------------------------------------

STRUCTURE_SIZES = {  # sizeof of each, compiled from include/uapi/linux/fuse.h
    "OUT_HEADER": 16,
    "ATTR_OUT": 104,
    "ENTRY_OUT": 128,
    "OPEN_OUT": 16,
    "WRITE_OUT": 8,
    "GETXATTR_OUT": 8,
    "STATFS_OUT": 80,
    "INIT_OUT": 64,
    "DIRENT": 24,
    "DIRENTPLUS": 152,
    "GETATTR_IN": 16,
    "SETATTR_IN": 88,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "ACCESS_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "FSYNC_IN": 16,
    "GETXATTR_IN": 8,
    "SETXATTR_IN": 8,  # without SETXATTR_EXT
    "FORGET_ONE": 16,
    "BATCH_FORGET_IN": 8,
    "INTERRUPT_IN": 8,
}


def test_structures_have_the_sizes_of_the_kernel() -> None:
    """Each structure is as long as in the kernel's header."""
    assert {name: getattr(wire, name).size for name in STRUCTURE_SIZES} == STRUCTURE_SIZES
    assert wire.IN_HEADER_SIZE == wire.IN_HEADER.size + wire.IN_CALLER.size + 4 == 40
    assert len(wire.pack_inval_inode(1)) == 16 + 24
    assert len(wire.pack_inval_entry(1, b"name")) == 16 + 16 + 5
    assert len(wire.pack_delete(1, 2, b"name")) == 16 + 24 + 5
    assert len(wire.pack_store(1, 0, b"data")) == 16 + 24 + 4


def build_init(major: int, minor: int, flags: int, flags2: int = 0) -> memoryview:
    body = struct.pack("=IIIII", major, minor, 131072, flags, flags2) + bytes(44)
    return memoryview(struct.pack("=IIQQIIII", 40 + len(body), Opcode.INIT, 1, 0, 0, 0, 0, 0) + body)


def test_negotiating_versions() -> None:
    """An older minor version is taken, a newer major answered with ours, and what is too old refused."""
    options = FuseSessionOptions(Path("/"))
    every = 0xFFFFFFFF
    reply, connection = negotiate(build_init(7, 31, every & ~wire.InitFlag.INIT_EXT), options)
    assert connection is not None
    assert (connection.minor, connection.has_inc_epoch) == (31, False)
    assert wire.INIT_OUT.unpack(reply)[:3] == (7, 31, 131072)
    assert connection.flags & wire.InitFlag.DO_READDIRPLUS
    assert not connection.flags & wire.InitFlag.READDIRPLUS_AUTO
    _, connection = negotiate(build_init(7, 99, every, every), options)
    assert connection is not None
    assert connection.minor == wire.KERNEL_MINOR_MAX
    assert connection.flags & wire.InitFlag.HAS_EXPIRE_ONLY
    reply, connection = negotiate(build_init(8, 0, every), options)
    assert connection is None
    assert wire.INIT_OUT.unpack(reply)[0] == 7
    with pytest.raises(MountError, match=r"7\.31"):
        negotiate(build_init(7, 30, every), options)


class BoundedOperations(InMemoryOperations):
    """Refuses what would take much memory."""

    def _resize(self, inode: Inode, size: int) -> None:
        if size > 1 << 20:
            raise OSError(errno.EFBIG, "too long")
        super()._resize(inode, size)

    def write(self, context: Any, handle: int, offset: int, data: memoryview, flags: int) -> int:
        if offset > 1 << 20:
            raise OSError(errno.EFBIG, "too long")
        return super().write(context, handle, offset, data, flags)


class DirectKernel:
    """Feeds a dispatcher with requests, and checks that each gets the one reply that the kernel would accept."""

    def __init__(self) -> None:
        self.operations = BoundedOperations()
        populate(self.operations, {"d": 10})
        self.dispatcher = Dispatcher(self.operations, read_only=False)
        self.request = Request(LeaderFollowerPool(lambda _: None, 1, lambda: None))  # type: ignore[arg-type, return-value]
        self.dispatcher.requests.append(self.request)
        self.unique = 0

    def send(self, opcode: int, node_id: int, body: bytes, cut: int | None = None) -> tuple[int, bytes]:
        """Return errno and payload."""
        self.unique += 2
        packet = struct.pack("=IIQQIIII", 40 + len(body), opcode, self.unique, node_id, 1, 2, 3, 0) + body
        packet = packet[:cut]
        self.request.buffer[:8192] = b"\xff" * 8192  # what an earlier request left
        self.request.buffer[: len(packet)] = packet
        reply = self.dispatcher.process(self.request, len(packet))
        if reply is None:
            assert len(packet) < 40 or opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
            return 0, b""
        joined = reply if isinstance(reply, bytes) else b"".join(reply)
        length, error, unique = wire.OUT_HEADER.unpack_from(joined)
        assert (length, unique) == (len(joined), self.unique)
        assert -4096 < error <= 0
        assert not error or length == 16
        return -error, joined[16:]


def test_requests_cut_short_are_invalid(caplog: pytest.LogCaptureFixture) -> None:
    """Every request that lacks its last bytes is answered EINVAL, and nothing is done."""
    requests = {
        Opcode.LOOKUP: b"d\0",
        Opcode.GETATTR: bytes(16),
        Opcode.SETATTR: bytes(88),
        Opcode.MKNOD: bytes(16) + b"new\0",
        Opcode.MKDIR: bytes(8) + b"new\0",
        Opcode.UNLINK: b"d\0",
        Opcode.RMDIR: b"d\0",
        Opcode.RENAME: struct.pack("=Q", 1) + b"d\0e\0",
        Opcode.RENAME2: struct.pack("=QII", 1, 0, 0) + b"d\0e\0",
        Opcode.OPEN: bytes(8),
        Opcode.READ: bytes(40),
        Opcode.WRITE: struct.pack("=QQIIQII", 0, 0, 4, 0, 0, 0, 0) + b"data",
        Opcode.RELEASE: bytes(24),
        Opcode.FSYNC: bytes(16),
        Opcode.SETXATTR: struct.pack("=II", 5, 0) + b"user.a\0value",
        Opcode.GETXATTR: bytes(8) + b"user.a\0",
        Opcode.LISTXATTR: bytes(8),
        Opcode.REMOVEXATTR: b"user.a\0",
        Opcode.FLUSH: bytes(24),
        Opcode.OPENDIR: bytes(8),
        Opcode.READDIR: bytes(40),
        Opcode.READDIRPLUS: bytes(40),
        Opcode.RELEASEDIR: bytes(24),
        Opcode.FSYNCDIR: bytes(16),
        Opcode.CREATE: bytes(16) + b"new\0",
        Opcode.BATCH_FORGET: struct.pack("=IIQQ", 1, 0, 2, 1),
        Opcode.FORGET: bytes(8),
        Opcode.INTERRUPT: bytes(8),
    }
    kernel = DirectKernel()
    for opcode, body in requests.items():
        for cut in range(40 + len(body)):
            number, _ = kernel.send(opcode, 1, body, cut)
            if cut >= 40 and opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
                assert number == errno.EINVAL, (opcode, cut)
    assert set(kernel.operations.root.children) == {b"d"}
    assert not kernel.operations.counts
    assert "malformed request" in caplog.text


def test_nonsense_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred thousand requests of random bytes each get one reply that the kernel accepts, or rightly none."""
    caplog.set_level(100)
    kernel, source = DirectKernel(), random.Random(14)
    for _ in range(100_000):
        opcode = source.choice([source.randrange(64), source.randrange(64), source.getrandbits(32)])
        body = source.randbytes(source.choice([0, 1, 8, 16, 24, 40, 88, 200]))
        if source.random() < 0.5:
            body = body.replace(body[:1], b"\0") + source.choice([b"d\0f000001\0", b"f000002\0", b"d\0"])
        kernel.send(opcode, source.choice([0, 1, 2, 3, source.getrandbits(64)]), body)
    assert kernel.send(Opcode.GETATTR, 1, bytes(16))[0] == 0


def test_unknown_opcodes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """They are answered ENOSYS, below and above the known ones; what is known not to be implemented is not logged."""
    kernel = DirectKernel()
    for _ in range(3):
        assert [kernel.send(opcode, 1, b"")[0] for opcode in (0, 7, 99, 1 << 31)] == [errno.ENOSYS] * 4
        assert kernel.send(Opcode.POLL, 1, bytes(24))[0] == errno.ENOSYS
        assert kernel.send(Opcode.FALLOCATE, 1, bytes(32))[0] == errno.EOPNOTSUPP
    assert caplog.text.count("not implemented") == 4


# -- what programs see -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raise-notfound", errno.ENOENT),
        ("raise-access", errno.EACCES),
        ("raise-stale", errno.ESTALE),
        ("raise-unavailable", errno.EIO),
        ("raise-oserror", errno.ENOSPC),
        ("raise-oserror-bare", errno.EIO),
        ("raise-oserror-negative", errno.EIO),
        ("raise-valueerror", errno.EIO),
        ("raise-baseexception", errno.EIO),
        ("raise-systemexit", errno.EIO),
        ("raise-keyboard", errno.EIO),
        ("raise-enosys", errno.ENOTSUP),
    ],
)
def test_every_exception_becomes_its_errno(mount: MemoryMount, name: str, expected: int) -> None:
    """An error of ours has its own errno, anything unexpected is EIO, and the mount continues."""
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


def test_only_bugs_are_logged(mount: MemoryMount) -> None:
    """A bug leaves its traceback in the log; an error that is meant for the program does not."""
    assert call_errno(lambda: os.stat(mount.path / "raise-valueerror")) == errno.EIO
    assert call_errno(lambda: os.stat(mount.path / "raise-access")) == errno.EACCES
    log = mount.log.read_text()
    assert "ValueError: a bug" in log
    assert "AccessError" not in log


def test_a_reply_that_the_kernel_rejects_is_an_error(mount: MemoryMount) -> None:
    """The program gets EIO instead of waiting forever, and the log says why."""
    mount.put_file("/bad", "overlong")
    assert call_errno((mount.path / "bad").read_bytes) == errno.EIO
    assert "rejected the reply" in mount.log.read_text()
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


def test_names_are_bytes(mount: MemoryMount) -> None:
    """A name that is not UTF-8 can be created, listed, read, renamed and removed."""
    folder = os.fsencode(mount.path)
    first, second = folder + b"/\xff\xfe bad\n", folder + b"/" + b"\x80" * 255
    with open(first, "wb") as file:
        file.write(b"content")
    assert b"\xff\xfe bad\n" in os.listdir(folder)
    os.rename(first, second)
    with open(second, "rb") as file:
        assert file.read() == b"content"
    os.unlink(second)
    assert b"\x80" * 255 not in os.listdir(folder)


def test_a_large_directory_is_listed_in_pieces(mount: MemoryMount) -> None:
    """All of 100 000 names are listed, once each, and the process does not grow with a second listing."""
    listed = subprocess.run(["ls", "-f", mount.path / "large"], capture_output=True, check=True, timeout=30)
    names = listed.stdout.split()
    assert len(names) == len(set(names)) == 100_002
    before = mount.send_request("counts")["rss"]
    subprocess.run(["ls", "-f", mount.path / "large"], stdout=subprocess.DEVNULL, check=True, timeout=30)
    assert mount.send_request("counts")["rss"] - before < 8 << 20


def test_a_directory_can_be_sought_in(mount: MemoryMount) -> None:
    """seekdir comes back to the same names, and rewinddir to the first."""
    libc = ctypes.CDLL(None)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.readdir.argtypes = libc.rewinddir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    directory = libc.opendir(os.fsencode(mount.path / "small"))

    def names(count: int) -> list[bytes]:
        return [ctypes.string_at(libc.readdir(directory) + 19) for _ in range(count)]  # d_name of struct dirent64

    first = names(3)
    names(700)
    place = libc.telldir(directory)
    some = names(900)
    libc.seekdir(directory, place)
    assert names(900) == some
    libc.rewinddir(directory)
    assert names(3) == first == [b".", b"..", b"f000000"]
    libc.closedir(directory)


def test_attributes_come_with_the_names(binding: str) -> None:
    """A first `ls -l` needs at most ten requests for attributes, also if all names are read first."""
    for read_all_first in (False, True):
        with MemoryMount(binding, tree={"d": 2000}, valid=3600) as fresh:
            fresh.send_request("counts")
            if read_all_first:
                for name in os.listdir(fresh.path / "d"):
                    os.stat(fresh.path / "d" / name)
            else:
                subprocess.run(["ls", "-l", fresh.path / "d"], stdout=subprocess.DEVNULL, check=True, timeout=30)
            counts = fresh.take_counts()
        assert counts["getattr"] + counts["lookup"] <= 10


def test_truncating(mount: MemoryMount) -> None:
    """truncate and ftruncate are a SETATTR each; O_TRUNC comes with OPEN alone."""
    file = mount.path / "cut"
    file.write_bytes(b"0123456789")
    mount.send_request("counts")
    os.truncate(file, 8)
    with open(file, "r+b") as opened:
        os.ftruncate(opened.fileno(), 4)
    assert file.read_bytes() == b"0123"
    assert mount.take_counts()["setattr"] == 2
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    counts = mount.take_counts()
    assert (counts["open-truncating"], counts["setattr"]) == (1, 0)
    assert file.read_bytes() == b""


def test_large_reads_and_writes_come_in_large_pieces(mount: MemoryMount) -> None:
    """8 MiB are written in requests of 1 MiB and come back whole."""
    data = random.Random(1).randbytes(8 << 20)
    mount.send_request("counts")
    (mount.path / "long").write_bytes(data)
    assert mount.take_counts()["write"] <= 10
    assert (mount.path / "long").read_bytes() == data
    os.unlink(mount.path / "long")


def test_appending_and_writing_at_an_offset(mount: MemoryMount) -> None:
    """Appended bytes go to the end, written ones to their offset."""
    file = mount.path / "ends"
    file.write_bytes(b"abc")
    with open(file, "ab") as opened:
        opened.write(b"def")
    with open(file, "r+b") as opened:
        opened.seek(1)
        opened.write(b"XY")
    assert file.read_bytes() == b"aXYdef"


def rename_with(flags: int, old: Path, new: Path) -> int:
    """renameat2(2); 0 or the errno."""
    result = LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if result else 0


def test_rename_flags_arrive(mount: MemoryMount) -> None:
    """RENAME_NOREPLACE and RENAME_EXCHANGE are done with both libraries."""
    one, two, three = (mount.path / name for name in ("one", "two", "three"))
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert rename_with(1, one, two) == errno.EEXIST
    assert rename_with(2, one, two) == 0
    assert (one.read_bytes(), two.read_bytes()) == (b"2", b"1")
    assert rename_with(1, one, three) == 0


def test_an_open_file_that_is_removed_stays_usable(mount: MemoryMount) -> None:
    """One UNLINK comes, nothing hidden appears, and the descriptor works until its last close."""
    file = mount.path / "gone"
    file.write_bytes(b"content")
    before = mount.send_request("counts")["inodes"]
    with open(file, "r+b") as opened:
        os.unlink(file)
        assert not file.exists()
        assert not [name for name in os.listdir(mount.path) if "gone" in name or "hidden" in name]
        assert opened.read() == b"content"
        opened.write(b" and more")
        opened.flush()
        number = opened.fileno()
        os.ftruncate(number, 3)
        os.fchmod(number, 0o600)
        os.utime(number, ns=(5, 5))
        state = os.fstat(number)
        assert (state.st_size, state.st_nlink, stat.S_IMODE(state.st_mode), state.st_mtime_ns) == (3, 0, 0o600, 5)
        assert os.pread(number, 10, 0) == b"con"
        counts = mount.take_counts()
        assert (counts["unlink"], counts["rename"]) == (1, 0)
    assert within(5, lambda: mount.send_request("counts")["inodes"] == before - 1)


def test_open_files_follow_renames(mount: MemoryMount) -> None:
    """A descriptor stays with its file when that, or the directory above, is renamed, or another renamed over it."""
    folder, moved = mount.path / "before", mount.path / "after"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    (folder / "other").write_bytes(b"new")
    with (
        open(folder / "file", "r+b", buffering=0) as opened,
        mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        inode = os.fstat(opened.fileno()).st_ino
        os.rename(folder, moved)
        os.rename(moved / "file", moved / "renamed")
        opened.write(b"OLD")
        assert os.stat(moved / "renamed").st_ino == inode
        assert (moved / "renamed").read_bytes() == mapped[:] == b"OLD"
        os.rename(moved / "other", moved / "renamed")
        assert os.pread(opened.fileno(), 10, 0) == b"OLD"
        assert (moved / "renamed").read_bytes() == b"new"


def test_directories(mount: MemoryMount) -> None:
    """They are made and removed, not while something is in them; nlink counts subdirectories, and the mtime moves."""
    folder = mount.path / "made"
    folder.mkdir()
    first = os.stat(folder)
    (folder / "in").mkdir()
    second = os.stat(folder)
    assert (first.st_nlink, second.st_nlink) == (2, 3)
    assert second.st_mtime_ns > first.st_mtime_ns
    assert call_errno(folder.rmdir) == errno.ENOTEMPTY
    (folder / "in").rmdir()
    assert os.access(folder, os.X_OK)
    folder.rmdir()
    assert not folder.exists()


def test_times_and_owners_arrive(mount: MemoryMount) -> None:
    """Nanoseconds, times before 1970, "now" and "leave it" are distinct."""
    file = mount.path / "touched"
    file.touch()
    for time_ns in (2_000_000_002, -1_500_000_000):
        os.utime(file, ns=(1, time_ns))
        assert os.stat(file).st_mtime_ns == time_ns
    os.utime(file)
    assert os.stat(file).st_mtime_ns == 2_000_000_000_000_000_000
    subprocess.run(["touch", "-a", "-d", "@5", file], check=True, timeout=10)
    assert os.stat(file).st_mtime_ns == 2_000_000_000_000_000_000


def test_extended_attributes(mount: MemoryMount) -> None:
    """They are set, read, listed and removed; those of ACLs are not supported, without a call."""
    file = mount.path / "extended"
    file.touch()
    os.setxattr(file, "user.a", b"\x00binary\xff" * 100)
    assert os.listxattr(file) == ["user.a"]
    assert os.getxattr(file, "user.a") == b"\x00binary\xff" * 100
    buffer = ctypes.create_string_buffer(10)
    assert LIBC.getxattr(os.fsencode(file), b"user.a", buffer, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    os.removexattr(file, "user.a")
    assert call_errno(lambda: os.getxattr(file, "user.a")) == errno.ENODATA
    mount.send_request("counts")
    assert call_errno(lambda: os.getxattr(file, "system.posix_acl_access")) == errno.ENOTSUP
    assert mount.take_counts()["getxattr"] == 0


def test_what_does_not_exist(mount: MemoryMount) -> None:
    """Links, devices and fallocate are refused with the errno that POSIX names; statvfs shows what was replied."""
    (mount.path / "some").touch()
    assert call_errno(lambda: os.symlink("target", mount.path / "link")) == errno.EPERM
    assert call_errno(lambda: os.link(mount.path / "some", mount.path / "hard")) == errno.EPERM
    assert call_errno(lambda: os.mkfifo(mount.path / "fifo")) == errno.EPERM
    with open(mount.path / "some", "wb") as opened:
        assert LIBC.fallocate(opened.fileno(), 1, 0, ctypes.c_long(10)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert os.lseek(opened.fileno(), 0, os.SEEK_END) == 0
    space = os.statvfs(mount.path)
    assert (space.f_blocks, space.f_bavail, space.f_namemax) == (1000, 400, 255)


def test_who_calls(mount: MemoryMount) -> None:
    """A request carries the ids of its caller."""
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path / "caller")
    assert mount.send_request("counts")["callers"] == [[os.getuid(), os.getgid(), threading.get_native_id()]]


def test_reading_costs_no_flush(mount: MemoryMount) -> None:
    """A close of what was only read sends no FLUSH, that of what was written does."""
    (mount.path / "flushed").write_bytes(b"x")
    assert mount.take_counts()["flush"] == 1
    (mount.path / "flushed").read_bytes()
    assert mount.take_counts()["flush"] == 0


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [[], BLOCKING])
def test_a_blocked_call_blocks_no_other(binding: str, blocking: list[str]) -> None:
    """While one answer does not come, sixteen threads read, write and list; afterwards nothing is left open."""
    with MemoryMount(binding, tree={"small": 2000}, blocking=blocking) as mount:
        mount.send_request("mkdir", path="/apart")  # a look-up locks its directory: nothing can be made there meanwhile
        program = ["stat", mount.path / "apart/hang"]
        hung = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert within(5, lambda: mount.take_counts()["hanging"] > 0)
        wrong: list[object] = []

        def use(worker: int) -> None:
            own = mount.path / f"own-{worker}"
            for index in range(worker, 2000, 40):
                content = (mount.path / f"small/f{index:06d}").read_bytes()
                own.write_bytes(content)
                if own.read_bytes() != b"content of %d\n" % index:
                    wrong.append((index, content))
            if len(os.listdir(mount.path / "small")) != 2000:
                wrong.append(worker)
            own.unlink()

        threads = [threading.Thread(target=use, args=(worker,)) for worker in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
        assert hung.poll() is None
        mount.send_request("unhang")
        assert hung.wait(10) == 1
        assert within(5, lambda: mount.send_request("counts")["handles"] == 0)
        assert mount.send_request("counts")["tasks"] < 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_blocked_program_can_be_interrupted(mount: MemoryMount, number: int) -> None:
    """The operation learns that its program was interrupted, and the program ends at once."""
    waiting = [
        subprocess.Popen(["stat", mount.path / f"wait-{index}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for index in range(3)
    ]
    seen: list[int] = []
    assert within(5, lambda: seen.append(mount.take_counts()["waiting"]) or sum(seen) == 3)  # type: ignore[func-returns-value]
    for program in waiting:
        program.send_signal(number)
        assert program.wait(5) == -number
        assert within(5, lambda: mount.take_counts()["interrupted"] == 1)
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


# -- the kernel's caches -----------------------------------------------------------------------------------------------


def test_what_is_cached_stays_in_the_kernel(cached: MemoryMount) -> None:
    """Warm stat, read and missing names cost no request but OPEN and RELEASE; a change unnotified is not seen."""
    file = cached.path / "d/f000001"
    for _ in range(2):  # after a READ the kernel asks for the time of access
        assert file.read_text() == "content of 1\n"
    assert not (cached.path / "d/missing").exists()
    cached.send_request("counts")
    for _ in range(10):
        assert file.read_text() == "content of 1\n"
        assert not (cached.path / "d/missing").exists()
    counts = cached.take_counts()
    assert set(counts) <= {"open", "release"}
    cached.put_file("/d/f000001", "CONTENT OF 1\n")
    assert file.read_text() == "content of 1\n"
    notify(cached, "inode", "/d/f000001")
    assert file.read_text() == "CONTENT OF 1\n"


def test_mapped_pages_are_dropped(cached: MemoryMount) -> None:
    """INVAL_INODE reaches a mapping; INVAL_INODE of attributes alone keeps the pages."""
    file = cached.path / "d/f000002"
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content of 2\n"
        before = os.fstat(opened.fileno()).st_mtime_ns
        cached.put_file("/d/f000002", "CONTENT OF 2\n")
        notify(cached, "attributes", "/d/f000002")
        assert os.fstat(opened.fileno()).st_mtime_ns > before
        assert mapped[:] == b"content of 2\n"
        notify(cached, "inode", "/d/f000002")
        assert mapped[:] == b"CONTENT OF 2\n"


def test_names_that_come_and_go(cached: MemoryMount) -> None:
    """INVAL_ENTRY drops a missing name and a found one; DELETE removes it."""
    file = cached.path / "d/coming"
    assert not file.exists()
    cached.put_file("/d/coming", "here")
    assert not file.exists()
    notify(cached, "entry", "/d/coming")
    assert file.read_text() == "here"
    cached.send_request("drop", path="/d/coming")
    assert file.exists()
    notify(cached, "entry", "/d/coming")
    assert not file.exists()
    cached.put_file("/d/coming", "again")
    notify(cached, "entry", "/d/coming")
    assert file.exists()
    notify(cached, "delete", "/d/coming")
    assert not file.exists()
    assert cached.send_request("counts")["notifier"]["failed"] == 0


def test_the_working_directory_holds(cached: MemoryMount) -> None:
    """getcwd(3) works after its directory's attributes, pages and name expired, and after a rename above it."""
    (cached.path / "above/work").mkdir(parents=True)
    script = "import os, sys\nfor line in sys.stdin: print(os.getcwd(), flush=True)"
    inside = subprocess.Popen(
        ["python3", "-c", script], cwd=cached.path / "above/work", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert inside.stdin is not None
    assert inside.stdout is not None

    def working_directory() -> str:
        inside.stdin.write(b"\n")  # type: ignore[union-attr]
        inside.stdin.flush()  # type: ignore[union-attr]
        return inside.stdout.readline().decode().strip()  # type: ignore[union-attr]

    assert working_directory() == str(cached.path / "above/work")
    for what in ("inode", "expire"):
        for path in ("/above", "/above/work"):
            notify(cached, what, path)
        assert working_directory() == str(cached.path / "above/work")
        assert (cached.path / "above/work").is_dir()
    if cached.send_request("counts")["has_inc_epoch"]:
        notify(cached, "epoch")
        assert working_directory() == str(cached.path / "above/work")
    os.rename(cached.path / "above", cached.path / "below")
    assert working_directory() == str(cached.path / "below/work")
    inside.stdin.close()
    assert inside.wait(10) == 0


def test_everything_is_looked_up_again(cached: MemoryMount) -> None:
    """INC_EPOCH lets every name be looked up again, where the kernel has it."""
    if not cached.send_request("counts")["has_inc_epoch"]:
        pytest.skip("this kernel has no INC_EPOCH")
    assert not (cached.path / "d/epoch").exists()
    cached.put_file("/d/epoch", "new")
    notify(cached, "epoch")
    assert (cached.path / "d/epoch").read_text() == "new"


def test_bytes_can_be_stored(cached: MemoryMount) -> None:
    """STORE fills the page cache: what is read then costs no READ."""
    cached.put_file("/d/stored", "0123456789")
    notify(cached, "entry", "/d/stored")
    assert (cached.path / "d/stored").stat().st_size == 10
    cached.send_request("store", path="/d/stored", data="ABCDEFGHIJ")
    assert cached.send_request("drain")
    cached.send_request("counts")
    assert (cached.path / "d/stored").read_text() == "ABCDEFGHIJ"
    assert cached.take_counts()["read"] == 0


def test_notifications_during_requests_never_hang(cached: MemoryMount) -> None:
    """Reads and listings continue while all is invalidated as fast as possible."""
    stop = threading.Event()
    rounds = [0] * 4

    def use(worker: int) -> None:
        while not stop.is_set():
            assert len(os.listdir(cached.path / "d")) >= 100
            assert (cached.path / f"d/f{50 + worker:06d}").read_bytes() == b"content of %d\n" % (50 + worker)
            rounds[worker] += 1

    workers = [threading.Thread(target=use, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        for index in range(4):
            for what in ("inode", "expire"):
                cached.send_request("notify", what=what, path=f"/d/f{50 + index:06d}")
        cached.send_request("notify", what="inode", path="/d")
    assert cached.send_request("drain")
    stop.set()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    assert min(rounds) > 3


def test_nothing_is_sent_for_warm_reads_without_open(unopened: MemoryMount) -> None:
    """After one OPEN that is answered ENOSYS, neither OPEN, FLUSH nor RELEASE comes, and warm reads cost nothing."""
    names = [unopened.path / f"d/f{index:06d}" for index in range(50)]
    for name in names:
        name.read_bytes()
    unopened.send_request("counts")
    for name in names:
        assert name.read_bytes().startswith(b"content of")
    assert set(unopened.take_counts()) <= {"getattr", "opendir", "releasedir"}


def test_a_new_version_is_a_new_inode(unopened: MemoryMount) -> None:
    """Without OPEN, a changed file is a new inode under the same name; who has the old one open reads that on."""
    file = unopened.path / "d/f000090"
    with open(file, "rb", buffering=0) as opened:
        assert opened.read(4) == b"cont"
        unopened.send_request("replace", path="/d/f000090", data="something longer than before\n")
        notify(unopened, "expire", "/d/f000090")
        assert file.read_text() == "something longer than before\n"
        assert file.stat().st_size == 29
        assert opened.read() == b"ent of 90\n"
        assert os.pread(opened.fileno(), 7, 0) == b"content"
        inodes = unopened.send_request("counts")["inodes"]
    assert within(5, lambda: unopened.send_request("counts")["inodes"] == inodes - 1)


def test_the_kernel_forgets_what_it_looked_up(binding: str) -> None:
    """After a listing with attributes every lookup is balanced by a FORGET: removed inodes are freed."""
    with MemoryMount(binding, tree={"d": 500}, valid=3600) as mount:
        names = os.listdir(mount.path / "d")
        for name in names:
            os.stat(mount.path / "d" / name)
            os.stat(mount.path / "d" / name)
        for name in names:
            os.unlink(mount.path / "d" / name)
        os.rmdir(mount.path / "d")
        assert within(5, lambda: mount.send_request("counts")["inodes"] == 1)


# -- mounting and unmounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(binding: str, number: int) -> None:
    """The process ends well and at once, and nothing stays mounted."""
    with MemoryMount(binding) as mounted:
        assert os.listdir(mounted.path) == []
        mounted.process.send_signal(number)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"


def test_it_can_be_stopped_from_inside(binding: str) -> None:
    """`stop` ends the mount."""
    with MemoryMount(binding) as mounted:
        mounted.send_request("stop")
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


def test_unmounting_from_outside_ends_the_process(binding: str) -> None:
    """`umount` is as good as a signal."""
    with MemoryMount(binding) as mounted:
        mountpoints.unmount(mounted.path)
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


def test_a_signal_unmounts_while_in_use(binding: str) -> None:
    """The mount goes away at once; a program that still has a file open gets an error, not a hang."""
    with MemoryMount(binding) as mounted:
        mounted.put_file("/file", "content")
        number = os.open(mounted.path / "file", os.O_RDONLY)
        assert call_errno(lambda: mountpoints.try_unmount(mounted.path, lazy=False)) == errno.EBUSY
        mounted.process.send_signal(signal.SIGTERM)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"
        assert call_errno(lambda: os.read(number, 10)) in (errno.ENOTCONN, errno.ECONNABORTED)
        os.close(number)


def test_a_call_that_never_ends_does_not_keep_the_process(binding: str) -> None:
    """After the time that calls may take, the process gives up, with an error."""
    with MemoryMount(binding, stop_timeout=1) as mounted:
        hung = subprocess.Popen(["stat", mounted.path / "hang"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert within(5, lambda: mounted.take_counts()["hanging"] > 0)
        mounted.process.send_signal(signal.SIGTERM)
        assert mounted.wait_for_exit(10) == 1
        assert not mounted.is_mounted
        assert "did not end within 1 s" in mounted.log.read_text()
        assert hung.wait(10) == 1


def test_an_aborted_connection_ends_the_process(binding: str) -> None:
    """`umount --force` of a mount in use aborts the connection; the process ends."""
    with MemoryMount(binding, tree={"d": 1}) as mounted, open(mounted.path / "d/f000000", "rb"):
        assert LIBC.umount2(os.fsencode(mounted.path), 1) == -1
        assert ctypes.get_errno() == errno.EBUSY
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


def test_a_failed_init_is_a_failed_mount(binding: str) -> None:
    """What `init` raises is what `run` raises, and nothing stays mounted."""
    mounted = MemoryMount(binding, fail_start=True)
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        assert mounted.log.read_text().strip() == "UnavailableError: nothing to serve"
        assert not mounted.is_mounted
    finally:
        mounted.__exit__()


def test_how_it_is_shown(binding: str, tmp_path: Path) -> None:
    """Type, source and mount point are in the table of mounts, odd characters too; read-only is EROFS."""
    odd = tmp_path / "a b\\c\td"
    odd.mkdir()
    source = r"redisfuse#redis://u:***@host/0,x\y z"
    with MemoryMount(binding, mountpoint=odd, fsname=source, read_only=True) as mounted:
        shown = mountpoints.find_mount(odd)
        assert shown is not None
        assert (shown.fs_type, shown.source) == ("fuse.redisfuse", source)
        assert os.readlink(f"/proc/{mounted.process.pid}/cwd") == os.getcwd()
        assert call_errno(lambda: (odd / "new").touch()) == errno.EROFS


def test_a_dead_mount_is_cleaned_away(binding: str) -> None:
    """A mount whose process was killed is known as stale, and mounting there again just works."""
    with MemoryMount(binding) as mounted:
        mounted.process.kill()
        mounted.wait_for_exit()
        assert mountpoints.is_stale(mounted.path)
        assert mountpoints.validate_mountpoint(mounted.path) == mounted.path
        assert not mounted.is_mounted


@pytest.mark.parametrize("option", ["no_such_option", "attr_timeout=5", "entry_timeout=5"])
def test_an_unknown_option_is_named(binding: str, option: str) -> None:
    """An option that the mount does not know, or that was libfuse's own, is an error of one line that names it."""
    mounted = MemoryMount(binding, extra=[option])
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        text = mounted.log.read_text().strip()
        assert text.startswith("MountError: ")
        assert option.partition("=")[0] in text
        assert "\n" not in text
        assert not mounted.is_mounted
    finally:
        mounted.__exit__()


def test_choosing_a_binding() -> None:
    """Both can be used here, libfuse 3 is preferred, and an unknown name is a usage error."""
    assert list_bindings() == {"fusepy": "", "mfusepy": ""}
    assert select_device().name == "mfusepy"
    assert select_device("fusepy").library.startswith("libfuse 2.")
    with pytest.raises(UsageError, match="no binding 'pyfuse3'"):
        select_device("pyfuse3")

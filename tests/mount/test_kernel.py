"""Calls of programs on real kernel mounts of `tests/support/kernel_tree.py`."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from redisfuse.fuse.interface import TIME_NOW
from tests.support.memory_mount import LIBC, MemoryMount, call_errno, within

LOGGED = pytest.mark.expected_log("LOOKUP: unexpected [A-Z]")
BLOCKING = ["lookup", "getattr", "open", "read", "write", "flush", "release", "readdir", "create"]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raise-notfound", errno.ENOENT),
        ("raise-access", errno.EACCES),
        ("raise-stale", errno.ESTALE),
        ("raise-unavailable", errno.EIO),
        ("raise-oserror", errno.ENOSPC),
        pytest.param("raise-oserror-bare", errno.EIO, marks=LOGGED),
        pytest.param("raise-oserror-negative", errno.EIO, marks=LOGGED),
        pytest.param("raise-valueerror", errno.EIO, marks=LOGGED),
        pytest.param("raise-baseexception", errno.EIO, marks=LOGGED),
        pytest.param("raise-systemexit", errno.EIO, marks=LOGGED),
        pytest.param("raise-keyboard", errno.EIO, marks=LOGGED),
        ("raise-enosys", errno.ENOTSUP),
    ],
)
def test_every_exception_becomes_its_errno(mount: MemoryMount, name: str, expected: int) -> None:
    """An error of ours has its own errno, anything unexpected is EIO, and the mount continues."""
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


@LOGGED
def test_only_bugs_are_logged(mount: MemoryMount) -> None:
    """A bug leaves its traceback in the log; an error that is meant for the program does not."""
    assert call_errno(lambda: os.stat(mount.path / "raise-valueerror")) == errno.EIO
    assert call_errno(lambda: os.stat(mount.path / "raise-access")) == errno.EACCES
    log = mount.log.read_text()
    assert "ValueError: a bug" in log
    assert "AccessError" not in log


@pytest.mark.expected_log("rejected the reply")
def test_a_reply_that_the_kernel_rejects_is_an_error(mount: MemoryMount) -> None:
    """The program gets EIO instead of waiting forever, and the log says why."""
    mount.put_file("/bad", "overlong")
    assert call_errno((mount.path / "bad").read_bytes) == errno.EIO
    assert "rejected the reply" in mount.log.read_text()
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


# -- files -------------------------------------------------------------------------------------------------------------


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
    """8 MiB are written and, past the page cache, read in requests of 1 MiB."""
    data = random.Random(1).randbytes(8 << 20)
    mount.send_request("counts")
    (mount.path / "long").write_bytes(data)
    assert mount.take_counts()["write"] <= 10
    assert (mount.path / "long").read_bytes() == data
    os.unlink(mount.path / "long")
    mount.put_file("/direct", "direct" + "x" * (8 << 20))
    descriptor = os.open(mount.path / "direct", os.O_RDONLY)
    mount.send_request("counts")
    assert len(os.read(descriptor, 8 << 20)) == 8 << 20
    os.close(descriptor)
    assert mount.take_counts()["read"] <= 9


def test_direct_io_reads_past_the_size(mount: MemoryMount) -> None:
    """A file that reports no size and is opened for direct I/O is read to its end."""
    mount.put_file("/streamed", "direct" + "x" * 200_000)
    assert os.stat(mount.path / "streamed").st_size == 0
    assert len((mount.path / "streamed").read_bytes()) == 200_006
    head = subprocess.run(["head", "-c", "7", mount.path / "streamed"], capture_output=True, check=True, timeout=10)
    assert head.stdout == b"directx"


def test_flags_and_mode_of_a_new_file_arrive(mount: MemoryMount) -> None:
    """CREATE has O_EXCL and the permission bits, without those of the umask."""
    os.close(os.open(mount.path / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert mount.take_counts()["create-exclusive"] == 1
    assert os.stat(mount.path / "new").st_mode == stat.S_IFREG | 0o600
    assert call_errno(lambda: os.open(mount.path / "new", os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    os.close(os.open(mount.path / "another", os.O_CREAT | os.O_WRONLY, 0o640))
    assert mount.take_counts()["create"] == 1


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


def test_reading_costs_no_flush(mount: MemoryMount) -> None:
    """A close of what was only read sends no FLUSH, that of what was written does."""
    (mount.path / "flushed").write_bytes(b"x")
    assert mount.take_counts()["flush"] == 1
    (mount.path / "flushed").read_bytes()
    assert mount.take_counts()["flush"] == 0


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
        mount.send_request("counts")
        os.rename(moved / "other", moved / "renamed")
        counts = mount.take_counts()
        assert (counts["rename"], counts["unlink"]) == (1, 0)
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
    """Nanoseconds, times before 1970, "now", and fields to leave unchanged are distinct."""
    file = mount.path / "touched"
    file.touch()
    for time_ns in (2_000_000_002, -1_500_000_000):
        os.utime(file, ns=(1, time_ns))
        assert os.stat(file).st_mtime_ns == time_ns
    os.utime(file)
    assert os.stat(file).st_mtime_ns == 2_000_000_000_000_000_000
    subprocess.run(["touch", "-a", "-d", "@5", file], check=True, timeout=10)
    assert os.stat(file).st_mtime_ns == 2_000_000_000_000_000_000
    os.chown(file, 5, -1)
    os.chown(file, -1, 6)
    changes = mount.send_request("counts")["changes"]
    times = [(change["atime_ns"], change["mtime_ns"]) for change in changes[:4]]
    assert times == [(1, 2_000_000_002), (1, -1_500_000_000), (TIME_NOW, TIME_NOW), (5_000_000_000, None)]
    assert [(change["uid"], change["gid"]) for change in changes[4:]] == [(5, None), (None, 6)]
    assert all(change["size"] is None for change in changes)


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


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "blocking"), [("hang", []), ("hang", BLOCKING), ("hang-leading", [])])
def test_a_blocked_call_blocks_no_other(binding: str, name: str, blocking: list[str]) -> None:
    """While one answer does not come, sixteen threads read, write and list; afterwards nothing is left open."""
    with MemoryMount(binding, tree={"small": 2000}, blocking=blocking) as mount:
        mount.send_request("mkdir", path="/apart")  # a look-up locks its directory: nothing can be made there meanwhile
        program = ["stat", mount.path / "apart" / name]
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
        assert mount.send_request("counts")["tasks"] < 70  # 64 workers at most


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

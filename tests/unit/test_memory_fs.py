"""The memory filesystem behaves as a real directory, is bounded, and is safe from many threads."""

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from redisfuse.errors import (
    BadHandleError,
    ConflictError,
    ExistsError,
    IsDirectoryError,
    NoAttributeError,
    NoSpaceError,
    NotEmptyError,
    NotFoundError,
    RedisFuseError,
)
from redisfuse.vfs.memory_file import MemoryFile
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.memory_inodes import ENTRY_OVERHEAD_BYTES, MemoryFileStat
from tests.support.examples import count_examples

MIB = 1024 * 1024


@pytest.fixture
def memory_fs() -> MemoryFS:
    """Return a filesystem of one mebibyte."""
    return MemoryFS(MIB)


def content(memory_fs: MemoryFS, path: bytes) -> bytes:
    """Return the contents of a file."""
    with memory_fs.open_copy(path) as file:
        return file.read()


def test_a_file_holds_what_is_written(memory_fs: MemoryFS) -> None:
    """A file holds the bytes written, and zeros in the gaps."""
    memory_fs.create(b"a/b/.k.swp", 0o644)
    file = memory_fs.open(b"a/b/.k.swp")
    file.write(3, b"abc")
    file.append(b"def")
    assert file.size == 9
    assert file.read(0, 100) == b"\0\0\0abcdef"
    assert file.read(100, 5) == b""
    file.truncate(4)
    file.truncate(6)
    assert content(memory_fs, b"a/b/.k.swp") == b"\0\0\0a\0\0"
    assert memory_fs.exists(b"a/b/.k.swp")
    assert not memory_fs.exists(b"a/b")
    assert memory_fs.listdir(b"a/b") == (b".k.swp",)
    assert memory_fs.listdir(b"") == ()
    file.close()
    file.close()
    with pytest.raises(BadHandleError):
        file.read(0, 1)


def test_create_keeps_an_existing_file(memory_fs: MemoryFS) -> None:
    """Creating an existing file leaves it as it is, and fails with O_EXCL."""
    memory_fs.write_file(b"k~", [b"ab", b"c"])
    memory_fs.create(b"k~", 0o600)
    assert content(memory_fs, b"k~") == b"abc"
    with pytest.raises(ExistsError):
        memory_fs.create(b"k~", 0o600, exclusive=True)
    memory_fs.mkdir(b"d", 0o700)
    for call in (
        lambda: memory_fs.create(b"d", 0o600),
        lambda: memory_fs.write_file(b"d", []),
        lambda: memory_fs.open(b"d"),
    ):
        with pytest.raises(IsDirectoryError):
            call()


def test_an_open_file_outlives_its_name(memory_fs: MemoryFS) -> None:
    """Handles keep the contents of an unlinked or replaced file; the last close frees its memory."""
    empty = memory_fs.used_bytes
    memory_fs.write_file(b"x", [b"old"])
    file = memory_fs.open(b"x")
    memory_fs.unlink(b"x")
    assert not memory_fs.exists(b"x")
    memory_fs.write_file(b"x", [b"new"])
    file.append(b"er")
    assert file.read(0, 10) == b"older"
    assert content(memory_fs, b"x") == b"new"
    other = memory_fs.open(b"x")
    memory_fs.write_file(b"y", [b"yy"])
    memory_fs.rename(b"y", b"x")
    assert other.read(0, 10) == b"new"
    assert content(memory_fs, b"x") == b"yy"
    file.close()
    other.close()
    memory_fs.unlink(b"x")
    assert memory_fs.used_bytes == empty


def test_attributes(memory_fs: MemoryFS) -> None:
    """Mode, size and time are stored; changing the contents, or the entries of a directory, updates the time."""
    memory_fs.mkdir(b"d", 0o750)
    memory_fs.create(b"d/f", 0o100644)
    memory_fs.set_mtime(b"d", 5)
    memory_fs.set_mtime(b"d/f", 6)
    memory_fs.set_mode(b"d/f", 0o640)
    assert memory_fs.stat(b"d") == MemoryFileStat(True, 0o750, 0, 5)
    assert memory_fs.stat(b"d/f") == MemoryFileStat(False, 0o640, 0, 6)
    memory_fs.write_file(b"d/f", [b"123"])
    assert memory_fs.stat(b"d/f").size == 3
    assert memory_fs.stat(b"d/f").mtime_ns > 6
    assert memory_fs.open(b"d/f").stat == memory_fs.stat(b"d/f")
    memory_fs.create(b"d/g", 0o600)
    assert memory_fs.stat(b"d").mtime_ns > 5


def test_extended_attributes(memory_fs: MemoryFS) -> None:
    """Extended attributes behave as in setxattr(2), follow a rename and disappear with the file."""
    memory_fs.create(b"._k", 0o600)
    memory_fs.setxattr(b"._k", b"user.a", b"1")
    memory_fs.setxattr(b"._k", b"user.a", b"22", os.XATTR_REPLACE)
    with pytest.raises(ExistsError):
        memory_fs.setxattr(b"._k", b"user.a", b"3", os.XATTR_CREATE)
    with pytest.raises(NoAttributeError):
        memory_fs.setxattr(b"._k", b"user.b", b"3", os.XATTR_REPLACE)
    memory_fs.rename(b"._k", b"._m")
    assert memory_fs.listxattr(b"._m") == (b"user.a",)
    assert memory_fs.getxattr(b"._m", b"user.a") == b"22"
    memory_fs.removexattr(b"._m", b"user.a")
    for call in (memory_fs.getxattr, memory_fs.removexattr):
        with pytest.raises(NoAttributeError):
            call(b"._m", b"user.a")
    memory_fs.setxattr(b"._m", b"user.a", b"1")
    memory_fs.unlink(b"._m")
    assert memory_fs.used_bytes == 0
    with pytest.raises(NotFoundError):
        memory_fs.getxattr(b"._m", b"user.a")


def test_the_size_is_bounded() -> None:
    """Past the limit every growing call fails and changes nothing; freed bytes can be used again."""
    memory_fs = MemoryFS(10_000)
    memory_fs.write_file(b"a", [b"x" * 5000])
    file = memory_fs.open(b"a")
    attempts: list[Callable[[], Any]] = [
        lambda: file.write(5000, b"y" * 6000),
        lambda: file.append(b"y" * 6000),
        lambda: file.write(100_000, b"y"),
        lambda: file.truncate(1 << 40),
        lambda: memory_fs.write_file(b"b", [b"y" * 5000]),
        lambda: memory_fs.write_file(b"a", iter([b"y" * 6000, b"y" * 6000])),
        lambda: memory_fs.setxattr(b"a", b"user.x", b"y" * 6000),
    ]
    used = memory_fs.used_bytes
    for attempt in attempts:
        with pytest.raises(NoSpaceError):
            attempt()
        assert memory_fs.used_bytes == used
    assert content(memory_fs, b"a") == b"x" * 5000
    assert not memory_fs.exists(b"b")
    assert memory_fs.listxattr(b"a") == ()
    count = (10_000 - used) // (ENTRY_OVERHEAD_BYTES + 2)
    for number in range(count):
        memory_fs.create(b"%02d" % number, 0o600)
    with pytest.raises(NoSpaceError):
        memory_fs.mkdir(b"zz", 0o700)
    file.close()
    memory_fs.unlink(b"a")
    memory_fs.mkdir(b"zz", 0o700)


def test_a_sealed_file_rejects_writes(memory_fs: MemoryFS) -> None:
    """Handles of a file that was saved elsewhere can read it but not write to it."""
    memory_fs.create(b"f", 0o600)
    file = memory_fs.open(b"f")
    file.write(0, b"abc")
    memory_fs.unlink_and_seal(b"f")
    assert not memory_fs.exists(b"f")
    assert file.read(0, 9) == b"abc"
    for write in (lambda: file.write(0, b"x"), lambda: file.append(b"x"), lambda: file.truncate(0)):
        with pytest.raises(ConflictError):
            write()
    file.close()
    assert memory_fs.used_bytes == 0


def test_child_directories(memory_fs: MemoryFS) -> None:
    """A directory lists the names that lead to an entry of this filesystem, at any depth."""
    for path in (b".x.swp", b"a/.x.swp", b"b/c/d/.x.swp", b"b/e/.x.swp"):
        memory_fs.create(path, 0o600)
    assert memory_fs.child_directories(b"") == {b"a", b"b"}
    assert memory_fs.child_directories(b"b") == {b"c", b"e"}
    assert memory_fs.child_directories(b"b/c/d") == set()
    memory_fs.unlink(b"b/e/.x.swp")
    assert memory_fs.child_directories(b"b") == {b"c"}


def test_rename_below(memory_fs: MemoryFS) -> None:
    """When a directory of Redis is renamed, the junk in it follows."""
    memory_fs.create(b"a/.DS_Store", 0o600)
    memory_fs.mkdir(b"a/b/.Trash-1", 0o700)
    memory_fs.write_file(b"a/b/.Trash-1/x", [b"1"])
    memory_fs.create(b"ab", 0o600)
    memory_fs.rename_below(b"a", b"c/d")
    assert memory_fs.listdir(b"c/d") == (b".DS_Store",)
    assert content(memory_fs, b"c/d/b/.Trash-1/x") == b"1"
    assert memory_fs.listdir(b"a") == memory_fs.listdir(b"a/b") == ()
    assert memory_fs.exists(b"ab")


def test_rename_over_a_parent(memory_fs: MemoryFS) -> None:
    """A file or directory can't be renamed over the directory that it is in, as the directory is not empty."""
    memory_fs.mkdir(b"a", 0o700)
    memory_fs.mkdir(b"a/d", 0o700)
    memory_fs.create(b"a/x", 0o600)
    for old in (b"a/x", b"a/d"):
        with pytest.raises(NotEmptyError):
            memory_fs.rename(old, b"a")
        with pytest.raises(ExistsError):
            memory_fs.rename(old, b"a", replace=False)
    assert memory_fs.listdir(b"a") == (b"d", b"x")


def test_concurrent_threads(memory_fs: MemoryFS) -> None:
    """Threads that write, rename and remove at the same time lose no data and leave the byte count right."""
    memory_fs.create(b"shared", 0o600)

    def work(number: int) -> None:
        for turn in range(200):
            path = b"%d-%d" % (number, turn)
            memory_fs.write_file(path, [b"x" * 50])
            file = memory_fs.open(b"shared")
            file.append(b"%d" % number)
            file.close()
            memory_fs.rename(path, b"%d" % number)
        memory_fs.unlink(b"%d" % number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(content(memory_fs, b"shared")) == sorted(b"0123" * 200)
    memory_fs.unlink(b"shared")
    assert memory_fs.used_bytes == 0


names = st.sampled_from([b"a", b"b", b"a/x", b"b/x", b"a/x/y", b"b/c", b"a/c/z"])
small = st.binary(max_size=8)


class MatchesRealDirectory(RuleBasedStateMachine):
    """Every operation has the effect, or fails with the errno, that it has in a real directory."""

    def __init__(self) -> None:
        super().__init__()
        self.root = os.fsencode(tempfile.mkdtemp(prefix="redisfuse-memory-fs-"))
        self.memory_fs = MemoryFS(MIB)
        self.open: list[tuple[int, MemoryFile]] = []

    def teardown(self) -> None:
        for descriptor, file in self.open:
            os.close(descriptor)
            file.close()
        shutil.rmtree(self.root)

    def real(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    def has_parent(self, path: bytes) -> bool:
        """Return whether the parent exists, without which a comparison is unfair.

        The memory filesystem trusts the kernel that a parent exists, since it may be a directory of Redis.
        """
        return os.path.lexists(os.path.dirname(self.real(path)))

    def assert_same_outcome(self, real: Callable[[], Any], ours: Callable[[], Any]) -> bool:
        """Run both and compare their errno; return whether they succeeded."""
        expected = actual = 0
        try:
            real()
        except OSError as error:
            expected = error.errno or -1
        try:
            ours()
        except RedisFuseError as error:
            actual = error.errno
        assert actual == expected, (errno.errorcode.get(actual), errno.errorcode.get(expected))
        return not expected

    @rule(path=names, exclusive=st.booleans())
    def create(self, path: bytes, exclusive: bool) -> None:
        if self.has_parent(path):
            flags = os.O_CREAT | os.O_WRONLY | (os.O_EXCL if exclusive else 0)
            self.assert_same_outcome(
                lambda: os.close(os.open(self.real(path), flags, 0o640)),
                lambda: self.memory_fs.create(path, 0o640, exclusive=exclusive),
            )

    @rule(path=names)
    def mkdir(self, path: bytes) -> None:
        if self.has_parent(path):
            self.assert_same_outcome(
                lambda: os.mkdir(self.real(path), 0o750), lambda: self.memory_fs.mkdir(path, 0o750)
            )

    @rule(path=names)
    def unlink(self, path: bytes) -> None:
        if self.has_parent(path) and not os.path.isfile(os.path.dirname(self.real(path))):
            self.assert_same_outcome(lambda: os.unlink(self.real(path)), lambda: self.memory_fs.unlink(path))

    @rule(path=names)
    def rmdir(self, path: bytes) -> None:
        if self.has_parent(path) and not os.path.isfile(os.path.dirname(self.real(path))):
            self.assert_same_outcome(lambda: os.rmdir(self.real(path)), lambda: self.memory_fs.rmdir(path))

    @rule(old=names, new=names)
    def rename(self, old: bytes, new: bytes) -> None:
        # below a file rename(2) fails with ENOTDIR, MemoryFS with ENOENT: the kernel's look-up fails before that
        if os.path.lexists(self.real(old)) and self.has_parent(new):
            self.assert_same_outcome(
                lambda: os.rename(self.real(old), self.real(new)), lambda: self.memory_fs.rename(old, new)
            )

    @rule(path=names)
    def open_file(self, path: bytes) -> None:
        if os.path.isfile(self.real(path)) and len(self.open) < 4:
            self.open.append((os.open(self.real(path), os.O_RDWR), self.memory_fs.open(path)))

    @rule(which=st.integers(0, 3), offset=st.integers(0, 20), data=small)
    def write(self, which: int, offset: int, data: bytes) -> None:
        if which < len(self.open):
            descriptor, file = self.open[which]
            self.assert_same_outcome(lambda: os.pwrite(descriptor, data, offset), lambda: file.write(offset, data))

    @rule(which=st.integers(0, 3), size=st.integers(0, 30))
    def truncate(self, which: int, size: int) -> None:
        if which < len(self.open):
            descriptor, file = self.open[which]
            self.assert_same_outcome(lambda: os.ftruncate(descriptor, size), lambda: file.truncate(size))

    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        if which < len(self.open):
            descriptor, file = self.open.pop(which)
            os.close(descriptor)
            file.close()

    @invariant()
    def has_the_same_tree(self) -> None:
        real_stats = {}
        for parent, directories, files in os.walk(self.root):
            base = os.path.relpath(parent, self.root)
            base = b"" if base == b"." else base
            assert sorted(self.memory_fs.listdir(base)) == sorted(directories + files)
            for name in directories + files:
                real_stats[os.path.join(base, name)] = os.stat(os.path.join(parent, name))
        cost = 0
        for path, real in real_stats.items():
            ours = self.memory_fs.stat(path)
            assert (ours.is_directory, ours.mode) == (stat.S_ISDIR(real.st_mode), stat.S_IMODE(real.st_mode))
            cost += ENTRY_OVERHEAD_BYTES + len(path)
            if not ours.is_directory:
                assert content(self.memory_fs, path) == Path(os.fsdecode(self.real(path))).read_bytes()
                cost += ours.size
        unlinked = {}
        for descriptor, file in self.open:
            real = os.fstat(descriptor)
            assert file.size == real.st_size
            assert file.read(0, 100) == os.pread(descriptor, 100, 0)
            if not real.st_nlink:
                unlinked[real.st_ino] = real.st_size
        assert self.memory_fs.used_bytes == cost + sum(unlinked.values())


MatchesRealDirectory.TestCase.settings = settings(
    max_examples=count_examples(60), stateful_step_count=40, deadline=None
)
TestMatchesRealDirectory = MatchesRealDirectory.TestCase

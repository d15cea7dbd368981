"""The scratch area is a filesystem: the same as a real directory, bounded, and safe from many threads."""

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
    NotFoundError,
    RedisFuseError,
)
from redisfuse.vfs.memory_fs import ENTRY_OVERHEAD_BYTES, MemoryFile, MemoryFileStat, MemoryFS

MIB = 1024 * 1024


@pytest.fixture
def scratch() -> MemoryFS:
    """An area of one mebibyte."""
    return MemoryFS(MIB)


def content(scratch: MemoryFS, path: bytes) -> bytes:
    """All of a file."""
    with scratch.open_copy(path) as file:
        return file.read()


def test_file(scratch: MemoryFS) -> None:
    """A file holds what is written, with zeros where nothing was."""
    scratch.create(b"a/b/.k.swp", 0o644)
    file = scratch.open(b"a/b/.k.swp")
    file.write(3, b"abc")
    file.append(b"def")
    assert file.size == 9
    assert file.read(0, 100) == b"\0\0\0abcdef"
    assert file.read(100, 5) == b""
    file.truncate(4)
    file.truncate(6)
    assert content(scratch, b"a/b/.k.swp") == b"\0\0\0a\0\0"
    assert scratch.exists(b"a/b/.k.swp")
    assert not scratch.exists(b"a/b")
    assert scratch.listdir(b"a/b") == (b".k.swp",)
    assert scratch.listdir(b"") == ()
    file.close()
    file.close()
    with pytest.raises(BadHandleError):
        file.read(0, 1)


def test_create_twice(scratch: MemoryFS) -> None:
    """Making a file that is there leaves it as it is, and fails if it is made exclusively."""
    scratch.write_file(b"k~", [b"ab", b"c"])
    scratch.create(b"k~", 0o600)
    assert content(scratch, b"k~") == b"abc"
    with pytest.raises(ExistsError):
        scratch.create(b"k~", 0o600, exclusive=True)
    scratch.mkdir(b"d", 0o700)
    for call in (lambda: scratch.create(b"d", 0o600), lambda: scratch.write_file(b"d", []), lambda: scratch.open(b"d")):
        with pytest.raises(IsDirectoryError):
            call()


def test_unlinked_while_open(scratch: MemoryFS) -> None:
    """A file that is unlinked or replaced lives on for who has it open, and its memory comes back after that."""
    empty = scratch.used_bytes
    scratch.write_file(b"x", [b"old"])
    file = scratch.open(b"x")
    scratch.unlink(b"x")
    assert not scratch.exists(b"x")
    scratch.write_file(b"x", [b"new"])
    file.append(b"er")
    assert file.read(0, 10) == b"older"
    assert content(scratch, b"x") == b"new"
    other = scratch.open(b"x")
    scratch.write_file(b"y", [b"yy"])
    scratch.rename(b"y", b"x")
    assert other.read(0, 10) == b"new"
    assert content(scratch, b"x") == b"yy"
    file.close()
    other.close()
    scratch.unlink(b"x")
    assert scratch.used_bytes == empty


def test_attributes(scratch: MemoryFS) -> None:
    """Mode, size and time are kept; a change of the contents, or of what is in a directory, is a new time."""
    scratch.mkdir(b"d", 0o750)
    scratch.create(b"d/f", 0o100644)
    scratch.set_mtime(b"d", 5)
    scratch.set_mtime(b"d/f", 6)
    scratch.set_mode(b"d/f", 0o640)
    assert scratch.stat(b"d") == MemoryFileStat(True, 0o750, 0, 5)
    assert scratch.stat(b"d/f") == MemoryFileStat(False, 0o640, 0, 6)
    scratch.write_file(b"d/f", [b"123"])
    assert scratch.stat(b"d/f").size == 3
    assert scratch.stat(b"d/f").mtime_ns > 6
    assert scratch.open(b"d/f").stat == scratch.stat(b"d/f")
    scratch.create(b"d/g", 0o600)
    assert scratch.stat(b"d").mtime_ns > 5


def test_extended_attributes(scratch: MemoryFS) -> None:
    """Extended attributes are set, listed, read and removed as setxattr(2) says, and go with the file."""
    scratch.create(b"._k", 0o600)
    scratch.setxattr(b"._k", b"user.a", b"1")
    scratch.setxattr(b"._k", b"user.a", b"22", os.XATTR_REPLACE)
    with pytest.raises(ExistsError):
        scratch.setxattr(b"._k", b"user.a", b"3", os.XATTR_CREATE)
    with pytest.raises(NoAttributeError):
        scratch.setxattr(b"._k", b"user.b", b"3", os.XATTR_REPLACE)
    scratch.rename(b"._k", b"._m")
    assert scratch.listxattr(b"._m") == (b"user.a",)
    assert scratch.getxattr(b"._m", b"user.a") == b"22"
    scratch.removexattr(b"._m", b"user.a")
    for call in (scratch.getxattr, scratch.removexattr):
        with pytest.raises(NoAttributeError):
            call(b"._m", b"user.a")
    scratch.setxattr(b"._m", b"user.a", b"1")
    scratch.unlink(b"._m")
    assert scratch.used_bytes == 0
    with pytest.raises(NotFoundError):
        scratch.getxattr(b"._m", b"user.a")


def test_bounded() -> None:
    """Past the limit whatever would take more is refused and changes nothing; what is freed can be used again."""
    scratch = MemoryFS(10_000)
    scratch.write_file(b"a", [b"x" * 5000])
    file = scratch.open(b"a")
    attempts: list[Callable[[], Any]] = [
        lambda: file.write(5000, b"y" * 6000),
        lambda: file.append(b"y" * 6000),
        lambda: file.write(100_000, b"y"),
        lambda: file.truncate(1 << 40),
        lambda: scratch.write_file(b"b", [b"y" * 5000]),
        lambda: scratch.write_file(b"a", iter([b"y" * 6000, b"y" * 6000])),
        lambda: scratch.setxattr(b"a", b"user.x", b"y" * 6000),
    ]
    used = scratch.used_bytes
    for attempt in attempts:
        with pytest.raises(NoSpaceError):
            attempt()
        assert scratch.used_bytes == used
    assert content(scratch, b"a") == b"x" * 5000
    assert not scratch.exists(b"b")
    assert scratch.listxattr(b"a") == ()
    count = (10_000 - used) // (ENTRY_OVERHEAD_BYTES + 2)
    for number in range(count):
        scratch.create(b"%02d" % number, 0o600)
    with pytest.raises(NoSpaceError):
        scratch.mkdir(b"zz", 0o700)
    file.close()
    scratch.unlink(b"a")
    scratch.mkdir(b"zz", 0o700)


def test_hidden(scratch: MemoryFS) -> None:
    """A file that is hidden is read by its new path, in no listing, also in a renamed folder; it goes when closed."""
    scratch.create(b"d/f", 0o600)
    used = scratch.used_bytes
    file = scratch.open(b"d/f")
    file.write(0, b"abc")
    scratch.hide(b"d/f", b"d/.hidden")
    assert not scratch.exists(b"d/f")
    assert content(scratch, b"d/.hidden") == b"abc"
    scratch.rename_below(b"d", b"e")
    assert content(scratch, b"e/.hidden") == b"abc"
    assert scratch.listdir(b"d") == scratch.listdir(b"e") == ()
    assert scratch.child_directories(b"") == set()
    other = scratch.open(b"e/.hidden")
    file.close()
    assert other.read(0, 9) == b"abc"
    other.close()
    assert used > scratch.used_bytes == 0
    assert not scratch.exists(b"e/.hidden")
    scratch.create(b"f", 0o600)
    scratch.hide(b"f", b".hidden")  # its close came first
    assert scratch.used_bytes == 0
    scratch.create(b"f", 0o600)
    file = scratch.open(b"f")
    scratch.hide(b"f", b".hidden")
    scratch.unlink(b".hidden")
    assert not scratch.exists(b".hidden")
    file.close()
    assert scratch.used_bytes == 0
    scratch.mkdir(b"dir", 0o700)
    with pytest.raises(IsDirectoryError):
        scratch.hide(b"dir", b".hidden")


def test_handed_over(scratch: MemoryFS) -> None:
    """Once a file was saved elsewhere, who has it open can read it but not write to it."""
    scratch.create(b"f", 0o600)
    file = scratch.open(b"f")
    file.write(0, b"abc")
    scratch.unlink_and_seal(b"f")
    assert not scratch.exists(b"f")
    assert file.read(0, 9) == b"abc"
    for write in (lambda: file.write(0, b"x"), lambda: file.append(b"x"), lambda: file.truncate(0)):
        with pytest.raises(ConflictError):
            write()
    file.close()
    assert scratch.used_bytes == 0


def test_folders(scratch: MemoryFS) -> None:
    """It is known which names of a folder lead to something here, at any depth."""
    for path in (b".x.swp", b"a/.x.swp", b"b/c/d/.x.swp", b"b/e/.x.swp"):
        scratch.create(path, 0o600)
    assert scratch.child_directories(b"") == {b"a", b"b"}
    assert scratch.child_directories(b"b") == {b"c", b"e"}
    assert scratch.child_directories(b"b/c/d") == set()
    scratch.unlink(b"b/e/.x.swp")
    assert scratch.child_directories(b"b") == {b"c"}


def test_rename_below(scratch: MemoryFS) -> None:
    """When a folder of Redis is renamed, the junk in it goes with it."""
    scratch.create(b"a/.DS_Store", 0o600)
    scratch.mkdir(b"a/b/.Trash-1", 0o700)
    scratch.write_file(b"a/b/.Trash-1/x", [b"1"])
    scratch.create(b"ab", 0o600)
    scratch.rename_below(b"a", b"c/d")
    assert scratch.listdir(b"c/d") == (b".DS_Store",)
    assert content(scratch, b"c/d/b/.Trash-1/x") == b"1"
    assert scratch.listdir(b"a") == scratch.listdir(b"a/b") == ()
    assert scratch.exists(b"ab")


def test_threads(scratch: MemoryFS) -> None:
    """Threads that write, rename and remove at once lose nothing and leave the count of bytes right."""
    scratch.create(b"shared", 0o600)

    def work(number: int) -> None:
        for turn in range(200):
            path = b"%d-%d" % (number, turn)
            scratch.write_file(path, [b"x" * 50])
            file = scratch.open(b"shared")
            file.append(b"%d" % number)
            file.close()
            scratch.rename(path, b"%d" % number)
        scratch.unlink(b"%d" % number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(content(scratch, b"shared")) == sorted(b"0123" * 200)
    scratch.unlink(b"shared")
    assert scratch.used_bytes == 0


names = st.sampled_from([b"a", b"b", b"a/x", b"b/x", b"a/x/y", b"b/c", b"a/c/z"])
small = st.binary(max_size=8)


class SameAsReal(RuleBasedStateMachine):
    """Every operation does, or refuses with the same errno, what it does in a real directory."""

    def __init__(self) -> None:
        super().__init__()
        self.root = os.fsencode(tempfile.mkdtemp(prefix="redisfuse-scratch-"))
        self.scratch = MemoryFS(MIB)
        self.open: list[tuple[int, MemoryFile]] = []

    def teardown(self) -> None:
        for descriptor, file in self.open:
            os.close(descriptor)
            file.close()
        shutil.rmtree(self.root)

    def real(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    def has_parent(self, path: bytes) -> bool:
        """Scratch trusts the kernel that a folder exists (it may be one of Redis); only then is the comparison fair."""
        return os.path.lexists(os.path.dirname(self.real(path)))

    def same(self, real: Callable[[], Any], ours: Callable[[], Any]) -> bool:
        """Do both; return whether they succeeded."""
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
            self.same(
                lambda: os.close(os.open(self.real(path), flags, 0o640)),
                lambda: self.scratch.create(path, 0o640, exclusive=exclusive),
            )

    @rule(path=names)
    def mkdir(self, path: bytes) -> None:
        if self.has_parent(path):
            self.same(lambda: os.mkdir(self.real(path), 0o750), lambda: self.scratch.mkdir(path, 0o750))

    @rule(path=names)
    def unlink(self, path: bytes) -> None:
        if self.has_parent(path) and not os.path.isfile(os.path.dirname(self.real(path))):
            self.same(lambda: os.unlink(self.real(path)), lambda: self.scratch.unlink(path))

    @rule(path=names)
    def rmdir(self, path: bytes) -> None:
        if self.has_parent(path) and not os.path.isfile(os.path.dirname(self.real(path))):
            self.same(lambda: os.rmdir(self.real(path)), lambda: self.scratch.rmdir(path))

    @rule(old=names, new=names)
    def rename(self, old: bytes, new: bytes) -> None:
        # below a file rename(2) says ENOTDIR where we say ENOENT: the kernel's look-up never lets that come here
        if os.path.lexists(self.real(old)) and self.has_parent(new):
            self.same(lambda: os.rename(self.real(old), self.real(new)), lambda: self.scratch.rename(old, new))

    @rule(path=names)
    def open_file(self, path: bytes) -> None:
        if os.path.isfile(self.real(path)) and len(self.open) < 4:
            self.open.append((os.open(self.real(path), os.O_RDWR), self.scratch.open(path)))

    @rule(which=st.integers(0, 3), offset=st.integers(0, 20), data=small)
    def write(self, which: int, offset: int, data: bytes) -> None:
        if which < len(self.open):
            descriptor, file = self.open[which]
            self.same(lambda: os.pwrite(descriptor, data, offset), lambda: file.write(offset, data))

    @rule(which=st.integers(0, 3), size=st.integers(0, 30))
    def truncate(self, which: int, size: int) -> None:
        if which < len(self.open):
            descriptor, file = self.open[which]
            self.same(lambda: os.ftruncate(descriptor, size), lambda: file.truncate(size))

    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        if which < len(self.open):
            descriptor, file = self.open.pop(which)
            os.close(descriptor)
            file.close()

    @invariant()
    def is_the_same(self) -> None:
        found = {}
        for folder, directories, files in os.walk(self.root):
            base = os.path.relpath(folder, self.root)
            base = b"" if base == b"." else base
            assert sorted(self.scratch.listdir(base)) == sorted(directories + files)
            for name in directories + files:
                found[os.path.join(base, name)] = os.stat(os.path.join(folder, name))
        cost = 0
        for path, real in found.items():
            ours = self.scratch.stat(path)
            assert (ours.is_directory, ours.mode) == (stat.S_ISDIR(real.st_mode), stat.S_IMODE(real.st_mode))
            cost += ENTRY_OVERHEAD_BYTES + len(path)
            if not ours.is_directory:
                assert content(self.scratch, path) == Path(os.fsdecode(self.real(path))).read_bytes()
                cost += ours.size
        unlinked = {}
        for descriptor, file in self.open:
            real = os.fstat(descriptor)
            assert file.size == real.st_size
            assert file.read(0, 100) == os.pread(descriptor, 100, 0)
            if not real.st_nlink:
                unlinked[real.st_ino] = real.st_size
        assert self.scratch.used_bytes == cost + sum(unlinked.values())


SameAsReal.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSameAsReal = SameAsReal.TestCase

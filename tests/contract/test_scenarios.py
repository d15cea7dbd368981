"""Sequences of calls, which return the same on a mount and on an ordinary filesystem.

A scenario is a generator of all results that the program gets. Deliberate differences are in `test_differences.py`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.expected_state import call_outcome, comparable_stat, read_tree, renameat2, tmpfs_folder
from tests.support.mounts import MountedServer, flush_and_wait, wait_until
from tests.support.redis_server import RedisServer

Scenario = Callable[[Path], Iterator[Any]]
SCENARIOS: list[Scenario] = []

RENAME_NOREPLACE = 1


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


def open_file(path: Path, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
    return os.open(path, flags, mode)


def read_all(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


# -- removed and replaced while open -----------------------------------------------------------------------------------


@scenario
def unlinked_while_open(root: Path) -> Iterator[Any]:
    """Read an unlinked file through its descriptors; its name is free at once."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    one, two = open_file(path), open_file(path, os.O_RDONLY)
    os.unlink(path)
    yield call_outcome(os.stat, path), comparable_stat(os.fstat(one)), comparable_stat(os.fstat(two))
    yield os.listdir(root)
    yield read_all(one), read_all(two)
    yield call_outcome(os.write, one, b"new"), read_all(two)
    yield call_outcome(os.ftruncate, one, 5), os.fstat(two).st_size
    yield call_outcome(os.fchmod, one, 0o600), call_outcome(os.utime, one), call_outcome(os.fsync, one)
    yield call_outcome(os.write, one, b"more"), read_all(two), comparable_stat(os.fstat(one))
    path.write_bytes(b"another")
    yield path.read_bytes(), read_all(two)
    third = open_file(path)
    yield call_outcome(os.write, third, b"A"), read_all(third), read_all(one)
    os.unlink(path)
    yield read_all(third), read_all(one), os.listdir(root)
    for fd in (one, two, third):
        yield call_outcome(os.close, fd)
    yield os.listdir(root)


@scenario
def unlinked_with_unsaved_bytes(root: Path) -> Iterator[Any]:
    """Keep bytes that were written but not saved before the unlink, in the descriptor."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = open_file(path)
    os.pwrite(fd, b"xx", 4)
    os.unlink(path)
    yield read_all(fd), call_outcome(os.stat, path)
    os.pwrite(fd, b"end", 12)
    yield read_all(fd), call_outcome(os.fsync, fd)
    yield call_outcome(os.close, fd), os.listdir(root)


@scenario
def unlinked_before_it_was_ever_saved(root: Path) -> Iterator[Any]:
    """Unlink a new file while it is open."""
    path = root / "f"
    fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"abc")
    os.unlink(path)
    yield read_all(fd), call_outcome(os.stat, path), os.listdir(root)
    again = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(again, b"other")
    yield read_all(fd), read_all(again), call_outcome(os.close, fd), call_outcome(os.close, again)
    yield read_tree(root)


@scenario
def created_again_while_the_old_one_is_open(root: Path) -> Iterator[Any]:
    """Create another file with the name of an unlinked one."""
    path = root / "f"
    path.write_bytes(b"old")
    old = open_file(path)
    os.unlink(path)
    new = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(new, b"new!")
    os.write(old, b"OLD-and-longer")
    yield read_all(old), read_all(new), path.read_bytes()
    yield call_outcome(os.close, old), path.read_bytes()
    yield call_outcome(os.close, new), read_tree(root)


@scenario
def replaced_while_open(root: Path) -> Iterator[Any]:
    """Rename over an open file: descriptors keep the old file, the name has the new one."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"old")
    other.write_bytes(b"new!")
    reader, writer = open_file(path, os.O_RDONLY), open_file(path)
    os.write(writer, b"unsaved")
    os.rename(other, path)
    yield read_all(reader), read_all(writer), path.read_bytes(), os.listdir(root)
    os.write(writer, b" more")
    yield read_all(reader), path.read_bytes(), os.fstat(reader).st_size, os.stat(path).st_size
    yield call_outcome(os.close, writer), path.read_bytes()
    yield call_outcome(os.close, reader), read_tree(root)


@scenario
def replaced_several_times(root: Path) -> Iterator[Any]:
    """Replace a file four times; each descriptor keeps the file that it opened."""
    path = root / "f"
    path.write_bytes(b"0")
    descriptors = []
    for number in range(1, 5):
        descriptors.append(open_file(path))
        other = root / "new"
        other.write_bytes(b"%d" % number)
        os.replace(other, path)
    yield [read_all(fd) for fd in descriptors], path.read_bytes()
    for fd in descriptors:
        os.pwrite(fd, b"x", 1)
    yield [read_all(fd) for fd in descriptors], path.read_bytes()
    for fd in descriptors:
        os.close(fd)
    yield read_tree(root)


@scenario
def renamed_while_open(root: Path) -> Iterator[Any]:
    """Rename an open file, saved or not; its descriptor follows it."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"0123456789")
    fd = open_file(path)
    os.write(fd, b"ab")
    os.rename(path, other)
    yield other.read_bytes(), call_outcome(os.stat, path)
    os.write(fd, b"cd")
    yield other.read_bytes(), os.fstat(fd).st_size, call_outcome(os.fsync, fd)
    os.rename(other, path)
    os.write(fd, b"ef")
    yield call_outcome(os.close, fd), read_tree(root)


@scenario
def renamed_while_it_is_read(root: Path) -> Iterator[Any]:
    """Rename an open file, and give its name to another file or a directory at once."""
    for number, flags in enumerate((os.O_RDONLY, os.O_RDWR)):
        for make in (Path.mkdir, lambda path: path.write_bytes(b"another")):
            path, other = root / f"f{number}{make is Path.mkdir}", root / f"g{number}{make is Path.mkdir}"
            path.write_bytes(b"0123456789")
            fd = open_file(path, flags)
            os.rename(path, other)
            call_outcome(make, path)
            yield call_outcome(os.read, fd, 20), comparable_stat(call_outcome(os.fstat, fd)), call_outcome(os.close, fd)
    yield read_tree(root)


@scenario
def renamed_while_it_is_large(root: Path) -> Iterator[Any]:
    """Rename an open file too large to be cached whole, and its directory, and reuse the name."""
    (root / "d").mkdir()
    for old, new in (("big", "big2"), ("d/big", "e/big")):
        size = 1_200_000
        (root / old).write_bytes(b"a" * size)
        reader, writer = open_file(root / old, os.O_RDONLY), open_file(root / old)
        os.pwrite(writer, b"before", size // 2)
        if "/" in old:
            os.rename(root / "d", root / "e")
        else:
            os.rename(root / old, root / new)
        yield os.pread(writer, 5, size - 5), (root / new).read_bytes()[-5:], os.pread(reader, 5, size - 5)
        (root / old).parent.mkdir(exist_ok=True)
        (root / old).write_bytes(b"Z" * size)
        yield os.pread(writer, 5, size - 5), os.pread(reader, 5, size - 5)
        os.pwrite(writer, b"EDIT", 3)
        yield call_outcome(os.fsync, writer), os.pread(reader, 8, 0)
        with mmap.mmap(reader, 0, access=mmap.ACCESS_READ) as mapping:
            yield mapping[size - 5 :], mapping[:8]
        os.pwrite(writer, b"MORE" * 200_000, 0)
        yield call_outcome(os.close, writer), call_outcome(os.close, reader)
        content = (root / new).read_bytes()
        yield content[:8], content[800_000:800_005], content[-5:], len(content), (root / old).read_bytes()[:5]


@scenario
def replaced_where_a_directory_is_renamed(root: Path) -> Iterator[Any]:
    """Rename the directory of a replaced file that is still open."""
    (root / "d").mkdir()
    path, other = root / "d" / "f", root / "d" / "g"
    path.write_bytes(b"old")
    other.write_bytes(b"new!")
    fd, third = open_file(path), open_file(other)
    os.rename(other, path)
    os.rename(root / "d", root / "e")
    yield call_outcome(os.fstat, fd).st_size, read_all(fd), call_outcome(os.fstat, third).st_size, read_all(third)
    os.write(third, b"N")
    yield call_outcome(os.close, fd), call_outcome(os.close, third), read_tree(root)


@scenario
def renamed_before_it_was_ever_saved(root: Path) -> Iterator[Any]:
    """Rename a new file while it is being written."""
    fd = open_file(root / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"one")
    os.rename(root / "f", root / "g")
    os.write(fd, b" two")
    yield read_tree(root), call_outcome(os.close, fd), read_tree(root)


@scenario
def renamed_over_a_file_being_written(root: Path) -> Iterator[Any]:
    """Rename over a file that is being written: the written bytes are lost without an error."""
    path, other = root / "f", root / "g"
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"lost")
    other.write_bytes(b"kept")
    os.rename(other, path)
    os.write(fd, b" too")
    yield read_tree(root), call_outcome(os.fsync, fd), call_outcome(os.close, fd), read_tree(root)


@scenario
def renamed_while_both_are_open(root: Path) -> Iterator[Any]:
    """Rename an open file over an open file."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"old f")
    other.write_bytes(b"old g")
    f, g = open_file(path), open_file(other)
    os.write(f, b"NEW")
    os.write(g, b"LOST")
    os.rename(path, other)
    yield read_all(f), read_all(g), read_tree(root)
    os.write(f, b"!")
    os.write(g, b"?")
    yield read_tree(root), call_outcome(os.close, g), call_outcome(os.close, f), read_tree(root)


# -- several descriptors -----------------------------------------------------------------------------------------------


@scenario
def appending_from_two_descriptors(root: Path) -> Iterator[Any]:
    """Append from two descriptors; each write goes to the current end."""
    path = root / "log"
    one = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = open_file(path, os.O_WRONLY | os.O_APPEND)
    for number in range(5):
        os.write(one, b"a%d " % number)
        os.write(two, b"b%d " % number)
    yield path.read_bytes(), os.lseek(one, 0, os.SEEK_CUR)
    os.ftruncate(one, 3)
    os.write(two, b"end")
    yield path.read_bytes(), call_outcome(os.close, one)
    os.write(two, b"!")
    yield call_outcome(os.close, two), read_tree(root)


@scenario
def appending_beside_plain_writing(root: Path) -> Iterator[Any]:
    """Overwrite appended bytes through a descriptor without O_APPEND."""
    path = root / "f"
    path.write_bytes(b"base")
    plain, append = open_file(path), open_file(path, os.O_RDWR | os.O_APPEND)
    os.write(append, b"++")
    os.write(plain, b"PLAINLY")
    os.write(append, b"**")
    yield read_all(plain), read_all(append), os.lseek(append, 0, os.SEEK_CUR)
    os.lseek(append, 0, os.SEEK_SET)
    yield os.read(append, 4), os.write(append, b"z"), read_all(plain)
    yield call_outcome(os.close, plain), call_outcome(os.close, append), read_tree(root)


@scenario
def appending_begins_and_ends(root: Path) -> Iterator[Any]:
    """Remove and add O_APPEND with fcntl(2)."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = open_file(path, os.O_RDWR | os.O_APPEND)
    os.write(fd, b"end")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"XX", 0)
    yield read_all(fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    yield os.write(fd, b"more"), read_all(fd), call_outcome(os.close, fd), read_tree(root)


@scenario
def a_reader_beside_a_writer(root: Path) -> Iterator[Any]:
    """Read each write at once, saved or not, and the new size."""
    path = root / "f"
    path.write_bytes(b"start")
    reader = open_file(path, os.O_RDONLY)
    writer = open_file(path, os.O_WRONLY | os.O_APPEND)
    for number in range(4):
        os.write(writer, b" %d" % number)
        yield read_all(reader), os.fstat(reader).st_size, os.stat(path).st_size, path.read_bytes()
        os.fsync(writer)
        yield read_all(reader)
    os.close(writer)
    yield read_all(reader), os.fstat(reader).st_size
    path.write_bytes(b"anew")
    yield read_all(reader), os.fstat(reader).st_size
    os.truncate(path, 2)
    yield read_all(reader), os.fstat(reader).st_size
    os.close(reader)


@scenario
def duplicated_and_closed_one_by_one(root: Path) -> Iterator[Any]:
    """Close duplicates; each close saves, and the others remain usable."""
    path = root / "f"
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    copies = [os.dup(fd) for _ in range(3)]
    for number, copy in enumerate(copies):
        os.write(copy, b"%d" % number)
        yield call_outcome(os.close, copy), path.read_bytes()
    os.write(fd, b"!")
    yield call_outcome(os.close, fd), read_tree(root)


@scenario
def a_child_inherits(root: Path) -> Iterator[Any]:
    """Write to a descriptor that a child process inherited."""
    path = root / "f"
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"parent ")
    child = os.fork()
    if not child:
        os.write(fd, b"child ")
        os._exit(0)
    os.waitpid(child, 0)
    os.write(fd, b"parent")
    yield path.read_bytes(), call_outcome(os.close, fd), read_tree(root)


# -- truncate ----------------------------------------------------------------------------------------------------------


@scenario
def truncate_by_path(root: Path) -> Iterator[Any]:
    """Call truncate(2) on a file that is closed, open for reading, or open for writing."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    yield call_outcome(os.truncate, path, 7), path.read_bytes()
    yield call_outcome(os.truncate, path, 7), path.read_bytes()
    yield call_outcome(os.truncate, path, 9), path.read_bytes()
    reader = open_file(path, os.O_RDONLY)
    yield read_all(reader), call_outcome(os.truncate, path, 3), read_all(reader), os.fstat(reader).st_size
    writer = open_file(path, os.O_RDWR)
    os.pwrite(writer, b"unsaved", 2)
    yield call_outcome(os.truncate, path, 5), read_all(writer), read_all(reader)
    os.close(writer)
    yield read_all(reader), call_outcome(os.truncate, path, 0), read_all(reader), os.stat(path).st_size
    os.close(reader)
    yield (
        call_outcome(os.truncate, root / "none", 1),
        call_outcome(os.truncate, root, 1),
        call_outcome(os.truncate, path, -1),
    )
    yield read_tree(root)


@scenario
def truncate_and_write(root: Path) -> Iterator[Any]:
    """Truncate, extend and write; an extension contains NULs."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = open_file(path)
    os.ftruncate(fd, 4)
    os.ftruncate(fd, 8)
    yield read_all(fd)
    os.pwrite(fd, b"Z", 6)
    os.ftruncate(fd, 7)
    os.ftruncate(fd, 9)
    yield read_all(fd), call_outcome(os.close, fd), read_tree(root)
    fd = open_file(path)
    os.pwrite(fd, b"far", 10_000)
    os.ftruncate(fd, 5)
    yield read_all(fd), call_outcome(os.close, fd), read_tree(root)
    fd = open_file(path, os.O_RDWR | os.O_TRUNC)
    yield read_all(fd), call_outcome(os.close, fd), read_tree(root)


# -- renaming ----------------------------------------------------------------------------------------------------------


@scenario
def renames_of_files(root: Path) -> Iterator[Any]:
    """Rename to a free name, itself, a file and a directory, across directories, and a missing file."""
    (root / "d" / "e").mkdir(parents=True)
    (root / "f").write_bytes(b"f")
    (root / "g").write_bytes(b"g")
    yield call_outcome(os.rename, root / "f", root / "f"), read_tree(root)
    yield call_outcome(os.rename, root / "none", root / "x"), call_outcome(os.rename, root / "none", root / "g")
    yield call_outcome(os.rename, root / "f", root / "d"), call_outcome(os.rename, root / "f", root / "d" / "e")
    yield (
        call_outcome(os.rename, root / "f", root / "nowhere" / "f"),
        call_outcome(os.rename, root / "f", root / "g" / "f"),
    )
    yield call_outcome(os.rename, root / "f", root / "g"), read_tree(root)
    yield call_outcome(os.rename, root / "g", root / "d" / "e" / "g"), read_tree(root)
    yield [call_outcome(os.rename, root / "d" / "e" / "g", root / above) for above in ("d", "d/e")]
    yield call_outcome(os.rename, root / "d" / "e" / "g", root / "h"), read_tree(root)
    yield (
        call_outcome(os.rename, root / "h", f"{root}/h/"),
        call_outcome(os.rename, root / "h", f"{root}/new/"),
        read_tree(root),
    )


@scenario
def renames_of_directories(root: Path) -> Iterator[Any]:
    """Rename directories into themselves, and over files, empty and full directories."""
    for name in ("a/b/c", "full", "empty"):
        (root / name).mkdir(parents=True)
    (root / "a" / "b" / "f").write_bytes(b"f")
    (root / "full" / "g").write_bytes(b"g")
    (root / "file").write_bytes(b"file")
    a = root / "a"
    yield call_outcome(os.rename, a, a), call_outcome(os.rename, a, a / "b" / "x"), call_outcome(os.rename, a / "b", a)
    yield call_outcome(os.rename, a, root / "file"), call_outcome(os.rename, a, root / "full"), read_tree(root)
    yield call_outcome(os.rename, a, root / "empty"), read_tree(root)
    yield call_outcome(os.rename, root / "empty", root / "full" / "moved"), read_tree(root)
    yield call_outcome(os.rename, root / "full", f"{root}/last/"), read_tree(root)
    yield call_outcome(os.rename, root / "last" / "moved" / "b" / "c", root / "c"), read_tree(root)
    yield call_outcome(os.rename, root / "none", root / "x"), call_outcome(os.rename, root / "last", root / "no" / "x")
    yield call_outcome(os.rename, root / "c", root / "last" / "moved" / "b" / "c"), read_tree(root)


@scenario
def an_open_file_in_a_renamed_directory(root: Path) -> Iterator[Any]:
    """Rename the directory of open files, also of a new one; descriptors follow."""
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"0123")
    old = open_file(root / "d" / "f")
    new = open_file(root / "d" / "new", os.O_RDWR | os.O_CREAT)
    os.write(old, b"ab")
    os.write(new, b"one ")
    os.rename(root / "d", root / "e")
    yield read_tree(root)
    os.write(old, b"cd!")
    os.write(new, b"two")
    yield read_tree(root), call_outcome(os.close, old), call_outcome(os.close, new), read_tree(root)


@scenario
def without_replacing(root: Path) -> Iterator[Any]:
    """Get EEXIST from RENAME_NOREPLACE over any target."""
    (root / "d").mkdir()
    (root / "f").write_bytes(b"f")
    (root / "g").write_bytes(b"g")
    yield call_outcome(renameat2, root / "f", root / "g", RENAME_NOREPLACE), read_tree(root)
    yield call_outcome(renameat2, root / "f", root / "d", RENAME_NOREPLACE)
    yield call_outcome(renameat2, root / "d", root / "f", RENAME_NOREPLACE)
    fd = open_file(root / "new", os.O_RDWR | os.O_CREAT)
    yield (
        call_outcome(renameat2, root / "f", root / "new", RENAME_NOREPLACE),
        call_outcome(os.close, fd),
        read_tree(root),
    )


@scenario
def moving_without_replacing(root: Path) -> Iterator[Any]:
    """Move to a free name with RENAME_NOREPLACE."""
    (root / "d").mkdir()
    (root / "d" / "x").write_bytes(b"x")
    (root / "f").write_bytes(b"f")
    yield call_outcome(renameat2, root / "f", root / "h", RENAME_NOREPLACE), read_tree(root)
    yield call_outcome(renameat2, root / "d", root / "e", RENAME_NOREPLACE), read_tree(root)


LIBFUSE_3 = {moving_without_replacing}  # one of the differences with libfuse 2


@scenario
def swapping_by_way_of_a_third_name(root: Path) -> Iterator[Any]:
    """Swap two files, and two directories, with three renames."""
    for name in ("a", "b"):
        (root / f"d{name}").mkdir()
        (root / f"d{name}" / "f").write_bytes(name.encode())
        (root / name).write_bytes(name.encode() * 3)
    for one, two in (("a", "b"), ("da", "db")):
        os.rename(root / one, root / "t")
        os.rename(root / two, root / one)
        os.rename(root / "t", root / two)
        yield read_tree(root)


# -- directories -------------------------------------------------------------------------------------------------------


@scenario
def making_and_removing(root: Path) -> Iterator[Any]:
    """Call mkdir, rmdir and unlink on existing and missing paths, and on the wrong type."""
    d, f = root / "d", root / "f"
    f.write_bytes(b"f")
    yield (
        call_outcome(os.mkdir, d),
        call_outcome(os.mkdir, d),
        call_outcome(os.mkdir, f),
        call_outcome(os.mkdir, root / "no" / "d"),
    )
    yield (
        call_outcome(os.mkdir, f / "d"),
        call_outcome(open_file, f / "x", os.O_CREAT | os.O_RDWR),
        call_outcome(os.stat, f / "x"),
    )
    yield (
        call_outcome(os.rmdir, f),
        call_outcome(os.rmdir, root / "no"),
        call_outcome(os.unlink, d),
        call_outcome(os.unlink, root / "no"),
    )
    (d / "x").write_bytes(b"")
    yield (
        call_outcome(os.rmdir, d),
        call_outcome(os.unlink, d / "x"),
        os.listdir(d),
        call_outcome(os.rmdir, d),
        call_outcome(os.stat, d),
    )
    yield (
        call_outcome(os.mkdir, d),
        call_outcome(open_file, d, os.O_RDWR),
        call_outcome(open_file, f, os.O_RDONLY | os.O_DIRECTORY),
    )
    (d / "sub").mkdir()
    yield call_outcome(os.rmdir, d), call_outcome(os.rmdir, d / "sub"), call_outcome(os.rmdir, d), os.listdir(root)


@scenario
def dots(root: Path) -> Iterator[Any]:
    """Resolve `.` and `..`, and fail to create, remove or rename them."""
    d = root / "d"
    d.mkdir()
    (root / "f").write_bytes(b"f")
    yield (
        comparable_stat(os.stat(f"{d}/.")),
        comparable_stat(os.stat(f"{d}/../f")),
        comparable_stat(call_outcome(os.stat, f"{root}/f/.")),
    )
    yield call_outcome(os.mkdir, f"{d}/."), call_outcome(os.mkdir, f"{d}/.."), call_outcome(os.rmdir, f"{d}/.")
    yield (
        call_outcome(os.rmdir, f"{d}/.."),
        call_outcome(os.unlink, f"{d}/.."),
        call_outcome(os.rename, f"{d}/.", root / "e"),
    )
    yield call_outcome(os.rename, f"{root}/f", f"{d}/.."), call_outcome(open_file, f"{d}/..", os.O_CREAT | os.O_RDWR)
    yield os.path.samefile(f"{d}/..", root), read_tree(root)


@scenario
def emptied_while_it_is_read(root: Path) -> Iterator[Any]:
    """List each name that is kept exactly once, while other names are removed."""
    d = root / "d"
    d.mkdir()
    for number in range(300):
        (d / f"n{number:03}").touch()
    listed = []
    with os.scandir(d) as entries:
        for entry in entries:
            listed.append(entry.name)
            victim = d / f"n{299 - len(listed):03}"
            if len(listed) % 2 and len(listed) < 300 and victim.exists() and victim.name not in listed:
                victim.unlink()
    remaining = sorted(os.listdir(d))
    yield [name for name in remaining if listed.count(name) != 1]
    yield len(listed) == len(set(listed)), set(remaining) <= set(listed)
    shutil.rmtree(d)
    yield os.listdir(root)


@scenario
def removed_while_it_is_read(root: Path) -> Iterator[Any]:
    """Remove an open directory; creating a file in it then fails."""
    d = root / "d"
    d.mkdir()
    fd = open_file(d, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(d)
    yield call_outcome(os.stat, d), call_outcome(os.open, "f", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=fd)
    yield os.listdir(root), call_outcome(os.close, fd)
    d.mkdir()
    yield os.listdir(d)


@scenario
def by_directory_descriptor(root: Path) -> Iterator[Any]:
    """Use the *at calls with a directory that was renamed after it was opened."""
    (root / "d").mkdir()
    fd = open_file(root / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(root / "d", root / "e")
    new = os.open("f", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=fd)
    os.write(new, b"at")
    yield call_outcome(os.close, new), call_outcome(os.fsync, fd)
    yield comparable_stat(os.stat("f", dir_fd=fd)), read_tree(root)
    yield (
        call_outcome(os.rename, "f", "g", src_dir_fd=fd, dst_dir_fd=fd),
        call_outcome(os.unlink, "g", dir_fd=fd),
        read_tree(root),
    )
    os.close(fd)


@scenario
def many_levels(root: Path) -> Iterator[Any]:
    """Create, walk, copy, move and remove a deep tree."""
    deep = root / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    (root / "a" / "b" / "g").write_bytes(b"g")
    shutil.copytree(root / "a", root / "copy")
    shutil.move(root / "a" / "b", root / "moved")
    yield read_tree(root)
    shutil.rmtree(root / "copy")
    shutil.rmtree(root / "a")
    yield read_tree(root), call_outcome(os.removedirs, root / "moved" / "c" / "d" / "e")


# -- names -------------------------------------------------------------------------------------------------------------


@scenario
def long_names(root: Path) -> Iterator[Any]:
    """Accept names of 255 bytes in every call, and refuse names of 256."""
    fits, over = root / ("n" * 255), root / ("n" * 256)
    fits.write_bytes(b"long")
    yield fits.read_bytes(), os.listdir(root)
    yield call_outcome(os.rename, fits, root / ("d" * 255)), call_outcome(os.mkdir, fits), sorted(read_tree(root))
    yield (
        call_outcome(open_file, over, os.O_CREAT | os.O_RDWR),
        call_outcome(os.mkdir, over),
        call_outcome(os.rename, fits, over),
    )
    yield (
        call_outcome(os.stat, over),
        call_outcome(os.unlink, over),
        call_outcome(os.rename, over, fits),
        call_outcome(os.rmdir, over),
    )
    yield (
        call_outcome(open_file, over, os.O_RDONLY),
        call_outcome(open_file, over / "x", os.O_RDONLY),
        call_outcome(os.listdir, over),
    )


@scenario
def odd_names(root: Path) -> Iterator[Any]:
    """Use names with spaces, quotes, UTF-8, dots in front and behind, and of a field."""
    names = [
        " ",
        "a b",
        "'\"",
        "\\",
        "ü",
        "日本",
        ".hidden",
        "..x",
        "-",
        "~",
        "#",
        "*",
        "x" * 100,
        "a,b;c",
        "$H",
        "h.f",
    ]
    for name in names:
        (root / name).write_bytes(name.encode())
    yield sorted(os.listdir(root)), read_tree(root)
    for name in names:
        os.rename(root / name, root / f"{name}+")
    yield read_tree(root)


# -- other calls -------------------------------------------------------------------------------------------------------


@scenario
def mapped_beside_appending(root: Path) -> Iterator[Any]:
    """Write through a mapping of a descriptor with O_APPEND at the mapped offset."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    plain, append = open_file(path), open_file(path, os.O_RDWR | os.O_APPEND)
    for fd, offset in ((append, 2), (plain, 5)):
        with mmap.mmap(fd, 0) as mapping:
            mapping[offset : offset + 1] = b"X"
            mapping.flush()
        yield path.read_bytes(), os.fstat(fd).st_size
    os.write(append, b"end")
    yield read_all(plain), call_outcome(os.close, plain), call_outcome(os.close, append), read_tree(root)


@scenario
def mapped(root: Path) -> Iterator[Any]:
    """Read and write through a shared mapping, which shows write(2); a private one changes nothing."""
    path = root / "f"
    path.write_bytes(b"x" * 10_000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        shared[100:105] = b"HELLO"
        shared.flush()
        yield path.read_bytes()[98:107]
        os.pwrite(file.fileno(), b"write", 5000)
        yield shared[4999:5006]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
            private[0:3] = b"PPP"
            yield private[0:4], shared[0:4]
    yield path.read_bytes()[0:4], len(path.read_bytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        yield mapping[100:105], mapping.find(b"write")
    yield path.read_bytes()[100:105]


@scenario
def mapped_after_the_close(root: Path) -> Iterator[Any]:
    """Write through a mapping after its descriptor is closed."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = open_file(path)
    mapping = mmap.mmap(fd, 0)
    os.close(fd)
    mapping[2:4] = b"XY"
    mapping.flush()
    yield bytes(mapping[:]), path.read_bytes()
    mapping[5:6] = b"Z"
    mapping.close()
    yield path.read_bytes()


@scenario
def positions(root: Path) -> Iterator[Any]:
    """Write with holes, read past the end, and use vectors."""
    path = root / "f"
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    yield os.pwrite(fd, b"end", 70_000), os.fstat(fd).st_size, os.pread(fd, 10, 69_995), os.pread(fd, 10, 70_003)
    yield os.pwritev(fd, [b"a", b"bb", b"ccc"], 1), os.preadv(fd, [bytearray(3), bytearray(9)], 0), os.pread(fd, 8, 0)
    yield call_outcome(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED), read_all(fd)[:8]
    yield call_outcome(os.lseek, fd, 10**6, os.SEEK_SET), call_outcome(os.read, fd, 1)
    yield call_outcome(os.posix_fallocate, fd, 0, 80_000), os.fstat(fd).st_size
    yield call_outcome(os.close, fd), len(path.read_bytes())


@scenario
def copied_in_the_kernel(root: Path) -> Iterator[Any]:
    """Copy with sendfile(2) and copy_file_range(2)."""
    source, target = root / "s", root / "t"
    source.write_bytes(bytes(range(256)) * 64)
    a, b = open_file(source), open_file(target, os.O_RDWR | os.O_CREAT)
    yield os.sendfile(b, a, 0, 5000), read_all(b) == read_all(a)[:5000]
    copied = call_outcome(os.copy_file_range, a, b, 1000, 0, 6000)
    yield copied, read_all(b)[6000:7000] == read_all(a)[:1000]
    yield call_outcome(os.close, a), call_outcome(os.close, b), read_tree(root)


@scenario
def locked(root: Path) -> Iterator[Any]:
    """Lock one file with flock(2) and fcntl(2) through two descriptors."""
    path = root / "f"
    path.write_bytes(b"x")
    one, two = open_file(path), open_file(path)
    exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
    yield call_outcome(fcntl.flock, one, exclusive), call_outcome(fcntl.flock, two, exclusive)
    yield call_outcome(fcntl.flock, one, fcntl.LOCK_UN), call_outcome(fcntl.flock, two, exclusive)
    yield call_outcome(fcntl.lockf, one, exclusive), call_outcome(os.close, one), call_outcome(os.close, two)


@scenario
def permissions(root: Path) -> Iterator[Any]:
    """Call access(2) for files and directories, for reading and writing."""
    path = root / "f"
    path.write_bytes(b"x")
    for mode in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK):
        yield os.access(path, mode), os.access(root, mode), os.access(root / "none", mode)
    yield os.access(root, os.X_OK)


@scenario
def temporary_files(root: Path) -> Iterator[Any]:
    """Rename temporary files, open and closed; use unlinked ones and temporary directories."""
    fd, name = tempfile.mkstemp(dir=root)
    os.write(fd, b"one ")
    os.rename(name, root / "f")
    yield os.listdir(root)
    os.write(fd, b"two")
    yield call_outcome(os.fsync, fd), call_outcome(os.close, fd), read_tree(root)
    fd, name = tempfile.mkstemp(dir=root)
    os.write(fd, b"replaces")
    yield call_outcome(os.close, fd), Path(name).read_bytes(), len(os.listdir(root))
    os.rename(name, root / "f")
    yield read_tree(root)
    with tempfile.TemporaryFile(dir=root) as file:
        file.write(b"secret")
        file.seek(0)
        yield file.read(), os.listdir(root)
    with tempfile.NamedTemporaryFile(dir=root) as file:
        file.write(b"named")
        file.flush()
        yield Path(file.name).read_bytes()
    with tempfile.TemporaryDirectory(dir=root) as folder:
        Path(folder, "x").write_bytes(b"x")
        yield len(os.listdir(root))
    yield read_tree(root)


@scenario
def a_private_new_file(root: Path) -> Iterator[Any]:
    """Write, read, truncate, append to and rename a file created with O_EXCL and mode 0600."""
    path = root / "f"
    fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    yield call_outcome(open_file, path, os.O_CREAT | os.O_EXCL, 0o600), comparable_stat(os.fstat(fd)), os.listdir(root)
    os.write(fd, b"abc")
    yield call_outcome(os.close, fd), path.read_bytes(), comparable_stat(os.stat(path))
    with path.open("ab") as file:
        file.write(b"def")
    yield path.read_bytes(), call_outcome(os.truncate, path, 4), path.read_bytes()
    os.rename(path, root / "g")
    yield read_tree(root), call_outcome(os.unlink, root / "g"), os.listdir(root)


@scenario
def fields(root: Path) -> Iterator[Any]:
    """Rename, unlink, append to and truncate files that are fields of hashes."""
    for name in ("h.a", "h.b", "i.a"):
        (root / name).write_bytes(name.encode())
    yield read_tree(root)
    os.rename(root / "h.a", root / "h.c")
    os.rename(root / "i.a", root / "h.b")
    fd = open_file(root / "h.c")
    os.unlink(root / "h.c")
    yield read_all(fd), call_outcome(os.close, fd), read_tree(root)
    with (root / "h.b").open("ab") as file:
        file.write(b"+")
    os.truncate(root / "h.b", 2)
    yield read_tree(root), call_outcome(os.unlink, root / "h.b"), os.listdir(root), call_outcome(os.stat, root / "h.b")


@scenario
def large_files(root: Path) -> Iterator[Any]:
    """Patch, append to, truncate and read a file that is edited in pieces."""
    path = root / "big"
    path.write_bytes(bytes(range(256)) * 12_000)
    fd = open_file(path)
    os.pwrite(fd, b"patch", 1_500_000)
    yield os.pread(fd, 9, 1_499_998), os.fstat(fd).st_size, call_outcome(os.fsync, fd)
    os.pwrite(fd, b"again", 1_500_003)
    yield os.pread(fd, 12, 1_499_998), call_outcome(os.close, fd)
    with path.open("ab") as file:
        file.write(b"appended")
    yield os.stat(path).st_size, path.read_bytes()[-10:]
    reader = open_file(path, os.O_RDONLY)
    os.truncate(path, 2_000_000)
    yield os.stat(path).st_size, os.fstat(reader).st_size, os.pread(reader, 10, 1_999_995)
    os.truncate(path, 2_000_010)
    yield os.pread(reader, 100, 1_999_995), hash(path.read_bytes())
    os.rename(path, root / "moved")
    yield os.pread(reader, 5, 1_500_000), call_outcome(os.close, reader), sorted(os.listdir(root))
    os.unlink(root / "moved")


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCENARIOS, ids=lambda script: script.__name__)
def test_scenario(server: RedisServer, mount: MountedServer, script: Scenario) -> None:
    """A scenario has the same results on the mount and on tmpfs, and leaves the same tree."""
    flush_and_wait(server, mount)
    if script in LIBFUSE_3 and mount.status()["binding"] != "mfusepy":
        return
    root = mount.path / script.__name__
    root.mkdir()
    with tmpfs_folder() as ordinary:
        expected = list(script(ordinary))
        expected_tree = read_tree(ordinary)
    results = list(script(root))
    for step, (expected_result, result) in enumerate(zip(expected, results, strict=True)):
        assert result == expected_result, f"step {step}"
    assert read_tree(root) == expected_tree
    assert server.client().keys("*fuse_hidden*") == []


def test_descriptors_do_not_mix_versions(server: RedisServer, mount: MountedServer) -> None:
    """When another client changes an open key, old descriptors read the old bytes, new ones the new bytes.

    After an edit through the mount the new ones read the edited file.
    """
    client = server.client()
    flush_and_wait(server, mount)
    old, new = b"old " * 5000, b"new!" * 5000
    client.set("k", old)
    path = mount.path / "k"
    wait_until(path.exists)
    reader = open_file(path, os.O_RDONLY)
    assert os.pread(reader, 10_000, 0) == old[:10_000]
    client.set("k", new)
    wait_until(lambda: path.read_bytes() == new)
    assert os.pread(reader, 20_000, 0) == old
    second = open_file(path, os.O_RDONLY)
    assert (os.pread(second, 20_000, 0), os.pread(reader, 20_000, 0)) == (new, old)
    writer = open_file(path, os.O_RDWR)
    assert os.pread(writer, 20_000, 0) == new
    os.pwrite(writer, b"mine", 10_000)
    edited = new[:10_000] + b"mine" + new[10_004:]
    assert os.pread(second, 20_000, 0) == os.pread(writer, 20_000, 0) == edited
    os.close(writer)
    assert (os.pread(second, 20_000, 0), os.pread(reader, 20_000, 0)) == (edited, old)
    os.close(second)
    assert client.get("k") == new[:10_000] + b"mine" + new[10_004:]
    os.close(reader)


def test_a_file_is_mapped_right_after_its_close(mount: MountedServer) -> None:
    """A file that was just closed, and is not yet released by the kernel, can be mapped (shared)."""
    path = mount.path / "just_written"
    for number in range(40):
        with path.open("w+b") as file:
            file.write(b"%04d" % number)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            assert mapping[:] == b"%04d" % number
            mapping[0:1] = b"x"
        assert path.read_bytes() == b"x%03d" % number

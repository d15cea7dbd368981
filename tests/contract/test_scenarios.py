"""Sequences of calls: a program sees the same on a mount and on an ordinary filesystem.

A scenario is a generator of everything that the program sees. What differs deliberately is in `test_differences.py`.
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


def opened(path: Path, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
    return os.open(path, flags, mode)


def whole(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


# -- removed and replaced while open -----------------------------------------------------------------------------------


@scenario
def unlinked_while_open(root: Path) -> Iterator[Any]:
    """The bytes stay for who has the file open; the name is free at once."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    one, two = opened(path), opened(path, os.O_RDONLY)
    os.unlink(path)
    yield call_outcome(os.stat, path), comparable_stat(os.fstat(one)), comparable_stat(os.fstat(two))
    yield os.listdir(root)
    yield whole(one), whole(two)
    yield call_outcome(os.write, one, b"new"), whole(two)
    yield call_outcome(os.ftruncate, one, 5), os.fstat(two).st_size
    yield call_outcome(os.fchmod, one, 0o600), call_outcome(os.utime, one), call_outcome(os.fsync, one)
    yield call_outcome(os.write, one, b"more"), whole(two), comparable_stat(os.fstat(one))
    path.write_bytes(b"another")
    yield path.read_bytes(), whole(two)
    third = opened(path)
    yield call_outcome(os.write, third, b"A"), whole(third), whole(one)
    os.unlink(path)
    yield whole(third), whole(one), os.listdir(root)
    for fd in (one, two, third):
        yield call_outcome(os.close, fd)
    yield os.listdir(root)


@scenario
def unlinked_with_unsaved_bytes(root: Path) -> Iterator[Any]:
    """What was written and not saved when the file was unlinked stays with the descriptor."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = opened(path)
    os.pwrite(fd, b"xx", 4)
    os.unlink(path)
    yield whole(fd), call_outcome(os.stat, path)
    os.pwrite(fd, b"end", 12)
    yield whole(fd), call_outcome(os.fsync, fd)
    yield call_outcome(os.close, fd), os.listdir(root)


@scenario
def unlinked_before_it_was_ever_saved(root: Path) -> Iterator[Any]:
    """A new file that is unlinked while it is open."""
    path = root / "f"
    fd = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"abc")
    os.unlink(path)
    yield whole(fd), call_outcome(os.stat, path), os.listdir(root)
    again = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(again, b"other")
    yield whole(fd), whole(again), call_outcome(os.close, fd), call_outcome(os.close, again)
    yield read_tree(root)


@scenario
def created_anew_while_the_old_one_is_open(root: Path) -> Iterator[Any]:
    """A file of the same name that is made after an unlink is another file."""
    path = root / "f"
    path.write_bytes(b"old")
    old = opened(path)
    os.unlink(path)
    new = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(new, b"new!")
    os.write(old, b"OLD-and-longer")
    yield whole(old), whole(new), path.read_bytes()
    yield call_outcome(os.close, old), path.read_bytes()
    yield call_outcome(os.close, new), read_tree(root)


@scenario
def replaced_while_open(root: Path) -> Iterator[Any]:
    """A rename over an open file: descriptors keep the old file, the name has the new one."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"old")
    other.write_bytes(b"new!")
    reader, writer = opened(path, os.O_RDONLY), opened(path)
    os.write(writer, b"unsaved")
    os.rename(other, path)
    yield whole(reader), whole(writer), path.read_bytes(), os.listdir(root)
    os.write(writer, b" more")
    yield whole(reader), path.read_bytes(), os.fstat(reader).st_size, os.stat(path).st_size
    yield call_outcome(os.close, writer), path.read_bytes()
    yield call_outcome(os.close, reader), read_tree(root)


@scenario
def replaced_several_times(root: Path) -> Iterator[Any]:
    """Each descriptor stays with the file that it opened."""
    path = root / "f"
    path.write_bytes(b"0")
    descriptors = []
    for number in range(1, 5):
        descriptors.append(opened(path))
        other = root / "new"
        other.write_bytes(b"%d" % number)
        os.replace(other, path)
    yield [whole(fd) for fd in descriptors], path.read_bytes()
    for fd in descriptors:
        os.pwrite(fd, b"x", 1)
    yield [whole(fd) for fd in descriptors], path.read_bytes()
    for fd in descriptors:
        os.close(fd)
    yield read_tree(root)


@scenario
def renamed_while_open(root: Path) -> Iterator[Any]:
    """A descriptor follows its file to another name, saved or not."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"0123456789")
    fd = opened(path)
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
    """A descriptor stays with its file when another one, or a directory, takes the name at once."""
    for number, flags in enumerate((os.O_RDONLY, os.O_RDWR)):
        for make in (Path.mkdir, lambda path: path.write_bytes(b"another")):
            path, other = root / f"f{number}{make is Path.mkdir}", root / f"g{number}{make is Path.mkdir}"
            path.write_bytes(b"0123456789")
            fd = opened(path, flags)
            os.rename(path, other)
            call_outcome(make, path)
            yield call_outcome(os.read, fd, 20), comparable_stat(call_outcome(os.fstat, fd)), call_outcome(os.close, fd)
    yield read_tree(root)


@scenario
def renamed_while_it_is_large(root: Path) -> Iterator[Any]:
    """The same of a value that isn't read whole, by its own name and by that of its directory."""
    (root / "d").mkdir()
    for old, new in (("big", "big2"), ("d/big", "e/big")):
        size = 1_200_000
        (root / old).write_bytes(b"a" * size)
        reader, writer = opened(root / old, os.O_RDONLY), opened(root / old)
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
    """Descriptors of a file that is not there any more don't lose it when its directory is renamed."""
    (root / "d").mkdir()
    path, other = root / "d" / "f", root / "d" / "g"
    path.write_bytes(b"old")
    other.write_bytes(b"new!")
    fd, third = opened(path), opened(other)
    os.rename(other, path)
    os.rename(root / "d", root / "e")
    yield call_outcome(os.fstat, fd).st_size, whole(fd), call_outcome(os.fstat, third).st_size, whole(third)
    os.write(third, b"N")
    yield call_outcome(os.close, fd), call_outcome(os.close, third), read_tree(root)


@scenario
def renamed_before_it_was_ever_saved(root: Path) -> Iterator[Any]:
    """A new file can be renamed while it is being written."""
    fd = opened(root / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"one")
    os.rename(root / "f", root / "g")
    os.write(fd, b" two")
    yield read_tree(root), call_outcome(os.close, fd), read_tree(root)


@scenario
def renamed_over_what_is_being_written(root: Path) -> Iterator[Any]:
    """A rename over a file that somebody writes to: his bytes go nowhere, without an error."""
    path, other = root / "f", root / "g"
    fd = opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"lost")
    other.write_bytes(b"kept")
    os.rename(other, path)
    os.write(fd, b" too")
    yield read_tree(root), call_outcome(os.fsync, fd), call_outcome(os.close, fd), read_tree(root)


@scenario
def renamed_while_both_are_open(root: Path) -> Iterator[Any]:
    """A rename of an open file over an open file."""
    path, other = root / "f", root / "g"
    path.write_bytes(b"old f")
    other.write_bytes(b"old g")
    f, g = opened(path), opened(other)
    os.write(f, b"NEW")
    os.write(g, b"LOST")
    os.rename(path, other)
    yield whole(f), whole(g), read_tree(root)
    os.write(f, b"!")
    os.write(g, b"?")
    yield read_tree(root), call_outcome(os.close, g), call_outcome(os.close, f), read_tree(root)


# -- several descriptors -----------------------------------------------------------------------------------------------


@scenario
def appending_from_two_descriptors(root: Path) -> Iterator[Any]:
    """O_APPEND writes go to the end, wherever that is by now."""
    path = root / "log"
    one = opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = opened(path, os.O_WRONLY | os.O_APPEND)
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
    """A descriptor without O_APPEND overwrites what one with it appended."""
    path = root / "f"
    path.write_bytes(b"base")
    plain, append = opened(path), opened(path, os.O_RDWR | os.O_APPEND)
    os.write(append, b"++")
    os.write(plain, b"PLAINLY")
    os.write(append, b"**")
    yield whole(plain), whole(append), os.lseek(append, 0, os.SEEK_CUR)
    os.lseek(append, 0, os.SEEK_SET)
    yield os.read(append, 4), os.write(append, b"z"), whole(plain)
    yield call_outcome(os.close, plain), call_outcome(os.close, append), read_tree(root)


@scenario
def appending_begins_and_ends(root: Path) -> Iterator[Any]:
    """fcntl(2) takes O_APPEND from a descriptor, and gives it."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = opened(path, os.O_RDWR | os.O_APPEND)
    os.write(fd, b"end")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"XX", 0)
    yield whole(fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    yield os.write(fd, b"more"), whole(fd), call_outcome(os.close, fd), read_tree(root)


@scenario
def a_reader_beside_a_writer(root: Path) -> Iterator[Any]:
    """A reader sees each write at once, saved or not, and the new size."""
    path = root / "f"
    path.write_bytes(b"start")
    reader = opened(path, os.O_RDONLY)
    writer = opened(path, os.O_WRONLY | os.O_APPEND)
    for number in range(4):
        os.write(writer, b" %d" % number)
        yield whole(reader), os.fstat(reader).st_size, os.stat(path).st_size, path.read_bytes()
        os.fsync(writer)
        yield whole(reader)
    os.close(writer)
    yield whole(reader), os.fstat(reader).st_size
    path.write_bytes(b"anew")
    yield whole(reader), os.fstat(reader).st_size
    os.truncate(path, 2)
    yield whole(reader), os.fstat(reader).st_size
    os.close(reader)


@scenario
def duplicated_and_closed_one_by_one(root: Path) -> Iterator[Any]:
    """Each close of a duplicate saves, and the others go on."""
    path = root / "f"
    fd = opened(path, os.O_RDWR | os.O_CREAT)
    copies = [os.dup(fd) for _ in range(3)]
    for number, copy in enumerate(copies):
        os.write(copy, b"%d" % number)
        yield call_outcome(os.close, copy), path.read_bytes()
    os.write(fd, b"!")
    yield call_outcome(os.close, fd), read_tree(root)


@scenario
def a_child_inherits(root: Path) -> Iterator[Any]:
    """What a child writes to an inherited descriptor is in the file."""
    path = root / "f"
    fd = opened(path, os.O_RDWR | os.O_CREAT)
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
    """truncate(2) with nobody, a reader or a writer having the file open."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    yield call_outcome(os.truncate, path, 7), path.read_bytes()
    yield call_outcome(os.truncate, path, 7), path.read_bytes()
    yield call_outcome(os.truncate, path, 9), path.read_bytes()
    reader = opened(path, os.O_RDONLY)
    yield whole(reader), call_outcome(os.truncate, path, 3), whole(reader), os.fstat(reader).st_size
    writer = opened(path, os.O_RDWR)
    os.pwrite(writer, b"unsaved", 2)
    yield call_outcome(os.truncate, path, 5), whole(writer), whole(reader)
    os.close(writer)
    yield whole(reader), call_outcome(os.truncate, path, 0), whole(reader), os.stat(path).st_size
    os.close(reader)
    yield (
        call_outcome(os.truncate, root / "none", 1),
        call_outcome(os.truncate, root, 1),
        call_outcome(os.truncate, path, -1),
    )
    yield read_tree(root)


@scenario
def truncate_and_write(root: Path) -> Iterator[Any]:
    """Shorter, longer and in between, the bytes that come back are NULs."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = opened(path)
    os.ftruncate(fd, 4)
    os.ftruncate(fd, 8)
    yield whole(fd)
    os.pwrite(fd, b"Z", 6)
    os.ftruncate(fd, 7)
    os.ftruncate(fd, 9)
    yield whole(fd), call_outcome(os.close, fd), read_tree(root)
    fd = opened(path)
    os.pwrite(fd, b"far", 10_000)
    os.ftruncate(fd, 5)
    yield whole(fd), call_outcome(os.close, fd), read_tree(root)
    fd = opened(path, os.O_RDWR | os.O_TRUNC)
    yield whole(fd), call_outcome(os.close, fd), read_tree(root)


# -- renaming ----------------------------------------------------------------------------------------------------------


@scenario
def renames_of_files(root: Path) -> Iterator[Any]:
    """Onto nothing, onto itself, over a file, a directory, out of and into directories, of what is not there."""
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
    """Into itself, over files, empty and full directories; what is below goes along."""
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
    """Descriptors follow when a directory above them is renamed, new files too."""
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"0123")
    old = opened(root / "d" / "f")
    new = opened(root / "d" / "new", os.O_RDWR | os.O_CREAT)
    os.write(old, b"ab")
    os.write(new, b"one ")
    os.rename(root / "d", root / "e")
    yield read_tree(root)
    os.write(old, b"cd!")
    os.write(new, b"two")
    yield read_tree(root), call_outcome(os.close, old), call_outcome(os.close, new), read_tree(root)


@scenario
def without_replacing(root: Path) -> Iterator[Any]:
    """RENAME_NOREPLACE is EEXIST over anything."""
    (root / "d").mkdir()
    (root / "f").write_bytes(b"f")
    (root / "g").write_bytes(b"g")
    yield call_outcome(renameat2, root / "f", root / "g", RENAME_NOREPLACE), read_tree(root)
    yield call_outcome(renameat2, root / "f", root / "d", RENAME_NOREPLACE)
    yield call_outcome(renameat2, root / "d", root / "f", RENAME_NOREPLACE)
    fd = opened(root / "new", os.O_RDWR | os.O_CREAT)
    yield (
        call_outcome(renameat2, root / "f", root / "new", RENAME_NOREPLACE),
        call_outcome(os.close, fd),
        read_tree(root),
    )


@scenario
def moving_without_replacing(root: Path) -> Iterator[Any]:
    """RENAME_NOREPLACE moves to a name that is free."""
    (root / "d").mkdir()
    (root / "d" / "x").write_bytes(b"x")
    (root / "f").write_bytes(b"f")
    yield call_outcome(renameat2, root / "f", root / "h", RENAME_NOREPLACE), read_tree(root)
    yield call_outcome(renameat2, root / "d", root / "e", RENAME_NOREPLACE), read_tree(root)


LIBFUSE_3 = {moving_without_replacing}  # with libfuse 2 it is one of the differences


@scenario
def swapping_by_way_of_a_third_name(root: Path) -> Iterator[Any]:
    """Three renames swap two files, and two directories."""
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
    """mkdir, rmdir and unlink of what is there, what is not, and what is something else."""
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
        call_outcome(opened, f / "x", os.O_CREAT | os.O_RDWR),
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
        call_outcome(opened, d, os.O_RDWR),
        call_outcome(opened, f, os.O_RDONLY | os.O_DIRECTORY),
    )
    (d / "sub").mkdir()
    yield call_outcome(os.rmdir, d), call_outcome(os.rmdir, d / "sub"), call_outcome(os.rmdir, d), os.listdir(root)


@scenario
def dots(root: Path) -> Iterator[Any]:
    """`.` and `..` are where they should be, and can't be made, removed or renamed."""
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
    yield call_outcome(os.rename, f"{root}/f", f"{d}/.."), call_outcome(opened, f"{d}/..", os.O_CREAT | os.O_RDWR)
    yield os.path.samefile(f"{d}/..", root), read_tree(root)


@scenario
def emptied_while_it_is_read(root: Path) -> Iterator[Any]:
    """Names that stay are given once each, however many of the others are removed while the directory is read."""
    d = root / "d"
    d.mkdir()
    for number in range(300):
        (d / f"n{number:03}").touch()
    seen = []
    with os.scandir(d) as entries:
        for entry in entries:
            seen.append(entry.name)
            victim = d / f"n{299 - len(seen):03}"
            if len(seen) % 2 and len(seen) < 300 and victim.exists() and victim.name not in seen:
                victim.unlink()
    left = sorted(os.listdir(d))
    yield [name for name in left if seen.count(name) != 1]
    yield len(seen) == len(set(seen)), set(left) <= set(seen)
    shutil.rmtree(d)
    yield os.listdir(root)


@scenario
def removed_while_it_is_read(root: Path) -> Iterator[Any]:
    """A directory that is open can be removed; reading and making files in it then fail as they should."""
    d = root / "d"
    d.mkdir()
    fd = opened(d, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(d)
    yield call_outcome(os.stat, d), call_outcome(os.open, "f", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=fd)
    yield os.listdir(root), call_outcome(os.close, fd)
    d.mkdir()
    yield os.listdir(d)


@scenario
def by_directory_descriptor(root: Path) -> Iterator[Any]:
    """The *at calls work from a directory that was renamed meanwhile."""
    (root / "d").mkdir()
    fd = opened(root / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(root / "d", root / "e")
    made = os.open("f", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=fd)
    os.write(made, b"at")
    yield call_outcome(os.close, made), call_outcome(os.fsync, fd)
    yield comparable_stat(os.stat("f", dir_fd=fd)), read_tree(root)
    yield (
        call_outcome(os.rename, "f", "g", src_dir_fd=fd, dst_dir_fd=fd),
        call_outcome(os.unlink, "g", dir_fd=fd),
        read_tree(root),
    )
    os.close(fd)


@scenario
def many_levels(root: Path) -> Iterator[Any]:
    """Deep trees are made, walked, copied, moved and removed."""
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
    """255 bytes are a name, 256 are too long, for every call."""
    fits, over = root / ("n" * 255), root / ("n" * 256)
    fits.write_bytes(b"long")
    yield fits.read_bytes(), os.listdir(root)
    yield call_outcome(os.rename, fits, root / ("d" * 255)), call_outcome(os.mkdir, fits), sorted(read_tree(root))
    yield (
        call_outcome(opened, over, os.O_CREAT | os.O_RDWR),
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
        call_outcome(opened, over, os.O_RDONLY),
        call_outcome(opened, over / "x", os.O_RDONLY),
        call_outcome(os.listdir, over),
    )


@scenario
def odd_names(root: Path) -> Iterator[Any]:
    """Spaces, quotes, UTF-8, dots in front and behind, and a single dot field are names as any."""
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
    """What is written through a mapping goes where it is mapped, though a descriptor was opened to append."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    plain, append = opened(path), opened(path, os.O_RDWR | os.O_APPEND)
    for fd, place in ((append, 2), (plain, 5)):
        with mmap.mmap(fd, 0) as mapping:
            mapping[place : place + 1] = b"X"
            mapping.flush()
        yield path.read_bytes(), os.fstat(fd).st_size
    os.write(append, b"end")
    yield whole(plain), call_outcome(os.close, plain), call_outcome(os.close, append), read_tree(root)


@scenario
def mapped(root: Path) -> Iterator[Any]:
    """Shared mappings read, write and see what write(2) did; private ones change nothing."""
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
    """A mapping outlives the descriptor that it was made from."""
    path = root / "f"
    path.write_bytes(b"0123456789")
    fd = opened(path)
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
    """Holes, sparse writes, reads past the end, vectors."""
    path = root / "f"
    fd = opened(path, os.O_RDWR | os.O_CREAT)
    yield os.pwrite(fd, b"end", 70_000), os.fstat(fd).st_size, os.pread(fd, 10, 69_995), os.pread(fd, 10, 70_003)
    yield os.pwritev(fd, [b"a", b"bb", b"ccc"], 1), os.preadv(fd, [bytearray(3), bytearray(9)], 0), os.pread(fd, 8, 0)
    yield call_outcome(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED), whole(fd)[:8]
    yield call_outcome(os.lseek, fd, 10**6, os.SEEK_SET), call_outcome(os.read, fd, 1)
    yield call_outcome(os.posix_fallocate, fd, 0, 80_000), os.fstat(fd).st_size
    yield call_outcome(os.close, fd), len(path.read_bytes())


@scenario
def copied_in_the_kernel(root: Path) -> Iterator[Any]:
    """sendfile(2), copy_file_range(2) and splice through a pipe copy bytes."""
    source, target = root / "s", root / "t"
    source.write_bytes(bytes(range(256)) * 64)
    a, b = opened(source), opened(target, os.O_RDWR | os.O_CREAT)
    yield os.sendfile(b, a, 0, 5000), whole(b) == whole(a)[:5000]
    copied = call_outcome(os.copy_file_range, a, b, 1000, 0, 6000)
    yield copied, whole(b)[6000:7000] == whole(a)[:1000]
    yield call_outcome(os.close, a), call_outcome(os.close, b), read_tree(root)


@scenario
def locked(root: Path) -> Iterator[Any]:
    """flock(2) and fcntl(2) locks hold between descriptors."""
    path = root / "f"
    path.write_bytes(b"x")
    one, two = opened(path), opened(path)
    exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
    yield call_outcome(fcntl.flock, one, exclusive), call_outcome(fcntl.flock, two, exclusive)
    yield call_outcome(fcntl.flock, one, fcntl.LOCK_UN), call_outcome(fcntl.flock, two, exclusive)
    yield call_outcome(fcntl.lockf, one, exclusive), call_outcome(os.close, one), call_outcome(os.close, two)


@scenario
def permissions_asked(root: Path) -> Iterator[Any]:
    """access(2) of files and directories for reading and writing."""
    path = root / "f"
    path.write_bytes(b"x")
    for wanted in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK):
        yield os.access(path, wanted), os.access(root, wanted), os.access(root / "none", wanted)
    yield os.access(root, os.X_OK)


@scenario
def temporary_files(root: Path) -> Iterator[Any]:
    """mkstemp and rename, while it is open and after; unlinked temporaries; temporary directories."""
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
    """A file made O_EXCL and 0600 is a file as any for the program: written, read, truncated, appended, renamed."""
    path = root / "f"
    fd = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    yield call_outcome(opened, path, os.O_CREAT | os.O_EXCL, 0o600), comparable_stat(os.fstat(fd)), os.listdir(root)
    os.write(fd, b"abc")
    yield call_outcome(os.close, fd), path.read_bytes(), comparable_stat(os.stat(path))
    with path.open("ab") as file:
        file.write(b"def")
    yield path.read_bytes(), call_outcome(os.truncate, path, 4), path.read_bytes()
    os.rename(path, root / "g")
    yield read_tree(root), call_outcome(os.unlink, root / "g"), os.listdir(root)


@scenario
def fields(root: Path) -> Iterator[Any]:
    """Files that are fields of hashes behave as files do."""
    for name in ("h.a", "h.b", "i.a"):
        (root / name).write_bytes(name.encode())
    yield read_tree(root)
    os.rename(root / "h.a", root / "h.c")
    os.rename(root / "i.a", root / "h.b")
    fd = opened(root / "h.c")
    os.unlink(root / "h.c")
    yield whole(fd), call_outcome(os.close, fd), read_tree(root)
    with (root / "h.b").open("ab") as file:
        file.write(b"+")
    os.truncate(root / "h.b", 2)
    yield read_tree(root), call_outcome(os.unlink, root / "h.b"), os.listdir(root), call_outcome(os.stat, root / "h.b")


@scenario
def large_files(root: Path) -> Iterator[Any]:
    """Files that are edited in pieces: patched, appended, truncated, read back."""
    path = root / "big"
    path.write_bytes(bytes(range(256)) * 12_000)
    fd = opened(path)
    os.pwrite(fd, b"patch", 1_500_000)
    yield os.pread(fd, 9, 1_499_998), os.fstat(fd).st_size, call_outcome(os.fsync, fd)
    os.pwrite(fd, b"again", 1_500_003)
    yield os.pread(fd, 12, 1_499_998), call_outcome(os.close, fd)
    with path.open("ab") as file:
        file.write(b"appended")
    yield os.stat(path).st_size, path.read_bytes()[-10:]
    reader = opened(path, os.O_RDONLY)
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
    """A program sees on the mount what it sees on tmpfs, and what it leaves there is the same."""
    flush_and_wait(server, mount)
    if script in LIBFUSE_3 and mount.status()["binding"] != "mfusepy":
        return
    root = mount.path / script.__name__
    root.mkdir()
    with tmpfs_folder() as ordinary:
        expected = list(script(ordinary))
        left = read_tree(ordinary)
    seen = list(script(root))
    for step, (wanted, got) in enumerate(zip(expected, seen, strict=True)):
        assert got == wanted, f"step {step}"
    assert read_tree(root) == left
    assert server.client().keys("*fuse_hidden*") == []


def test_descriptors_never_mix_what_others_changed(server: RedisServer, mount: MountedServer) -> None:
    """A key that somebody else changes while it is open: old descriptors read the old bytes, new ones the new.

    As soon as it is edited here, all of them share that edit.
    """
    client = server.client()
    flush_and_wait(server, mount)
    old, new = b"old " * 5000, b"new!" * 5000
    client.set("k", old)
    path = mount.path / "k"
    wait_until(path.exists)
    reader = opened(path, os.O_RDONLY)
    assert os.pread(reader, 10_000, 0) == old[:10_000]
    client.set("k", new)
    wait_until(lambda: path.read_bytes() == new)
    assert os.pread(reader, 20_000, 0) == old
    second = opened(path, os.O_RDONLY)
    assert (os.pread(second, 20_000, 0), os.pread(reader, 20_000, 0)) == (new, old)
    os.close(second)
    writer = opened(path, os.O_RDWR)
    assert os.pread(writer, 20_000, 0) == new
    os.pwrite(writer, b"mine", 10_000)
    assert os.pread(reader, 20_000, 0) == os.pread(writer, 20_000, 0) == new[:10_000] + b"mine" + new[10_004:]
    os.close(writer)
    assert client.get("k") == new[:10_000] + b"mine" + new[10_004:]
    os.close(reader)


def test_a_file_just_written_can_be_mapped(mount: MountedServer) -> None:
    """A shared mapping of a file that was closed a moment ago, whose release is still on its way."""
    path = mount.path / "just_written"
    for number in range(40):
        with path.open("w+b") as file:
            file.write(b"%04d" % number)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            assert mapping[:] == b"%04d" % number
            mapping[0:1] = b"x"
        assert path.read_bytes() == b"x%03d" % number

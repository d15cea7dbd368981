"""Listings of directories on real kernel mounts of `tests/support/kernel_tree.py`."""

from __future__ import annotations

import ctypes
import os
import subprocess

from tests.support.memory_mount import MemoryMount, within


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
    mount.send_request("counts")
    with os.scandir(mount.path / "large") as entries:
        next(entries)
        assert mount.take_counts()["entries"] < 2000  # the first name does not wait for the others
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


def test_types_come_with_the_names(mount: MemoryMount) -> None:
    """A search by type requests no attributes."""
    command = ["find", mount.path / "small", "-type", "f"]
    files = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.split()
    assert len(files) == 2000
    counts = mount.take_counts()
    assert counts["getattr"] + counts["lookup"] <= 10


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

"""Random system calls on one file, compared with a model after each, as fsx does (File System eXerciser)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.mounts import MountedServer, flush_and_wait, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

KIB = 1024
SIZES = pytest.mark.parametrize("max_bytes", [256 * KIB, 4096 * KIB], ids=["256 KiB", "4 MiB"])
MAX_LOGGED = 20
REOPEN_INTERVAL, PRUNE_INTERVAL = 500, 5000  # operations

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mmap.restype = ctypes.c_void_p
LIBC.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FAILED = ctypes.c_void_p(-1).value
MS_SYNC = 4


@contextlib.contextmanager
def map_file(fd: int, size: int, protection: int) -> Iterator[tuple[int, memoryview]]:
    """Map a file for the body of `with`, and give its address and bytes.

    Python's own `mmap` duplicates the descriptor, and so each end of a mapping would save the file.
    """
    address = LIBC.mmap(None, size, protection, mmap.MAP_SHARED, fd, 0)
    assert address not in (None, MAP_FAILED), os.strerror(ctypes.get_errno())
    try:
        yield address, memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    finally:
        assert LIBC.munmap(address, size) == 0, os.strerror(ctypes.get_errno())


class Exerciser:
    """One file, its expected bytes, and the operations."""

    def __init__(self, path: Path, max_bytes: int, seed: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.random = random.Random(seed)
        self.expected = bytearray()
        self.log: list[str] = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def run(self, operation_count: int, prune: Callable[[], None]) -> None:
        """Do random operations; `prune` keeps the journal small."""
        operations = [self.read, self.write, self.map_read, self.map_write, self.truncate, self.append]
        operations += [self.sync, self.close_duplicate]
        weights = [30, 25, 10, 8, 10, 5, 1, 1]
        for number in range(operation_count):
            operation = self.random.choices(operations, weights)[0]
            operation()
            if number % REOPEN_INTERVAL == REOPEN_INTERVAL - 1:
                self.reopen()
            if number % PRUNE_INTERVAL == PRUNE_INTERVAL - 1:
                prune()
            assert os.fstat(self.fd).st_size == len(self.expected), self.describe()
        self.reopen()
        os.close(self.fd)

    def describe(self) -> str:
        return "the last operations: " + "; ".join(self.log[-MAX_LOGGED:])

    def note(self, *words: object) -> None:
        self.log.append(" ".join(map(str, words)))
        del self.log[:-MAX_LOGGED]

    def span(self, limit: int) -> tuple[int, int]:
        """Return a random range within `limit` bytes."""
        start = self.random.randrange(limit)
        return start, min(limit, start + self.random.randrange(1, 64 * KIB))

    def put(self, start: int, data: bytes) -> None:
        if start > len(self.expected):
            self.expected += bytes(start - len(self.expected))
        self.expected[start : start + len(data)] = data

    # -- operations --------------------------------------------------------------------------------------------------

    def read(self) -> None:
        start, end = self.span(self.max_bytes)
        self.note("read", start, end)
        assert os.pread(self.fd, end - start, start) == self.expected[start:end], self.describe()

    def write(self) -> None:
        start, end = self.span(self.max_bytes)
        self.note("write", start, end)
        data = self.random.randbytes(end - start)
        assert os.pwrite(self.fd, data, start) == len(data)
        self.put(start, data)

    def append(self) -> None:
        room = self.max_bytes - len(self.expected)
        if room <= 0:
            return
        data = self.random.randbytes(self.random.randrange(1, min(room, 8 * KIB) + 1))
        self.note("append", len(data))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.put(len(self.expected), data)

    def map_read(self) -> None:
        if not self.expected:
            return
        start, end = self.span(len(self.expected))
        self.note("map read", start, end)
        with map_file(self.fd, len(self.expected), mmap.PROT_READ) as (_, view):
            assert view[start:end] == self.expected[start:end], self.describe()

    def map_write(self) -> None:
        if not self.expected:
            return
        start, end = self.span(len(self.expected))
        self.note("map write", start, end)
        data = self.random.randbytes(end - start)
        with map_file(self.fd, len(self.expected), mmap.PROT_READ | mmap.PROT_WRITE) as (address, view):
            view[start:end] = data
            assert LIBC.msync(address, len(self.expected), MS_SYNC) == 0, os.strerror(ctypes.get_errno())
        self.put(start, data)

    def truncate(self) -> None:
        size = self.random.randrange(self.max_bytes)
        self.note("truncate", size)
        os.ftruncate(self.fd, size)
        if size > len(self.expected):
            self.expected += bytes(size - len(self.expected))
        del self.expected[size:]

    def sync(self) -> None:
        self.note("fsync")
        os.fsync(self.fd)

    def close_duplicate(self) -> None:
        self.note("dup, close")
        os.close(os.dup(self.fd))

    def reopen(self) -> None:
        self.note("close, open")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)
        assert os.pread(self.fd, self.max_bytes, 0) == self.expected, self.describe()


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


@pytest.mark.timeout(600)  # each commit of 4 MiB goes to the disk, which other tests use, too
@SIZES
def test_random_calls_on_one_file(client: redis.Redis, mount: MountedServer, max_bytes: int) -> None:
    """Each read returns the bytes that were written, and Redis holds them at the end."""
    exercise(client, mount, max_bytes, seed=0, operation_count=1500)


@pytest.mark.long("100,000 operations take minutes")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(1, 9))
@SIZES
def test_many_random_calls_on_one_file(client: redis.Redis, mount: MountedServer, max_bytes: int, seed: int) -> None:
    """The same with 100,000 operations."""
    exercise(client, mount, max_bytes, seed=seed, operation_count=100_000)


def exercise(client: redis.Redis, mount: MountedServer, max_bytes: int, *, seed: int, operation_count: int) -> None:
    exerciser = Exerciser(mount.path / "exercised", max_bytes, seed)
    journal = ("--journal-file", str(mount.journal))

    def prune() -> None:
        done = run_redisfuse(mount.path.parent, "prune", "--older-than", "0s", "--yes", *journal, timeout=600)
        assert done.returncode == 0, done.stderr

    exerciser.run(operation_count, prune)
    wait_until(lambda: client.get("exercised") == exerciser.expected)

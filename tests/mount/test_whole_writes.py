"""A write(2) reaches the mount as one request, so that no commit can contain a part of it."""

from __future__ import annotations

import itertools
import mmap
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.fuse.wire import MAX_WRITE_BYTES
from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer
from tests.support.strace import trace_process

KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
PAGE = os.sysconf("SC_PAGE_SIZE")
WRITE_HEADER_BYTES = 80  # struct fuse_in_header and fuse_write_in
APPEND = os.O_WRONLY | os.O_APPEND
FLAGS = pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, APPEND], ids=["wronly", "rdwr", "append"])

pytestmark = pytest.mark.skipif(KERNEL < (6, 6), reason="needs shared mappings of files with direct I/O")


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("whole")
    with mount_server(folder, server.tcp_url(), "--binding", request.param, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("k", b"." * (PAGE - 4))
    wait_until((mount.path / "k").exists)
    return client


def trace_writes(mount: MountedServer, log: Path, write: Callable[[], int], *parts: int) -> list[int]:
    """Return the sizes of the WRITE requests of a call, of those that have its size or that of one of `parts`."""

    def list_all() -> list[int]:
        found = re.findall(r" = (\d+)$", log.read_text(), re.MULTILINE)
        return [int(size) - WRITE_HEADER_BYTES for size in found]

    def list_requests() -> list[int]:
        return [size for size in list_all() if size in sizes]

    with trace_process(mount.process.pid, log, "read"):
        names = itertools.count()
        wait_until(lambda: (mount.path / f"absent{next(names)}").exists() or list_all())  # until its reads are traced
        sizes = {count := write(), *parts}
        wait_until(lambda: sum(list_requests()) >= count)
    return list_requests()


@FLAGS
def test_a_write_across_pages_is_one_request(
    client: redis.Redis, mount: MountedServer, tmp_path: Path, flags: int
) -> None:
    """Neither a page that is not cached divides a write, nor the end of one that is filled in part."""
    data = b"x" * 16_000
    file = os.open(mount.path / "k", flags)
    write = (lambda: os.write(file, data)) if flags == APPEND else (lambda: os.pwrite(file, data, PAGE - 4))
    assert trace_writes(mount, tmp_path / "trace", write, 4, len(data) - 4) == [len(data)]
    os.close(file)
    assert client.get("k") == b"." * (PAGE - 4) + data


@FLAGS
def test_the_longest_whole_write(client: redis.Redis, mount: MountedServer, tmp_path: Path, flags: int) -> None:
    """255 pages are one request, wherever they are in the memory of the program; writev(2) is one write."""
    data = b"y" * (MAX_WRITE_BYTES - PAGE)
    file = os.open(mount.path / "k", flags)
    requests = trace_writes(mount, tmp_path / "one", lambda: os.write(file, data), 4, len(data) - 4)
    assert requests == [len(data)]
    pieces = [data[:5000]] * 3
    assert trace_writes(mount, tmp_path / "many", lambda: os.writev(file, pieces), 5000, 10_000) == [15_000]
    os.close(file)
    start = PAGE - 4 if flags == APPEND else 0
    assert client.get("k") == b"." * start + data + b"".join(pieces)


def test_readers_and_mappings_see_each_write(client: redis.Redis, mount: MountedServer) -> None:
    """Writes do not pass through the page cache, yet other descriptors and mappings see them at once."""
    path = mount.path / "k"
    writer, reader = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    with mmap.mmap(reader, PAGE - 4, prot=mmap.PROT_READ) as seen, mmap.mmap(writer, PAGE - 4) as shared:
        for number in range(50):
            data = b"%08d" % number
            os.pwrite(writer, data, number)
            assert os.pread(reader, 8, number) == seen[number : number + 8] == shared[number : number + 8] == data
            shared[100:108] = data
            assert os.pread(writer, 8, 100) == os.pread(reader, 8, 100) == data
        expected = seen[:]
    os.close(reader)
    os.close(writer)
    assert client.get("k") == expected

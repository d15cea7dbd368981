"""Fixtures of the tests with faults of servers, networks and disks."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from tests.support.mounts import MountedServer, mount_server
from tests.support.redis_server import RedisServer

TIMEOUT = 1.0  # seconds, of the mounts

MakeMount = Callable[..., MountedServer]


@contextmanager
def small_disk_at(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a disk of some MiB at a new folder, and yield the folder; needs root."""
    folder.mkdir()
    options = f"size={mebibytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=10)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Return a function that mounts a URL in write mode with a short time-out; unmount all afterwards."""
    with ExitStack() as stack:

        def make(url: str, *options: str, folder: Path = tmp_path, **arguments: bool) -> MountedServer:
            mounted = mount_server(folder, url, "--timeout", str(TIMEOUT), *options, **{"write": True, **arguments})
            return stack.enter_context(mounted)

        yield make


@pytest.fixture
def client(own_redis: RedisServer) -> redis.Redis:
    """Connect to a server of the test's own, which has the key `k`."""
    client = own_redis.client()
    client.set("k", "old")
    return client


@pytest.fixture
def mount(own_redis: RedisServer, client: redis.Redis, make_mount: MakeMount) -> MountedServer:  # noqa: ARG001 - `k` first
    """Mount the test's own server."""
    return make_mount(own_redis.tcp_url())

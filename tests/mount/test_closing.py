"""close(2) reports what became of the edits: they are in Redis, or the call fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer

OLD = b"0123456789"


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    with mount_server(
        tmp_path_factory.mktemp("closing"), server.tcp_url(), "--binding", request.param, write=True
    ) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("k", OLD)
    client.hset("h", "f", OLD)
    wait_until(lambda: (mount.path / "k").exists() and (mount.path / "h.f").exists())
    return client


def cut(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR)
    os.ftruncate(descriptor, 3)
    return descriptor


def extend(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR)
    os.ftruncate(descriptor, 12)
    return descriptor


def empty(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_TRUNC)


def empty_by_create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)


TRUNCATIONS: list[tuple[Callable[[Path], int], bytes]] = [
    (cut, OLD[:3]),
    (extend, OLD + b"\0\0"),
    (empty, b""),
    (empty_by_create, b""),
]


@pytest.mark.parametrize("name", ["k", "h.f"])
@pytest.mark.parametrize(("truncate", "expected"), TRUNCATIONS)
def test_a_truncation_is_saved_by_close(
    client: redis.Redis, mount: MountedServer, name: str, truncate: Callable[[Path], int], expected: bytes
) -> None:
    """A file that was only truncated is in Redis when close(2) returns, as one change."""
    before = last_change_id(mount)
    os.close(truncate(mount.path / name))
    assert (client.get("k") if name == "k" else client.hget("h", "f")) == expected
    wait_until(lambda: [row["state"] for row in journal_rows(mount, before)] == ["applied"])


@pytest.mark.parametrize("name", ["k", "h.f"])
@pytest.mark.parametrize("truncate", [cut, empty])
def test_a_refused_truncation_is_reported_by_close(
    client: redis.Redis, mount: MountedServer, name: str, truncate: Callable[[Path], int]
) -> None:
    """A truncation of a value that another client has changed fails with ESTALE at close(2), and is kept."""
    before = last_change_id(mount)
    descriptor = truncate(mount.path / name)
    client.set("k", "theirs")
    client.hset("h", "f", "theirs")
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert client.get("k") == client.hget("h", "f") == b"theirs"
    assert [row["state"] for row in journal_rows(mount, before)] == ["refused"]


@pytest.mark.expected_log("the server is out of memory")
def test_a_full_server_is_reported_by_close(client: redis.Redis, mount: MountedServer) -> None:
    """A truncation that the server has no memory for fails with ENOSPC at close(2)."""
    descriptor = extend(mount.path / "k")
    client.config_set("maxmemory", 1)
    try:
        assert errno_name(os.close, descriptor) == "ENOSPC"
    finally:
        client.config_set("maxmemory", 0)
    assert client.get("k") == OLD
    wait_until(lambda: "out of memory" in mount.read_log())


def test_a_descriptor_for_reading_does_not_delay_the_save(client: redis.Redis, mount: MountedServer) -> None:
    """A program that reads the file, too, has finished writing when it closes the descriptor for writing."""
    with (mount.path / "k").open("rb"):
        os.close(cut(mount.path / "k"))
        assert client.get("k") == OLD[:3]


def test_only_the_last_close_of_a_program_saves_a_truncation(client: redis.Redis, mount: MountedServer) -> None:
    """A program that closes a duplicate, as a shell does before it writes, has not finished."""
    before = last_change_id(mount)
    descriptor = empty(mount.path / "k")
    duplicate = os.dup(descriptor)
    os.close(descriptor)
    assert client.get("k") == OLD
    os.write(duplicate, b"new")
    os.close(duplicate)
    assert client.get("k") == b"new"
    second = os.open(mount.path / "k", os.O_RDWR)
    os.close(empty(mount.path / "k"))
    assert client.get("k") == b"new"  # `second` has the same file open
    os.close(second)
    assert client.get("k") == b""
    assert [row["op"] for row in journal_rows(mount, before)] == ["write", "write"]


def test_a_child_does_not_save_what_its_parent_is_about_to_write(client: redis.Redis, mount: MountedServer) -> None:
    """A child that inherited a truncated file and ends does not save it: its parent has it open still."""
    before = last_change_id(mount)
    with (mount.path / "k").open("wb") as file:
        subprocess.run(["true"], stdout=file, check=True, timeout=20)
        time.sleep(0.1)
        assert client.get("k") == OLD
        file.write(b"new")
    assert client.get("k") == b"new"
    assert [row["op"] for row in journal_rows(mount, before)] == ["write"]


def test_a_truncation_outlives_the_mount(own_redis: RedisServer, tmp_path: Path) -> None:
    """A truncation that close(2) acknowledged is in Redis, also if the mount is killed then."""
    client = own_redis.client()
    for number in range(10):
        client.set(f"k{number}", OLD)
        with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
            script = f"import os; d = os.open('k{number}', os.O_RDWR); os.ftruncate(d, {number}); os.close(d)"
            subprocess.run([sys.executable, "-c", script], cwd=mount.path, check=True, timeout=20)
            mount.process.kill()
            mount.process.wait(20)
            assert client.get(f"k{number}") == OLD[:number]


def test_a_new_empty_file_is_created_by_close(client: redis.Redis, mount: MountedServer) -> None:
    """A new file to which nothing is written is an empty key when close(2) returns."""
    os.close(os.open(mount.path / "new", os.O_CREAT | os.O_WRONLY, 0o644))
    assert client.get("new") == b""
    subprocess.run(["touch", mount.path / "touched"], check=True, timeout=20)
    assert client.get("touched") == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make bind mounts")
def test_a_shell_saves_once_through_another_path(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """A bind mount, as containers have: the shell has the file open under a path that the mount does not know."""
    before = last_change_id(mount)
    subprocess.run(["mount", "--bind", mount.path, tmp_path], check=True)
    try:
        subprocess.run(["sh", "-c", f"echo new > {tmp_path}/k; echo new > {tmp_path}/h.f"], check=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (client.get("k"), client.hget("h", "f")) == (b"new\n", b"new\n")
    assert [row["new_size"] for row in journal_rows(mount, before)] == [4, 4]

"""Collections of unknown size: what programs make of them, their memory as blocks, and their removal in the log."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

REMOVED = r"/c/{0} was removed: it showed size 0, and was a {0} of 60 elements"
TYPES = ("list", "set", "zset", "hash", "stream")


@pytest.fixture
def client(own_redis: RedisServer) -> redis.Redis:
    """Return a client of a server with collections of 60 elements, one of each type, and small keys."""
    client = own_redis.client()
    members = [f"element:{number:03}" * 20 for number in range(60)]
    client.rpush("c:list", *members)
    client.sadd("c:set", *members)
    client.zadd("c:zset", dict.fromkeys(members, 1.0))
    client.hset("c:hash", mapping=dict.fromkeys(members, "v"))
    for member in members:
        client.xadd("c:stream", {"f": member})
    client.rpush("small:list", "one")
    client.set("small:string", "one")
    return client


@pytest.fixture(params=BINDINGS)
def mount(
    request: pytest.FixtureRequest,
    own_redis: RedisServer,
    client: redis.Redis,  # noqa: ARG001 - creates the keys
    tmp_path: Path,
) -> Iterator[MountedServer]:
    """Mount it with sizes up to 50 elements."""
    options = ("--binding", str(request.param), "--render-limit", "50", "--hashes", "files")
    with mount_server(tmp_path, own_redis.url(), *options, write=True) as mount:
        mount.wait_coherent()
        yield mount


def fetch_collections(client: redis.Redis) -> list[object]:
    """Return the contents of the collections."""
    return [
        *(client.lrange("c:list", 0, -1), client.smembers("c:set"), client.zrange("c:zset", 0, -1, withscores=True)),
        *(client.hgetall("c:hash"), client.xrange("c:stream")),
    ]


def count_blocks(client: redis.Redis, key: str) -> int:
    """Return the blocks of 512 bytes that a key takes in Redis."""
    return -(-client.memory_usage(key) // 512)


def test_blocks_are_the_memory_in_redis(client: redis.Redis, mount: MountedServer) -> None:
    """`du` and `ls -s` show the server's estimate for a collection of unknown size; other files have their size.

    It costs one command, which is cached until the collection changes.
    """
    paths = {type: mount.path / "c" / type for type in TYPES}
    for type, path in paths.items():
        status = path.stat()
        assert (status.st_size, status.st_blocks) == (0, count_blocks(client, f"c:{type}"))
    for path in (mount.path / "small").iterdir():
        assert path.stat().st_blocks == 1
    expected = sum(path.stat().st_blocks for path in paths.values())
    shown = subprocess.run(["du", "-s", "-B512", mount.path / "c"], capture_output=True, text=True, check=True).stdout
    assert int(shown.split()[0]) == expected > 100
    before = mount.status()["commands"]
    for path in paths.values():
        path.stat()
    assert mount.status()["commands"] - before <= 2  # the heartbeat's
    client.rpush("c:list", *["x" * 1000] * 100)
    wait_until(lambda: paths["list"].stat().st_blocks == count_blocks(client, "c:list"), 5)


def test_a_server_that_denies_memory_usage(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """Without the permission, such files have no blocks, and all else works."""
    client.execute_command("ACL", "SETUSER", "app", "on", ">x", "~*", "+@all", "&*", "-memory")
    url = f"redis://app:x@127.0.0.1:{own_redis.port}/0"
    with mount_server(tmp_path, url, "--render-limit", "50", "--hashes", "files") as mount:
        status = (mount.path / "c" / "list").stat()
        assert (status.st_size, status.st_blocks) == (0, 0)
        assert (mount.path / "c" / "list").read_bytes().count(b"\n") == 60


def test_what_programs_make_of_them(mount: MountedServer, tmp_path: Path) -> None:
    """The table of docs/reading.md: some programs read all, some trust the size."""
    path, text = mount.path / "c" / "list", (mount.path / "c" / "list").read_bytes()
    copies = tmp_path / "copies"
    copies.mkdir()
    for command in ("cat $F > cat", "cp $F cp", "grep '' $F > grep", "head -n 100 $F > head", "tail -n +1 $F > tail"):
        subprocess.run(["sh", "-ec", command], env={**os.environ, "F": str(path)}, cwd=copies, check=True)
        assert (copies / command.split()[0]).read_bytes() == text
    subprocess.run(["tar", "-cf", "archive", "-C", str(path.parent), "list"], cwd=copies, check=True)
    subprocess.run(["tar", "-xf", "archive"], cwd=copies, check=True)
    assert (copies / "list").read_bytes() == b""
    subprocess.run(["rsync", str(path), str(copies / "rsync")], check=True)
    assert (copies / "rsync").read_bytes() == b""
    shutil.copy(path, copies / "shutil")
    assert (copies / "shutil").read_bytes() == b""


@pytest.mark.expected_log(*map(REMOVED.format, TYPES))
def test_removing_what_seems_empty(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """`find -empty -delete` removes them; the log has each with its number of elements, and a rollback restores it."""
    before = fetch_collections(client)
    subprocess.run(["find", str(mount.path), "-type", "f", "-empty", "-delete"], check=True)
    assert client.dbsize() == 2
    for path in (mount.path / "small").iterdir():
        path.unlink()
    assert mount.read_log().count("was removed") == len(TYPES)
    done = run_redisfuse(tmp_path, "rollback", "--key", "c:*", "--yes")
    assert done.returncode == 0, done.stderr
    assert fetch_collections(client) == before

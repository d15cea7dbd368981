"""A save never overwrites a change that another client made during the edit."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis

from tests.support.changes import journal_rows, last_change_id
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer

SMALL, LARGE = b"0123456789", b"0123456789abcdef" * 100_000


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("conflicts"), server.tcp_url(), write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


@pytest.mark.parametrize("where", ["string", "field"])
@pytest.mark.parametrize("before", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("synced", [0, 1, 2])
@pytest.mark.parametrize("theirs", ["same length", "longer", "gone", "another type"])
def test_changes_of_other_clients_are_kept(
    client: redis.Redis, mount: MountedServer, where: str, before: bytes, synced: int, theirs: str
) -> None:
    """A close is ESTALE after a change by another client, also after earlier saves of the descriptor.

    The server keeps the other client's bytes, and the journal has the refused ones.
    """
    if where == "string":
        client.set("k", before)
    else:
        client.hset("k", "f", before)
    path = mount.path / ("k" if where == "string" else "k.f")
    wait_until(path.exists)
    newest = last_change_id(mount)
    fd = os.open(path, os.O_RDWR)
    for number in range(synced):
        os.pwrite(fd, b"%d" % number, 1)
        os.fsync(fd)
    change(client, where, before, theirs)
    expected = client.dump("k")
    os.pwrite(fd, b"XY", 3)
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert client.dump("k") == expected
    rows = journal_rows(mount, newest)
    assert [row["state"] for row in rows[-1:]] == ["refused"]
    assert len(rows) == synced + 1


def change(client: redis.Redis, where: str, before: bytes, how: str) -> None:
    """Change the key or field as another client."""
    if how == "gone":
        client.delete("k")
    elif how == "another type":
        client.delete("k")
        client.rpush("k", "a", "list")
    else:
        value = before[::-1] + (b"more" if how == "longer" else b"")
        if where == "string":
            client.set("k", value)
        else:
            client.hset("k", "f", value)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_saves_through_the_mount_do_not_conflict(client: redis.Redis, mount: MountedServer, content: bytes) -> None:
    """Repeated saves, through new descriptors and through the same one, all succeed."""
    path = mount.path / "k"
    path.write_bytes(content)
    for number in range(10):
        with path.open("r+b", buffering=0) as file:
            file.seek(number)
            file.write(b"x")
    with path.open("ab", buffering=0) as file:
        for _ in range(5):
            file.write(b"y")
            os.fsync(file.fileno())
    assert client.get("k") == b"x" * 10 + content[10:] + b"y" * 5

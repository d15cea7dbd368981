"""Repeated listings and slow ones: quick, and never outdated."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.vfs.inodes import MAX_LISTED_INODES
from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer

SECOND = 3.0  # a second, and what a busy machine adds
MANY = 6_000  # names: more than the kernel requests at once


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("listings"), server.tcp_url(), "--binding", request.param) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.mset({f"d:{number}": "1" for number in range(MANY)})
    wait_until(lambda: mount.status()["kernel_cache"] and mount.status()["keys"] == MANY)
    return client


def sizes(path: Path) -> set[int]:
    """Return the sizes of all files in a directory, as `ls -l` finds them."""
    return {entry.stat().st_size for entry in os.scandir(path)}


def test_a_repeated_listing_costs_nothing_and_shows_every_change(client: redis.Redis, mount: MountedServer) -> None:
    """Listing a directory again costs the server nothing, yet every change shows within a second."""
    path = mount.path / "d"
    wait_until(lambda: sizes(path) == {1}, SECOND)
    assert sizes(path) == {1}
    before = mount.status()["commands"]
    assert len(os.listdir(path)) == MANY
    assert mount.status()["commands"] - before <= 2  # a keep-alive may be among them
    client.set("d:new", "1")
    wait_until(lambda: len(os.listdir(path)) == MANY + 1, SECOND)
    client.set("d:5", "12345")
    wait_until(lambda: sizes(path) == {1, 5}, SECOND)
    client.delete("d:5")
    wait_until(lambda: sizes(path) == {1}, SECOND)
    client.set("d:sub:key", "1")
    wait_until(lambda: (path / "sub").is_dir() and "sub" in os.listdir(path), SECOND)
    client.set("d:sub", "1")
    wait_until(lambda: "sub%" in os.listdir(path), SECOND)
    client.delete("d:sub:key")
    wait_until(lambda: "sub%" not in os.listdir(path) and (path / "sub").is_file(), SECOND)
    client.delete("d:7")
    client.hset("d:7", "field", "value")
    wait_until(lambda: "7.field" in os.listdir(path), SECOND)
    client.pexpire("d:8", 300)
    wait_until(lambda: "8" not in os.listdir(path), 0.3 + SECOND)
    client.flushall()
    wait_until(lambda: not path.exists(), SECOND)


@pytest.mark.parametrize("listed_before", [False, True])
def test_a_slow_listing_reports_nothing_outdated(
    client: redis.Redis, mount: MountedServer, listed_before: bool
) -> None:
    """A program that pauses within a listing gets current attributes, not those of its start."""
    path = mount.path / "d"
    if listed_before:
        wait_until(lambda: sizes(path) == {1}, SECOND)
    changed = range(0, MANY, 2)  # few enough that each is invalidated on its own
    with os.scandir(path) as listing:
        next(listing).stat()  # the kernel keeps requesting attributes with the names
        client.mset({f"d:{number}": "22" for number in changed})
        wait_until(lambda: (path / "4002").stat().st_size == 2, SECOND)
        for entry in listing:
            entry.stat()
    wait_until(lambda: sizes(path) == {1, 2}, SECOND)
    assert all((path / str(number)).stat().st_size == 2 for number in changed)
    client.mset({f"d:{number}": "333" for number in changed})
    wait_until(lambda: all((path / str(number)).stat().st_size == 3 for number in changed), SECOND + 1.0)


@pytest.mark.long("150,000 files are looked up")
def test_more_files_than_the_kernel_may_cache(client: redis.Redis, mount: MountedServer) -> None:
    """Beyond the limit, listings have no attributes. All names that the kernel has cached are invalidated at once."""
    many, few = mount.path / "many", mount.path / "few"
    for start in range(0, MAX_LISTED_INODES + 1000, 1000):
        client.mset({f"many:{number}": "1" for number in range(start, start + 1000)})
    client.mset({f"few:{number}": "1" for number in range(100)})
    wait_until(lambda: mount.status()["keys"] == MANY + MAX_LISTED_INODES + 1000 + 100)
    assert sizes(many) == {1}

    def lookups() -> int:
        status = mount.status()
        return int(status["cache_hits"] + status["cache_misses"])

    listed = os.listdir(few)
    before = lookups()
    assert sizes(few) == {1}
    assert lookups() - before >= len(listed) == 100
    with (many / "0").open("rb") as file:
        assert file.read() == b"1"
        file.seek(0)
        client.flushall()
        client.mset({"many:0": "22", "many:1": "22"})
        wait_until(lambda: not few.exists() and not (many / "5").exists(), 5 * SECOND)
        wait_until(lambda: sizes(many) == {2}, 5 * SECOND)
        assert file.read() == b"1"

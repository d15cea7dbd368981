"""How the hashes of a folder are listed: `--hashes auto|fields|files`, and where the layout is reported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.mounts import MountedServer, flush_and_wait, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

MODES = ("auto", "fields", "files")
HASHES_LOGGED = "/user has more than 5 hashes: each is listed as one file"


@pytest.fixture
def client(own_redis: RedisServer) -> redis.Redis:
    """Return a client of the server."""
    return own_redis.client()


def add_hashes(client: redis.Redis, count: int, fields: int = 2) -> None:
    """Create hashes `user:0`, `user:1`...; the first field is `email`."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(count):
            pipeline.hset(f"user:{number}", mapping={"email": f"m{number}"} | {f"f{n}": "x" for n in range(1, fields)})
        pipeline.execute()


def listed_as(path: Path) -> str:
    """Return how a folder lists its hashes."""
    return os.getxattr(path, "user.redis.listed-as").decode()


def names_as_fields(count: int, fields: int = 2) -> list[str]:
    """Return the names in the folder if fields are listed."""
    return sorted(
        f"{number}.{field}" for number in range(count) for field in ["email", *(f"f{n}" for n in range(1, fields))]
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", [False, True])
def test_modes(
    own_redis: RedisServer, client: redis.Redis, tmp_path: Path, binding: str, mode: str, write: bool
) -> None:
    """Each mode lists what it says, whatever the number of hashes; both kinds of names open in each."""
    add_hashes(client, 4)
    client.set("user:text", "t")
    with mount_server(
        tmp_path, own_redis.url(), "--binding", binding, "--hashes", mode, "--hash-limit", "5", write=write
    ) as mount:
        folder = mount.path / "user"
        expected = [str(number) for number in range(4)] if mode == "files" else names_as_fields(4)
        assert sorted(os.listdir(folder)) == sorted([*expected, "text"])
        assert listed_as(folder) == ("files" if mode == "files" else "fields")
        assert (folder / "1.email").read_bytes() == b"m1"
        assert set((folder / "1").read_bytes().splitlines()) == {b"email\tm1", b"f1\tx"}


@pytest.mark.expected_log(HASHES_LOGGED)
def test_auto_reports_a_change_of_layout(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """With auto, one hash too many changes the layout: the log, the status and the folder's attribute have it.

    The log has the first such folder only.
    """
    add_hashes(client, 5)
    with mount_server(tmp_path, own_redis.url(), "--hash-limit", "5") as mount:
        folder = mount.path / "user"
        assert sorted(os.listdir(folder)) == names_as_fields(5)
        assert (listed_as(folder), mount.status()["hash_file_folder_count"]) == ("fields", 0)
        assert "hashes" not in run_redisfuse(tmp_path, "status", str(mount.path)).stdout
        add_hashes(client, 6)
        wait_until(lambda: sorted(os.listdir(folder)) == [str(number) for number in range(6)])
        assert listed_as(folder) == "files"
        assert mount.status()["hash_file_folders"] == ["user"]
        assert "hashes       listed as files in /user" in run_redisfuse(tmp_path, "status", str(mount.path)).stdout
        client.delete("user:5")
        wait_until(lambda: sorted(os.listdir(folder)) == names_as_fields(5))
        assert (listed_as(folder), mount.status()["hash_file_folder_count"]) == ("fields", 0)
        add_hashes(client, 6)
        wait_until(lambda: len(os.listdir(folder)) == 6)
        assert mount.read_log().count("listed as one file") == 1
        flush_and_wait(own_redis, mount)
        assert mount.status()["hash_file_folder_count"] == 0


@pytest.mark.expected_log(HASHES_LOGGED)
def test_the_attribute_needs_no_listing(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """The attribute is right before the folder was ever listed, and after a change since its listing."""
    add_hashes(client, 6)
    with mount_server(tmp_path, own_redis.url(), "--hash-limit", "5") as mount:
        folder = mount.path / "user"
        assert b"user.redis.listed-as" in [os.fsencode(name) for name in os.listxattr(folder)]
        assert listed_as(folder) == "files"
        client.delete("user:1", "user:2")
        wait_until(lambda: listed_as(folder) == "fields")
        assert listed_as(mount.path) == "fields"


@pytest.fixture
def large(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> Iterator[MountedServer]:
    """Mount a folder of many hashes and one of a large hash with `--hashes fields`."""
    add_hashes(client, 1500)
    client.hset("one:big", mapping={f"f{number}": "x" * (number % 100) for number in range(5000)})
    client.hset("one:small", "f", "v")
    with mount_server(tmp_path, own_redis.url(), "--hashes", "fields") as mount:
        yield mount


def test_fields_of_any_number(large: MountedServer) -> None:
    """`--hashes fields` lists all fields, of more hashes and of larger hashes than the limits, each once.

    It needs few commands for each hash, sent in pipelines.
    """
    before = large.status()
    assert sorted(os.listdir(large.path / "user")) == names_as_fields(1500)
    after = large.status()
    assert after["commands"] - before["commands"] <= 6 * 1500
    assert after["round_trips"] - before["round_trips"] <= 100
    names = os.listdir(large.path / "one")
    assert sorted(names) == sorted([*(f"big.f{number}" for number in range(5000)), "small.f"])
    for number in (0, 7, 4999):
        path = large.path / "one" / f"big.f{number}"
        assert path.stat().st_size == number % 100
        assert path.read_bytes() == b"x" * (number % 100)
    assert listed_as(large.path / "user") == listed_as(large.path / "one") == "fields"
    assert "hashes       listed as fields" in run_redisfuse(large.path.parent, "status", str(large.path)).stdout


def test_fields_of_a_hash_that_grows(client: redis.Redis, large: MountedServer) -> None:
    """Fields that are in the hash throughout are listed although others come and go meanwhile."""
    path = large.path / "one"
    with os.scandir(path) as entries:
        names = [next(entries).name]
        client.hset("one:big", mapping={f"new{number}": "x" for number in range(3000)})
        client.hdel("one:big", *(f"f{number}" for number in range(0, 5000, 2)))
        names += [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    assert {f"big.f{number}" for number in range(1, 5000, 2)} <= set(names)
    wait_until(lambda: len(os.listdir(path)) == 2500 + 3000 + 1)


def test_long_paths(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """Hashes whose paths are too long follow the mode, too."""
    key = "k" * 5000
    client.hset(key, mapping={"a": "1", "b": "2"})
    for mode, count in (("fields", 2), ("files", 1)):
        with mount_server(tmp_path, own_redis.url(), "--hashes", mode) as mount:
            assert len(os.listdir(mount.path / "%long")) == count

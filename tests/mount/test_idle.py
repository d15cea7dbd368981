"""A mount that is not used stops following (`--idle-seconds`), and `--no-follow` never follows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.support.mounts import mount_server, wait_until
from tests.support.redis_server import RedisServer


def connections(server: RedisServer) -> list[dict[str, Any]]:
    """Return the connections of mounts."""
    return [each for each in server.client().client_list() if each["name"] == "redisfuse"]


def test_following_pauses(tmp_path: Path, own_redis: RedisServer) -> None:
    """A mount without use has no connection; the next request shows what has changed meanwhile."""
    client = own_redis.client()
    client.mset({"dir:old": "1", "k": "before"})
    with mount_server(tmp_path, own_redis.tcp_url(), "--idle-seconds", "1") as mount:
        for round in range(2):
            mount.wait_coherent()
            assert (mount.path / "k").read_text() == ("before" if round == 0 else "after 0")
            wait_until((mount.path / "dir" / "old").exists)
            wait_until(lambda: mount.status()["paused"], 4.0)  # which `status` doesn't end
            assert not connections(own_redis)
            assert not mount.status()["live"]
            time.sleep(0.2)  # until the kernel has dropped what it has cached
            client.set("k", f"after {round}")
            client.set(f"dir:new{round}", "2")
            client.delete("dir:old")
            assert (mount.path / "k").read_text() == f"after {round}"
            assert f"new{round}" in {path.name for path in (mount.path / "dir").iterdir()}
            assert not (mount.path / "dir" / "old").exists()
            assert not mount.status()["paused"]
            client.set("dir:old", "1")
        mount.wait_coherent()


def test_use_keeps_following(tmp_path: Path, own_redis: RedisServer) -> None:
    """Any request but that of `status` is a use: a listing of the root, too."""
    own_redis.client().set("k", "1")
    with mount_server(tmp_path, own_redis.tcp_url(), "--idle-seconds", "2") as mount:
        for number in range(30):
            own_redis.client().set("k", str(number))
            assert [path.name for path in mount.path.iterdir()] == ["k"]
            assert (mount.path / "k").stat().st_size
            assert not mount.status()["paused"]
            time.sleep(0.1)


def test_no_follow(tmp_path: Path, own_redis: RedisServer) -> None:
    """The server tracks nothing; values are believed for a second, and names until the next scan."""
    client = own_redis.client()
    client.mset({"k": "1", "l": "2"})
    options = ["--no-follow", "--rescan-seconds", "1"]
    with mount_server(tmp_path, own_redis.tcp_url(), *options) as mount:
        assert (mount.path / "k").read_text() == "1"
        assert client.info("clients")["tracking_clients"] == 0
        assert "--no-follow" in mount.status()["reason"]
        client.set("k", "3")
        wait_until(lambda: (mount.path / "k").read_text() == "3")
        client.set("new", "4")
        wait_until(lambda: "new" in {path.name for path in mount.path.iterdir()}, 5.0)
        assert client.info("clients")["tracking_clients"] == 0

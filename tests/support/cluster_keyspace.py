"""The index of a cluster's keys, compared with the keys that the cluster has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from redisfuse.client.address import Address
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.keyspace.cluster_monitor import create_monitor
from redisfuse.keyspace.monitor import KeyspaceMonitor
from tests.support.redis_cluster import ClusterWriter, RedisCluster, wait_for

SETTLED_SECONDS = 20.0
"""Mostly less than one is needed; more on a busy machine."""


@contextlib.contextmanager
def keyspace_of(
    url: str, timeout: float = 5.0, *, replicas: bool = False, max_lag: float = 0.0
) -> Iterator[KeyspaceMonitor]:
    """Start the monitor of a cluster, and wait until it is ready."""
    client = open_client(Address.parse(url), Limits(timeout=timeout), replicas=replicas, max_lag=max_lag)
    keyspace = create_monitor(client, heartbeat_interval=0.2)
    keyspace.start()
    try:
        keyspace.wait_until_ready(20)
        yield keyspace
    finally:
        keyspace.close()
        client.close()


def names(keyspace: KeyspaceMonitor) -> set[bytes]:
    """Return all keys of the index."""
    return set(keyspace.index.iter_keys_below(()))


def check_exact(cluster: RedisCluster, keyspace: KeyspaceMonitor, writer: ClusterWriter | None = None) -> None:
    """Fail unless the index is complete, and gets every key and no other, soon after the last write.

    What is expected is determined each time: the node that reports the slots may learn of a move late.
    """
    differences: tuple[set[bytes], set[bytes]] = (set(), set())

    def is_exact() -> bool:
        nonlocal differences
        if not keyspace.is_ready:
            return False
        expected, found = set(cluster.iter_keys()), names(keyspace)
        differences = (expected - found, found - expected)
        return expected == found

    with writer.paused() if writer else contextlib.nullcontext():
        try:
            wait_for(is_exact)
        except AssertionError:
            missing, extra = map(len, differences)
            raise AssertionError(f"{missing} keys are missing, {extra} too many, ready: {keyspace.is_ready}") from None

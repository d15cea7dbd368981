"""One cluster of each kind for all tests of the tier, with all nodes up before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.redis_cluster import RedisCluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RedisCluster]:
    """Run 3 primaries with a replica each (Debian's redis-server); use `cluster`, which repairs and empties it."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    """Return the shared cluster, with all nodes up, and empty; a new one if a failed test left it beyond repair."""
    try:
        shared_cluster.repair()
    except (AssertionError, StopIteration, redis.RedisError, OSError):
        shared_cluster.close()
        shared_cluster.start()
    shared_cluster.flush()
    return shared_cluster

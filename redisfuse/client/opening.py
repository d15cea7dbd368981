"""Opens the client of a server, or of the cluster to which it belongs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_client import ClusterClient
from redisfuse.client.connector import ClusterNodeError
from redisfuse.client.limits import Limits
from redisfuse.errors import UnavailableError


def open_client(
    address: Address,
    limits: Limits | None = None,
    *,
    writable: bool = False,
    password_file: Path | None = None,
    address_map: AddressMap | None = None,
    replicas: bool = False,
    max_lag: float = 0.0,
    wait_replicas: int = 0,
) -> RedisClient:
    """Connect to a server, or to its cluster if it belongs to one.

    `replicas`, `max_lag`: as of `RedisClient`. `wait_replicas`: replicas that must have a write.

    Raises UnavailableError (down, not Redis), AccessError (password), UsageError (no such database).
    """
    if address.kind != "cluster":
        client = RedisClient(
            address,
            limits,
            writable=writable,
            password_file=password_file,
            address_map=address_map,
            replicas=replicas,
            max_lag=max_lag,
        )
        client.wait_replicas = wait_replicas
        try:
            client.connect()
            client.require_wait_permission()
            return client
        except ClusterNodeError:
            client.close()
            address = _cluster_address(address)
        except BaseException:
            client.close()
            raise
    cluster = ClusterClient(
        address,
        limits,
        writable=writable,
        password_file=password_file,
        address_map=address_map,
        replicas=replicas,
        max_lag=max_lag,
    )
    cluster.wait_replicas = wait_replicas
    try:
        cluster.connect()
    except BaseException:
        cluster.close()
        raise
    return cluster


def _cluster_address(address: Address) -> Address:
    """Return the address of the cluster to which a server belongs."""
    if address.kind not in ("tcp", "tls"):
        raise UnavailableError(
            f"{address.endpoint} is one node of a cluster; the address of a cluster has hosts and ports: "
            "use redis+cluster://HOST:PORT"
        )
    return replace(address, kind="cluster", seeds=((address.host, address.port),), host="", port=0)

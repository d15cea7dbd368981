"""The nodes of a cluster and the owners of its slots, kept true.

Nothing announces a change of the topology. It is polled, and queried at once after a redirection or a lost connection.

Threads: any. `_refreshing` is held while nodes are queried, by one thread; `_lock` guards the fields and is a leaf.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_node import NodeClient, NodeOptions
from redisfuse.client.key_transit import KeyTransit
from redisfuse.client.replica_choice import choose_replicas, map_to_replicas
from redisfuse.client.slot_map import (
    EMPTY_MAP,
    ClusterNode,
    SlotMap,
    merge_maps,
    parse_slots,
    parse_target,
)
from redisfuse.errors import AccessError, RedirectedError, RedisFuseError, TryAgainError, UnavailableError, UsageError

log = logging.getLogger(__name__)

REFRESH_TIMEOUT_SECONDS = 1.0
"""How long one node may take to report the slots."""

MIN_REFRESH_INTERVAL_SECONDS = 0.1
"""Between two refreshes that redirections or lost connections cause."""

UNREACHABLE_SECONDS = 2.0
"""After how long another replica of the same primary is read."""

SUSPECT_RETRY_SECONDS = 3.0
"""How often a node that did not answer is queried again."""

_SLOTS_COMMAND = (b"CLUSTER", b"SLOTS")


class ClusterTopology:
    """The slot map and a client for each node.

    `changed` is set when the map has changed or may have changed; the thread that watches the topology clears it.
    """

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self.router: RedisClient | None = None  # the client of the cluster
        self.transit = KeyTransit(self._find_owner) if options.replicas else None
        self.changed = threading.Event()
        self._refreshing = threading.Lock()
        self._refreshed_at = 0.0
        self._suspects: dict[str, float] = {}  # nodes that did not answer, and when to query them again
        self._reports: dict[str, tuple[Any, SlotMap]] = {}  # each node's last reply, and what it says
        self._lock = threading.Lock()  # guards what is below
        self.slot_map = EMPTY_MAP  # of the nodes that are read; replaced, never changed
        self._reported_map = EMPTY_MAP  # of the primaries; the same unless replicas are read
        self._chosen: Mapping[str, ClusterNode] = {}  # the replica that is read, by the id of its primary
        self._clients: dict[str, NodeClient] = {}
        self._closed = False

    # -- nodes --------------------------------------------------------------------------------------------------------

    def client_of(self, node: ClusterNode) -> NodeClient:
        """Return the client of a node. Raises UnavailableError if the mount is ending."""
        with self._lock:
            client = self._clients.get(node.id)
            if client is None or client.node != node:
                if self._closed:
                    raise UnavailableError("the connections are closed: the mount is ending")
                is_replica = self._options.replicas
                client = self._clients[node.id] = NodeClient(node, self._options, is_replica=is_replica)
                client.router = self.router
            return client

    def open_replica(self, node: ClusterNode) -> NodeClient:
        """Return a new client that reads from a replica; the caller closes it."""
        return NodeClient(node, self._options, is_replica=True)

    def client_of_primary(self, primary_id: str) -> NodeClient | None:
        """Return the client of a primary; None if it owns no slot any more."""
        client = self._clients.get(primary_id)
        if client is not None:
            return client
        node = self.slot_map.primaries.get(primary_id)
        return None if node is None else self.client_of(node)

    def client_at(self, host: str, port: int) -> NodeClient:
        """Return the client of the node that announces this endpoint, known or not.

        If replicas are read, that of a primary's replica. Raises TryAgainError if there is none.
        """
        if self._options.replicas:
            named = self._reported_map.find_endpoint(host, port)
            replica = None if named is None else self._chosen.get(named.id, self.slot_map.primaries.get(named.id))
            if replica is None:
                raise TryAgainError(f"no replica of {host}:{port} is known; try again later")
            return self.client_of(replica)
        node = self.slot_map.find_endpoint(host, port) or ClusterNode(f"{host}:{port}", host, port)
        return self.client_of(node)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
        for client in clients:
            client.close()

    # -- the map ------------------------------------------------------------------------------------------------------

    def connect(self, seeds: list[ClusterNode]) -> None:
        """Fetch the first map from the first seed that answers.

        Raises the last seed's error, and UsageError or UnavailableError if the seed is no node of a cluster.
        """
        error: RedisFuseError = UsageError("the address names no node of the cluster")
        for seed in seeds:
            try:
                slot_map = self._query_seed(seed)
            except (AccessError, UsageError):
                raise
            except RedisFuseError as failure:
                error = failure
                continue
            if slot_map.primaries:
                self._install(slot_map)
                self._require_replicas()
                self.refresh()
                return
            error = UnavailableError(f"{seed.endpoint} is a node of a cluster in which no node serves any slot")
        raise error

    def _query_seed(self, seed: ClusterNode) -> SlotMap:
        if not self._options.replicas:
            return parse_slots(self.client_of(seed).execute(*_SLOTS_COMMAND), seed.host)
        with closing(NodeClient(seed, self._options)) as client:  # perhaps a primary's: it is used only once
            return parse_slots(client.execute(*_SLOTS_COMMAND), seed.host)

    def _require_replicas(self) -> None:
        """Raise UnavailableError if only replicas may be read, and a primary has none."""
        if not self._options.replicas:
            return
        lacking = [node.endpoint for id, node in self._reported_map.primaries.items() if id not in self._chosen]
        if lacking:
            raise UnavailableError(
                f"no replica is linked to the primary {', '.join(lacking)}, and --replicas reads replicas only: "
                "add a replica, try again after the fail-over, or mount without --replicas"
            )

    def _find_owner(self, key: bytes) -> str | None:
        return self.slot_map.owner(key)

    def refresh_soon(self) -> None:
        """Have the map refreshed: it may have changed."""
        self.changed.set()
        if time.monotonic() - self._refreshed_at >= MIN_REFRESH_INTERVAL_SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """Query the primaries for the map, unless another thread is doing that.

        Raises nothing.
        """
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            self._refresh()
            self._leave_strangers()
        except UnavailableError:
            pass  # the mount is ending
        finally:
            self._refreshed_at = time.monotonic()
            self._refreshing.release()

    def _refresh(self) -> None:
        before = self.slot_map
        now = time.monotonic()
        nodes = dict(before.primaries)
        queried = {id: node for id, node in nodes.items() if self._suspects.get(id, 0.0) <= now}
        reports = self._query_all(queried)
        if not reports:  # replicas know the map, too, and so may the seeds
            reports = self._query_all({node.id: node for node in self._other_nodes() if node.id not in queried})
        if not self._options.replicas:
            named = {id: node for report in reports.values() for id, node in report.primaries.items()}
            unknown = {id: node for id, node in named.items() if id not in queried and id not in nodes}
            reports |= self._query_all(unknown)
        merged = merge_maps(self._reported_map, reports) if reports else self._reported_map
        if merged != self._reported_map or (self._options.replicas and self._choose(merged) != self._chosen):
            self._install(merged)

    def _leave_strangers(self) -> None:
        """Close idle connections to nodes that own no slot.

        A late redirection or report may have led there.
        """
        with self._lock:
            strangers = [client for id, client in self._clients.items() if id not in self.slot_map.primaries]
        for client in strangers:
            client.close_idle()

    def _other_nodes(self) -> list[ClusterNode]:
        """Return the nodes that may be queried besides those in use."""
        reported = self._reported_map
        if not self._options.replicas:
            return reported.all_nodes()
        return [node for nodes in reported.replicas.values() for node in nodes if node.id not in reported.primaries]

    def _choose(self, reported: SlotMap) -> Mapping[str, ClusterNode]:
        now = time.monotonic()
        clients = dict(self._clients)
        unreachable = {
            id
            for id, client in clients.items()
            if client.unreachable_since is not None and now - client.unreachable_since > UNREACHABLE_SECONDS
        }
        return choose_replicas(reported, self.slot_map.primaries, unreachable)

    def _query_all(self, nodes: Mapping[str, ClusterNode]) -> dict[str, SlotMap]:
        """Query nodes at the same time; return the reports of those that answer."""
        reports: dict[str, SlotMap] = {}
        timeout = min(REFRESH_TIMEOUT_SECONDS, self._options.limits.timeout)
        with ExitStack() as stack:
            sent: list[tuple[ClusterNode, Channel]] = []
            for node in nodes.values():
                try:
                    channel = stack.enter_context(self.client_of(node).read_channel(timeout, checks_lag=False))
                    channel.send([_SLOTS_COMMAND])
                    sent.append((node, channel))
                except RedisFuseError as error:
                    self._suspect(node, error)
            for node, channel in sent:
                try:
                    reply = channel.receive()
                    if isinstance(reply, RedisFuseError):
                        raise reply
                    reports[node.id] = self._parse_report(node, reply)
                    self._suspects.pop(node.id, None)
                except RedisFuseError as error:
                    self._suspect(node, error)
        return reports

    def _parse_report(self, node: ClusterNode, reply: Any) -> SlotMap:
        """Return what a reply says; replies rarely differ from the one before."""
        known = self._reports.get(node.id)
        if known is not None and known[0] == reply:
            return known[1]
        report = parse_slots(reply, node.host)
        self._reports[node.id] = (reply, report)
        return report

    def _suspect(self, node: ClusterNode, error: RedisFuseError) -> None:
        self._suspects[node.id] = time.monotonic() + SUSPECT_RETRY_SECONDS
        self._reports.pop(node.id, None)
        log.debug("%s did not report the slots of the cluster: %s", node.endpoint, error)

    def record_move(self, error: RedirectedError, sender: NodeClient) -> bool:
        """Follow a MOVED reply; return whether it names a node."""
        endpoint = parse_target(error.target, sender.node.host)
        if endpoint is None or not 0 <= error.slot < len(self.slot_map.owners):
            return False
        self.refresh_soon()
        slot_map = self._reported_map
        owner = slot_map.owners[error.slot]
        if owner is None or (slot_map.primaries[owner].host, slot_map.primaries[owner].port) != endpoint:
            node = slot_map.find_endpoint(*endpoint)
            if node is None:
                return False
            self._install(slot_map.with_owner(error.slot, node))
        return True

    def _install(self, reported: SlotMap) -> None:
        """Use a new map of the primaries.

        Closes the clients of nodes that own nothing any more.
        """
        slot_map, chosen = reported, self._chosen
        if self._options.replicas:
            chosen = self._choose(reported)
            slot_map = map_to_replicas(reported, chosen)
        with self._lock:
            before, self.slot_map = self.slot_map, slot_map
            self._reported_map, self._chosen = reported, chosen
            unused = [id for id in self._clients if id not in slot_map.primaries]
            closing = [self._clients.pop(id) for id in unused]
        for client in closing:
            client.close()
        if self.transit is not None:
            self.transit.record_owners(before, slot_map)
        if before.primaries and before.primaries != slot_map.primaries:
            kind = "replicas in use" if self._options.replicas else "primaries"
            log.info("the cluster's %s are %s now", kind, ", ".join(map(_describe, slot_map.primaries.values())))
        self.changed.set()


def _describe(node: ClusterNode) -> str:
    return node.endpoint

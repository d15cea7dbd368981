"""Which replica of each primary of a cluster is read.

Pure.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

from redisfuse.client.slot_map import ClusterNode, SlotMap


def choose_replicas(
    reported: SlotMap, in_use: Collection[str], unreachable: Collection[str]
) -> Mapping[str, ClusterNode]:
    """Return one replica for each primary that has any, by the primary's id.

    A replica in use stays while it can be reached, since each new one is scanned.
    """
    chosen: dict[str, ClusterNode] = {}
    for primary_id in reported.primaries:
        known = [node for node in reported.replicas.get(primary_id, ()) if node.id not in reported.primaries]
        candidates = [node for node in known if node.id not in unreachable] or known
        if candidates:
            staying = [node for node in candidates if node.id in in_use]
            chosen[primary_id] = staying[0] if staying else random.choice(candidates)
    return chosen


def map_to_replicas(reported: SlotMap, chosen: Mapping[str, ClusterNode]) -> SlotMap:
    """Return the map in which the chosen replicas own the slots of their primaries.

    The slots of a primary without a replica have no owner.
    """
    ids = {primary_id: node.id for primary_id, node in chosen.items()}
    owners = tuple([None if owner is None else ids.get(owner) for owner in reported.owners])
    return SlotMap(owners, {node.id: node for node in chosen.values()})

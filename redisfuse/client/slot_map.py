"""Which node of a Redis Cluster owns which hash slot, from CLUSTER SLOTS.

Pure. A key's slot is the CRC-16 of the key, or of what its first pair of braces contains
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model).
"""

from __future__ import annotations

from binascii import crc_hqx
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, repeat
from typing import Any

from redisfuse.errors import UnavailableError

SLOT_COUNT = 16384

_MIN_MAPPED_KEYS = 100  # that are worth a table of 64 KiB
_UNKNOWN_HOST = "?"  # announced instead of a host name that is not configured


def key_slot(key: bytes) -> int:
    """Return the hash slot of a key."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & 0x3FFF


def select_keys(keys: Sequence[bytes], slots: bytes) -> list[bytes]:
    """Return the keys at whose slots `slots` has a non-zero byte."""
    if len(keys) >= _MIN_MAPPED_KEYS and b"{" not in b"".join(keys):  # without a line of Python for each key
        selectors = slots * (0x10000 // SLOT_COUNT)  # by the whole CRC
        return list(compress(keys, map(selectors.__getitem__, map(crc_hqx, keys, repeat(0)))))
    return [
        key
        for key in keys
        if slots[crc_hqx(key, 0) & 0x3FFF if b"{" not in key else key_slot(key)]  # mostly without a call
    ]


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node, with the endpoint that the cluster announces."""

    id: str
    host: str
    port: int

    @property
    def endpoint(self) -> str:
        """The endpoint, as messages name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SlotMap:
    """The owners of all slots, as one node reported them. Immutable."""

    owners: tuple[str | None, ...]  # for each slot the id of the primary; None: no node serves it
    primaries: Mapping[str, ClusterNode]  # by id; those that own a slot
    replicas: Mapping[str, tuple[ClusterNode, ...]] = field(default_factory=dict)  # by the id of the primary

    @property
    def unserved_slots(self) -> int:
        """The number of slots that no node serves."""
        return self.owners.count(None)

    def owner(self, key: bytes) -> str | None:
        """Return the id of the primary that owns the slot of a key."""
        return self.owners[key_slot(key)]

    def slots_of(self, primary_id: str) -> bytes:
        """Return a byte for each slot: 1 where this primary owns it, else 0."""
        return bytes([owner == primary_id for owner in self.owners])

    def all_nodes(self) -> list[ClusterNode]:
        """Return the primaries, then the replicas."""
        return [*self.primaries.values(), *(node for nodes in self.replicas.values() for node in nodes)]

    def find_endpoint(self, host: str, port: int) -> ClusterNode | None:
        """Return the node that announces this endpoint."""
        return next((node for node in self.all_nodes() if (node.host, node.port) == (host, port)), None)

    def with_owner(self, slot: int, primary: ClusterNode) -> SlotMap:
        """Return a map in which one slot has another owner."""
        owners = (*self.owners[:slot], primary.id, *self.owners[slot + 1 :])
        return SlotMap(owners, {**self.primaries, primary.id: primary}, self.replicas)


EMPTY_MAP = SlotMap((None,) * SLOT_COUNT, {})


def parse_slots(reply: Any, sender_host: str) -> SlotMap:
    """Parse the reply to CLUSTER SLOTS.

    `sender_host`: of the node that replied; it replaces hosts that the reply leaves out. Raises UnavailableError for
    a reply of another form.
    """
    owners: list[str | None] = [None] * SLOT_COUNT
    primaries: dict[str, ClusterNode] = {}
    replicas: dict[str, list[ClusterNode]] = {}
    try:
        for start, end, primary, *others in reply:
            if not 0 <= start <= end < SLOT_COUNT:
                raise ValueError("no such slot")
            node = _parse_node(primary, sender_host)
            primaries[node.id] = node
            owners[start : end + 1] = [node.id] * (end + 1 - start)
            replicas[node.id] = [_parse_node(other, sender_host) for other in others]
    except (TypeError, ValueError, IndexError, AttributeError):
        raise UnavailableError(f"{sender_host} sent an invalid reply to CLUSTER SLOTS") from None
    return SlotMap(tuple(owners), primaries, {id: tuple(nodes) for id, nodes in replicas.items()})


def _parse_node(words: Sequence[Any], sender_host: str) -> ClusterNode:
    host, port, id, *more = words
    text = host.decode() if isinstance(host, bytes) else ""
    if text in ("", _UNKNOWN_HOST):
        names = more[0] if more and isinstance(more[0], list) else []
        metadata = dict(zip(names[::2], names[1::2], strict=False))
        # A host name that is not configured is announced as "?", with the address among the metadata.
        address = metadata.get(b"ip", b"") if text == _UNKNOWN_HOST else b""
        text = address.decode() or sender_host
    return ClusterNode(id.decode(), text, int(port))


def parse_target(target: str, sender_host: str) -> tuple[str, int] | None:
    """Return the host and port of a redirection; None if it has no valid form.

    The host is that of the node that sent it, where the redirection has none.
    """
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit() or len(port) > 5:
        return None
    return (sender_host if host in ("", _UNKNOWN_HOST) else host.strip("[]")), int(port)


def merge_maps(current: SlotMap, reports: Mapping[str, SlotMap]) -> SlotMap:
    """Merge what several nodes report, by the id of the node.

    Reports differ for a moment after each change, and longer on a node that was cut off. Of each slot, the owner is the
    node that claims it for itself. If several do, as a primary that hung does after its fail-over, or none does, the
    majority decides; if there is none, the owner stays.
    """
    maps = list(reports.values())
    if not maps:
        return current
    if all(each.owners == maps[0].owners for each in maps):
        replicas = _merge_replicas(maps, maps[0].primaries)
        return maps[0] if replicas == maps[0].replicas else replace(maps[0], replicas=replicas)
    owners: list[str | None] = []
    for slot, known in enumerate(current.owners):
        votes = {each.owners[slot] for each in maps}
        if len(votes) == 1:
            owners += votes
            continue
        claimants = [id for id, report in reports.items() if report.owners[slot] == id]
        owners.append(claimants[0] if len(claimants) == 1 else _elect(slot, maps, claimants, known))
    nodes = {id: node for each in (current, *maps) for id, node in each.primaries.items()}
    owning = set(owners)
    primaries = {id: node for id, node in nodes.items() if id in owning}
    return SlotMap(tuple(owners), primaries, _merge_replicas(maps, primaries))


def _merge_replicas(maps: Sequence[SlotMap], primary_ids: Iterable[str]) -> dict[str, tuple[ClusterNode, ...]]:
    """Return all replicas that any node reports.

    One that was just linked is not reported by all.
    """
    return {
        id: tuple({node.id: node for each in maps for node in each.replicas.get(id, ())}.values()) for id in primary_ids
    }


def _elect(slot: int, maps: Sequence[SlotMap], claimants: Collection[str], known: str | None) -> str | None:
    votes = Counter(each.owners[slot] for each in maps if not claimants or each.owners[slot] in claimants)
    most = max(votes.values())
    leaders = [owner for owner, count in votes.items() if count == most]
    return known if known in leaders else leaders[0]

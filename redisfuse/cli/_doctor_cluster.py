"""The checks of `redisfuse doctor` for the nodes of a Redis Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from redisfuse.cli.doctor import DoctorFinding, assess_mode
from redisfuse.client.acl import AclReport, check_acl
from redisfuse.client.cluster_client import ClusterClient
from redisfuse.client.info import split_info
from redisfuse.client.replication import parse_link
from redisfuse.client.slot_map import SLOT_COUNT
from redisfuse.errors import RedisFuseError

if TYPE_CHECKING:
    from redisfuse.client.capabilities import ServerInfo
    from redisfuse.client.client import RedisClient
    from redisfuse.client.slot_map import ClusterNode


def check_cluster(server: RedisClient, prefix: bytes, *, write: bool) -> Iterator[DoctorFinding]:
    """Yield the findings about a cluster, its nodes and the modes of a mount."""
    assert isinstance(server, ClusterClient)
    slot_map = server.slot_map
    unserved = slot_map.unserved_slots
    replicas = sum(map(len, slot_map.replicas.values()))
    slots = f"no node serves {unserved} of {SLOT_COUNT} slots" if unserved else "all slots are served"
    yield DoctorFinding(
        "cluster",
        not unserved,
        f"{server.address.endpoint}: {len(slot_map.primaries)} primaries, {replicas} replicas; {slots}",
    )
    reports: list[tuple[str, AclReport, ServerInfo]] = []
    for id, node in slot_map.primaries.items():
        try:
            client = server.topology.client_of(node)
            info = client.server_info
            report = check_acl(client, prefix=prefix, queue_writes=write, suffix=_find_suffix(server, prefix, id))
        except RedisFuseError as error:
            yield DoctorFinding("node", False, str(error))
            continue
        reports.append((node.endpoint, report, info))
        count_of_slots = slot_map.owners.count(id)
        yield DoctorFinding("node", True, f"{node.endpoint}: {info.label}, a primary of {count_of_slots} slots")
        for replica in slot_map.replicas.get(id, ()):
            yield _check_replica(server, replica)
    yield from _assess_modes(reports, write=write)


def _find_suffix(server: ClusterClient, prefix: bytes, owner: str) -> bytes:
    """Return the end of a key name whose slot a node owns."""
    for number in count():  # a prefix with braces has one slot, which any key has
        suffix = b"redisfuse:doctor:%d" % number
        if server.slot_map.owner(prefix + suffix) == owner or number == SLOT_COUNT:
            return suffix
    raise AssertionError


def _check_replica(server: ClusterClient, node: ClusterNode) -> DoctorFinding:
    """Return whether a replica can be reached; a mount does not need it."""
    client = server.topology.open_replica(node)
    try:
        info = client.server_info
        link = parse_link(split_info(client.execute(b"INFO", b"replication")))
    except RedisFuseError as error:
        return DoctorFinding("node", False, str(error), is_required=False)
    finally:
        client.close()
    state = "its link is unknown" if link is None else link.text
    is_up = link is not None and link.is_up
    return DoctorFinding("node", is_up, f"{node.endpoint}: {info.label}, a replica; {state}", is_required=False)


def _assess_modes(reports: list[tuple[str, AclReport, ServerInfo]], *, write: bool) -> Iterator[DoctorFinding]:
    """Yield one finding for each mode: the worst of all primaries."""
    if not reports:
        return
    _, first, _ = reports[0]
    for access in first.modes:
        is_required = write or access.mode != "write"
        found = [
            (endpoint, assess_mode(report.get_mode_access(access.mode), report, node_info, is_required=is_required))
            for endpoint, report, node_info in reports
        ]
        worst = min((finding for _, finding in found), key=lambda finding: {False: 0, None: 1, True: 2}[finding.ok])
        places = [endpoint for endpoint, finding in found if finding.ok == worst.ok]
        where = "on every primary" if len(places) == len(found) else f"on {', '.join(places)}"
        missing = tuple(dict.fromkeys(rule for _, finding in found for rule in finding.missing))
        yield replace(worst, message=f"{worst.message} {where}", missing=missing)
    for note in dict.fromkeys(note for _, report, _ in reports for note in report.notes):
        yield DoctorFinding("note", None, note, is_required=False)

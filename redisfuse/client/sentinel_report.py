"""The answer of one Sentinel to one poll. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redisfuse.client.channel import RedisCommand
from redisfuse.errors import RedisFuseError, ServerReplyError, UnavailableError

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica, as a Sentinel reports it."""

    endpoint: Endpoint
    is_down: bool
    is_linked: bool  # to its master


@dataclass(frozen=True, slots=True)
class SentinelReport:
    """The answer of one Sentinel to one poll."""

    master: Endpoint
    config_epoch: int
    is_failing_over: bool
    sentinel_count: int  # all Sentinels of the service that it knows, itself included
    replicas: tuple[ReplicaReport, ...]
    peers: Mapping[str, Endpoint]  # the other Sentinels, by their ids
    polled_at: float  # when the poll was sent, in time.monotonic()
    answered_at: float


def poll_commands(service: str, *, with_replicas: bool) -> list[RedisCommand]:
    """Return the commands of one poll."""
    return [
        (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service),
        (b"SENTINEL", b"MASTER", service),
        (b"SENTINEL", b"SENTINELS", service),
        *([(b"SENTINEL", b"REPLICAS", service)] if with_replicas else []),
    ]


def parse_report(replies: Sequence[Any], service: str, polled_at: float) -> SentinelReport:
    """Parse the replies of one Sentinel to `poll_commands`.

    Raises UnavailableError.
    """
    for reply in replies:
        if isinstance(reply, ServerReplyError):
            raise UnavailableError(f"it monitors no master named {service} ({reply})")
        if isinstance(reply, RedisFuseError):
            raise reply
    try:
        address, master, sentinels, *replicas = replies
        fields = _to_fields(master)
        advertised = (address[0].decode(), int(address[1]))
        flags = fields["flags"].split(",")
        # A leader that advertises another address than the master's has promoted that replica.
        is_promoted = advertised != (fields["ip"], int(fields["port"]))
        return SentinelReport(
            master=advertised,
            config_epoch=int(fields["config-epoch"]),
            is_failing_over=not is_promoted and ("failover_in_progress" in flags or "o_down" in flags),
            sentinel_count=int(fields["num-other-sentinels"]) + 1,
            replicas=tuple(_parse_replica(_to_fields(each)) for each in (replicas[0] if replicas else [])),
            peers={
                each["runid"]: (each["ip"], int(each["port"]))
                for each in map(_to_fields, sentinels)
                if each.get("runid")
            },
            polled_at=polled_at,
            answered_at=time.monotonic(),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UnavailableError("it does not answer like a Sentinel") from None


def _to_fields(reply: Any) -> dict[str, str]:
    """Return the fields of a reply: a map of RESP3, or a flat list."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs}


def _parse_replica(fields: dict[str, str]) -> ReplicaReport:
    flags = fields["flags"].split(",")
    return ReplicaReport(
        endpoint=(fields["ip"], int(fields["port"])),
        is_down=not {"s_down", "o_down", "disconnected"}.isdisjoint(flags) or "slave" not in flags,
        is_linked=fields.get("master-link-status") == "ok",
    )

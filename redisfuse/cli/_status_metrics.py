"""The status of mounts in Prometheus's text exposition format.

https://prometheus.io/docs/instrumenting/exposition_formats/ describes the format, and .../practices/naming/ the names.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from redisfuse.cli._mount_status import Facts

Sample = tuple[Mapping[str, str], float | int | bool | None]
"""The labels of a sample beside `mountpoint`, and its value; None: the mount has no such sample."""

_Collector = Callable[[Facts], Sequence[Sample]]

_NAMESPACE = "redisfuse"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str  # without the namespace
    kind: Literal["gauge", "counter"]
    help: str
    collect: _Collector


def _field(name: str) -> _Collector:
    return lambda facts: [({}, facts.get(name))]


def _part(name: str, key: str | int) -> _Collector:
    """Collect a part of a field; no sample if the mount has no such field."""
    return lambda facts: [({}, facts[name][key] if facts[name] else None)]


def _shard_field(name: str) -> _Collector:
    return lambda facts: [({"node": shard["node"]}, shard[name]) for shard in facts["shards"]]


_METRICS = (
    _Metric(
        "info",
        "gauge",
        "The server, and the version of redisfuse.",
        lambda facts: [({name: str(facts[name]) for name in ("server", "server_version", "version", "mode")}, 1)],
    ),
    _Metric("uptime_seconds", "gauge", "How long the mount has been served.", _field("up_seconds")),
    _Metric(
        "keys",
        "gauge",
        "Keys in the mount; absent until the names of all are known.",
        lambda facts: [({}, facts["keys"] if facts["ready"] else None)],
    ),
    _Metric("ready", "gauge", "Whether the names of all keys are known.", _field("ready")),
    _Metric("scanning", "gauge", "Whether the names of all keys are being read.", _field("scanning")),
    _Metric("paused", "gauge", "Whether changes are not tracked because the mount is idle.", _field("paused")),
    _Metric("tracking", "gauge", "Whether changes are tracked by the server.", _field("live")),
    _Metric("kernel_cache_coherent", "gauge", "Whether changes invalidate the kernel's cache.", _field("kernel_cache")),
    _Metric("commands_total", "counter", "Commands sent to the server.", _field("commands")),
    _Metric("round_trips_total", "counter", "Round trips to the server.", _field("round_trips")),
    _Metric("sent_bytes_total", "counter", "Bytes sent to the server.", _field("bytes_sent")),
    _Metric("received_bytes_total", "counter", "Bytes received from the server.", _field("bytes_received")),
    _Metric("reconnects_total", "counter", "Reads repeated because a connection was lost.", _field("reconnects")),
    _Metric("cache_hits_total", "counter", "Lookups answered from the cache.", _field("cache_hits")),
    _Metric("cache_misses_total", "counter", "Lookups not answered from the cache.", _field("cache_misses")),
    _Metric("cache_bytes", "gauge", "Memory of the cache.", _field("cache_bytes")),
    _Metric("cache_limit_bytes", "gauge", "Limit of --cache-memory.", _field("cache_limit_bytes")),
    _Metric(
        "cache_evictions_total",
        "counter",
        "Attributes of keys, and contents, that did not fit into the cache.",
        lambda facts: [
            ({"kind": "attributes"}, facts["cache_evicted_keys"]),
            ({"kind": "content"}, facts["cache_evicted_contents"]),
        ],
    ),
    _Metric("index_bytes", "gauge", "Memory of the key names.", _field("index_bytes")),
    _Metric("index_on_disk", "gauge", "Whether the key names are in a temporary file.", _field("index_on_disk")),
    _Metric("resident_memory_bytes", "gauge", "Memory of the process.", _field("memory_bytes")),
    _Metric("replica_lag_seconds", "gauge", "How old a replica's values may be.", _field("lag_seconds")),
    _Metric(
        "master_link_up", "gauge", "Whether the replica is connected to its master.", _part("master_link", "is_up")
    ),
    _Metric("unserved_slots", "gauge", "Slots of a cluster without a node.", _field("unserved_slots")),
    _Metric("shard_tracking", "gauge", "Whether a shard's changes are tracked.", _shard_field("live")),
    _Metric("shard_slots", "gauge", "Slots that a shard serves.", _shard_field("slots")),
    _Metric("shard_replica_lag_seconds", "gauge", "How old a shard's values may be.", _shard_field("lag_seconds")),
    _Metric(
        "shard_master_link_up",
        "gauge",
        "Whether a shard's replica is connected to its master.",
        lambda facts: [
            ({"node": shard["node"]}, shard["master_link"]["is_up"])
            for shard in facts["shards"]
            if shard["master_link"]
        ],
    ),
    _Metric("sentinels_answering", "gauge", "Sentinels that answer.", _part("sentinels", 0)),
    _Metric("sentinels", "gauge", "Sentinels that are known.", _part("sentinels", 1)),
)


def format_metrics(mounts: Mapping[str, Facts | None]) -> Iterator[str]:
    """Yield the lines of all metrics of mounts, by mount point.

    None is a mount that does not respond: its only metric is `redisfuse_up`.
    """
    up = _Metric("up", "gauge", "Whether the mount responds.", lambda _: ())
    yield from _format_family(up, [(path, {}, facts is not None) for path, facts in mounts.items()])
    for metric in _METRICS:
        samples = [
            (path, labels, value)
            for path, facts in mounts.items()
            if facts is not None
            for labels, value in metric.collect(facts)
            if value is not None
        ]
        yield from _format_family(metric, samples)


def _format_family(metric: _Metric, samples: Sequence[tuple[str, Mapping[str, str], Any]]) -> Iterator[str]:
    if not samples:
        return
    name = f"{_NAMESPACE}_{metric.name}"
    yield f"# HELP {name} {metric.help}"
    yield f"# TYPE {name} {metric.kind}"
    for path, labels, value in samples:
        pairs = ",".join(f'{label}="{_escape(text)}"' for label, text in {"mountpoint": path, **labels}.items())
        yield f"{name}{{{pairs}}} {float(value) if isinstance(value, float) else int(value)}"


def _escape(text: str) -> str:
    """Return the value of a label; bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").translate(_ESCAPES)

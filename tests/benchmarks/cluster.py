"""A Redis Cluster of three primaries: the first listing beside a bare scan, and `ls -l` beside a single server."""

from __future__ import annotations

import os
import socket
import time

import hiredis

from tests.benchmarks.baseline import (
    BenchmarkRun,
    MeasuredCost,
    fill_strings,
    measure_cost,
    measure_seconds,
    run_program,
)
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_rate, format_seconds
from tests.support.mounts import mount_server
from tests.support.redis_cluster import ClusterServer, RedisCluster
from tests.support.redis_server import RedisServer

KEYS = {"quick": 30_000, "normal": 300_000, "large": 300_000}
TURNS = 3
MAX_SCAN_RATIO = 1.5
MIN_THROUGHPUT = 0.75
MAX_COMMANDS_PER_KEY = 2.1  # 2, and those of the following
MAX_ROUND_TRIPS_RATIO = 3


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    with RedisCluster(3, 0) as cluster:
        return [_measure_first_listing(bench, cluster), _measure_long_listing(bench, cluster)]


def _measure_first_listing(bench: BenchmarkRun, cluster: RedisCluster) -> ResultTable:
    table = ResultTable(
        "Cluster: the first `ls` of the root, with 3 primaries",
        ("keys", "this mount", "bare scan", "ratio", "goal"),
        notes=[
            "bare scan: `SCAN COUNT 1000` on raw connections to all primaries at once, whose names are kept in a set.",
            "this mount: from when it appears until `ls` of its root is done. The better of three turns, in turns.",
        ],
    )
    count = KEYS[bench.sizes.name]
    cluster.fill(count, b"session:")
    ours, bare = [], []
    for _ in range(TURNS):
        bare.append(measure_seconds(lambda: scan_all(cluster.primaries())))
        ours.append(_list_first(bench, cluster))
    ratio = min(ours) / min(bare)
    goal = format_goal(f"≤ {MAX_SCAN_RATIO}", ratio <= MAX_SCAN_RATIO)
    times = format_seconds(min(ours)), format_seconds(min(bare))
    table.add_row(format_number(count), *times, f"{ratio:.2f}", goal)
    cluster.flush()
    return table


def _list_first(bench: BenchmarkRun, cluster: RedisCluster) -> float:
    words = ["--binding", bench.bindings[0]]
    with mount_server(bench.new_folder(), cluster.url(), *words, wait=False) as mount:
        while not os.path.ismount(mount.path):
            time.sleep(0.001)
        return measure_seconds(lambda: os.listdir(mount.path))


def scan_all(nodes: list[ClusterServer]) -> int:
    """Scan all nodes at once, in one thread; return the number of their keys."""
    connections = [socket.create_connection(("127.0.0.1", node.port)) for node in nodes]
    readers = {connection: hiredis.Reader() for connection in connections}
    keys: set[bytes] = set()
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(hiredis.pack_command((b"SCAN", b"0", b"COUNT", 1000)))
    while readers:
        for connection, reader in list(readers.items()):
            while (reply := reader.gets()) is False:
                reader.feed(connection.recv(1 << 17))
            cursor, names = reply
            if cursor == b"0":
                del readers[connection]
            else:
                connection.sendall(hiredis.pack_command((b"SCAN", cursor, b"COUNT", 1000)))
            keys.update(names)
    for connection in connections:
        connection.close()
    return len(keys)


def _measure_long_listing(bench: BenchmarkRun, cluster: RedisCluster) -> ResultTable:
    files = bench.sizes.directory_files
    table = ResultTable(
        f"Cluster: `ls -l` of {format_number(files)} strings in one folder",
        ("server", "files", "commands a file", "round trips a node", "mount CPU", "goal"),
        notes=["The best of three mounts each, in turns. The goals compare with the single server."],
    )
    cluster.fill(files)
    with RedisServer(tcp=True) as server:
        fill_strings(server.client(), files, lambda number: (f"key:{number}", b"value"))
        costs: dict[str, list[MeasuredCost]] = {}
        for _ in range(TURNS):
            for name, url in (("one server", server.tcp_url()), ("3 primaries", cluster.url())):
                costs.setdefault(name, []).append(_list_long(bench, url))
    best = {name: min(measured, key=_seconds) for name, measured in costs.items()}
    single = best["one server"]
    for name, cost in best.items():
        nodes = 1 if cost is single else 3
        commands, round_trips = cost.commands / files, cost.round_trips / nodes
        is_met = (
            single.seconds / cost.seconds >= MIN_THROUGHPUT
            and commands <= MAX_COMMANDS_PER_KEY
            and round_trips <= MAX_ROUND_TRIPS_RATIO * single.round_trips
        )
        target = f"≥ {MIN_THROUGHPUT} of the files/s, ≤ 2 commands, ≤ 3 times the round trips"
        table.add_row(
            name,
            format_rate(files / cost.seconds),
            f"{commands:.2f}",
            format_number(round_trips),
            format_seconds(cost.mount_cpu),
            "" if cost is single else format_goal(target, is_met),
        )
    return table


def _list_long(bench: BenchmarkRun, url: str) -> MeasuredCost:
    with mount_server(bench.new_folder(), url, "--binding", bench.bindings[0]) as mount:
        mount.wait_coherent()
        return measure_cost(mount, lambda: run_program("ls", "-l", mount.path / "key"))


def _seconds(cost: MeasuredCost) -> float:
    return cost.seconds

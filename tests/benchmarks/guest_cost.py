"""The cost of a mount to its server: processor time per write, with and without the mount."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from tests.benchmarks.baseline import BenchmarkRun
from tests.benchmarks.report import ResultTable
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer

WRITES_BY_PIPELINE = {1: 150_000, 32: 1_500_000}
KEYS = 100_000


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    table = ResultTable(
        "Cost to the server: processor time of the written server for each SET of 100,000 existing keys",
        ("mount", *(f"pipeline {pipeline}" for pipeline in WRITES_BY_PIPELINE)),
        notes=["redis-benchmark with 16 clients; the time is that of the server's process (user and system)."],
    )
    if not shutil.which("redis-benchmark"):
        table.notes.append("redis-benchmark is missing.")
        return [table]
    for name, options, start in (
        ("none", None, start_server),
        ("following", [], start_server),
        ("`--no-follow`", ["--no-follow"], start_server),
        ("paused (`--idle-seconds`)", ["--idle-seconds", "1"], start_server),
        ("none, one replica", None, start_replica),
        ("`--replicas`, one replica", ["--replicas"], start_replica),
        ("none, cluster of 3 primaries", None, start_cluster),
        ("following, cluster of 3 primaries", [], start_cluster),
        ("`--replicas`, cluster of 3 primaries", ["--replicas"], start_cluster),
    ):
        with start() as target:
            if options is None:
                costs = [_measure_cost(target, pipeline) for pipeline in WRITES_BY_PIPELINE]
            else:
                words = ["--binding", bench.bindings[0], *options]
                with mount_server(bench.new_folder(), target.mounted_url, *words) as mount:
                    _wait_for_state(mount, options)
                    costs = [_measure_cost(target, pipeline) for pipeline in WRITES_BY_PIPELINE]
        table.add_row(name, *(f"{cost:.2f} µs" for cost in costs))
    return [table]


@dataclass
class WriteTarget:
    """Servers that are written, and what is mounted."""

    written: list[RedisServer]
    mounted_url: str
    benchmark_words: list[str]  # of redis-benchmark: the server
    key: str = "bench:__rand_int__"


def _wait_for_state(mount: MountedServer, options: list[str]) -> None:
    if "--idle-seconds" in options:
        wait_until(lambda: mount.status()["paused"])
    elif "--no-follow" not in options:
        mount.wait_coherent()


@contextlib.contextmanager
def start_server() -> Iterator[WriteTarget]:
    """Run a server with data."""
    with RedisServer(tcp=True) as server:
        server.client().mset({f"bench:{number:012}": "value" for number in range(KEYS)})
        yield WriteTarget([server], server.url(), ["-s", server.socket_path])


@contextlib.contextmanager
def start_replica() -> Iterator[WriteTarget]:
    """Run a server with data, and its replica, which is mounted."""
    with start_server() as target, RedisServer(tcp=True) as replica:
        replica.client().replicaof("127.0.0.1", target.written[0].port)
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
        target.mounted_url = replica.url()
        yield target


@contextlib.contextmanager
def start_cluster() -> Iterator[WriteTarget]:
    """Run a cluster with data, and a replica of each primary."""
    with RedisCluster() as cluster:
        primaries = cluster.primaries()
        wait_until(lambda: all(len(row) > 3 for node in cluster.nodes for row in node.call("CLUSTER", "SLOTS")))
        words = ["--cluster", "-h", "127.0.0.1", "-p", str(primaries[0].port)]
        target = WriteTarget([*primaries], cluster.url(), words, "bench:{tag}:__rand_int__")
        _run_benchmark(target, 3 * KEYS, 32)
        yield target


def _measure_cost(target: WriteTarget, pipeline: int) -> float:
    """Return the processor time of the written servers for each write, in µs."""
    processes = [psutil.Process(server.process.pid) for server in target.written if server.process is not None]
    count = WRITES_BY_PIPELINE[pipeline]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    _run_benchmark(target, count, pipeline)
    return (sum(sum(process.cpu_times()[:2]) for process in processes) - before) / count * 1e6


def _run_benchmark(target: WriteTarget, count: int, pipeline: int) -> None:
    words = [*target.benchmark_words, "-q", "-c", "16", "-n", str(count), "-P", str(pipeline), "-r", str(KEYS)]
    command = ["redis-benchmark", *words, "SET", target.key, "value"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
